"""What `train --help` and `train --schema` say of the keys."""

import dataclasses
import json
import re
from types import NoneType

import pytest

from ist_hpc.config import loading
from ist_hpc.config.filling import help_of, sections_in
from ist_hpc.config.key_help import describe_keys
from ist_hpc.config.keys import Config
from ist_hpc.config.yaml_text import read_yaml
from tests.helpers.launching import ROOT, run_python


def test_every_key_is_described():
    described = describe_keys()
    words = " ".join(described.split())

    def check(kind: type, prefix: str) -> None:
        for field in dataclasses.fields(kind):
            inner = sections_in(field.type)
            for section in inner:
                check(section, f"{prefix}{field.name}.")
            if not inner:
                found = re.findall(rf"^  {re.escape(prefix + field.name)} .*$", described, re.M)
                assert found
                assert all("; default " in line or "; required" in line for line in found)
                assert help_of(field)
                assert help_of(field) in words

    check(Config, "")
    assert re.search(r"data\.path +a text; required", described)
    assert max(map(len, described.splitlines())) <= 120


def test_a_key_of_several_kinds_is_described_once():
    described = describe_keys()
    assert len(re.findall(r"^  model\.kind .*one of mlp, vgg11, resnet", described, re.M)) == 1
    assert re.search(r"^  model\.hidden .*; required \(mlp, vgg11\)$", described, re.M)
    assert len(re.findall(r"^  model\.inputs .*; default null$", described, re.M)) == 1
    assert len(re.findall(r"^  model\.channels ", described, re.M)) == 2


def test_defaults_are_described_as_one_writes_them():
    described = describe_keys()
    assert re.search(r"data\.verify +true or false; default true$", described, re.M)
    assert re.search(r"optimizer\.betas +a list of 2 numbers; default \[0\.9, 0\.999\]", described)


# The schema.


def test_editors_are_told_every_key_and_its_help():
    done = run_python(["-m", "ist_hpc.train", "--schema"], ROOT)
    schema = json.loads(done.stdout)
    kinds = schema["properties"]["model"]["oneOf"]
    assert [kind["$ref"].rpartition("/")[2] for kind in kinds] == [
        *("MlpConfig", "Vgg11Config", "ResnetConfig")
    ]
    sections = schema["$defs"]
    assert sections["OptimizerConfig"]["properties"]["lr"]["minimum"] == 0
    assert sections["OptimizerConfig"]["additionalProperties"] is False
    assert sections["TrainConfig"]["properties"]["algorithm"]["enum"][0] == "ist"
    for section in sections.values():
        assert all(key["description"] for key in section["properties"].values())


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_the_schema_takes_what_we_take(path):
    """As an editor would check it, by the rules of JSON Schema that are used."""
    assert not list(unfit(read_yaml(path.read_text(), ""), loading.schema(), loading.schema()))
    given = read_yaml(path.read_text(), "") | {"seed": "many", "nothing": 1}
    assert len(list(unfit(given, loading.schema(), loading.schema()))) == 2


def unfit(value, rule, schema):
    """What of a value the rule of a JSON Schema does not allow; of its words those in ours."""
    if "$ref" in rule:
        rule = schema["$defs"][rule["$ref"].rpartition("/")[2]]
    for words in ("oneOf", "anyOf"):
        if words in rule and all(list(unfit(value, one, schema)) for one in rule[words]):
            yield value, words
    kinds = {"integer": int, "number": int | float, "boolean": bool, "string": str, "array": list}
    kinds |= {"object": dict, "null": NoneType}
    if "type" in rule and not isinstance(value, kinds[rule["type"]]):
        yield value, rule["type"]
    elif "properties" in rule:
        for name, inner in value.items():
            if name in rule["properties"]:
                yield from unfit(inner, rule["properties"][name], schema)
            else:
                yield name, "unknown"
        for name in rule.get("required", []):
            if name not in value:
                yield name, "missing"
    elif value != rule.get("const", value) or value not in rule.get("enum", [value]):
        yield value, "enum"

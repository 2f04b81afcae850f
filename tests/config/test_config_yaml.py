"""The YAML of configurations: read as it looks, and nothing but an answer from what is none."""

import contextlib
import os
import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ist_hpc.common.errors import InputError
from ist_hpc.config import loading
from tests.helpers.configurations import BASE, lines, mistake

# What YAML 1.1 reads as something else: (what line 4 says, the key, its value).

READ_AS_IT_LOOKS = {
    "seed: 010": ("seed", 10),
    "seed: 064": ("seed", 64),
    "seed: '+12'": None,
    "seed: +12": ("seed", 12),
    "seed: !!int 010": ("seed", 10),
    "name: 2026-01-02": ("name", "2026-01-02"),
    "name: no": ("name", "no"),
    "name: off": ("name", "off"),
    "name: y": ("name", "y"),
    "name: 1e3x": ("name", "1e3x"),
    "optimizer: {lr: 1e-3}": ("optimizer.lr", 0.001),
    "optimizer: {lr: 5.}": ("optimizer.lr", 5.0),
    "optimizer: {lr: .5}": ("optimizer.lr", 0.5),
    "optimizer: {lr: 010.5}": ("optimizer.lr", 10.5),
    "data: {path: 0x10}": ("data.path", "0x10"),
    "data: {path: '010'}": ("data.path", "010"),
}


@pytest.mark.parametrize("line", READ_AS_IT_LOOKS)
@pytest.mark.parametrize("way", ["file", "--set"])
def test_values_are_read_as_they_look(line, way):
    expected = READ_AS_IT_LOOKS[line]
    base = BASE.replace("data: {path: d}\n", "") if line.startswith("data") else BASE
    text, given_ = base + line, ()
    if way == "--set":
        key, _, value = line.partition(": ")
        if value.startswith("{"):
            inner, _, value = value.strip("{}").partition(": ")
            key = f"{key}.{inner}"
        text, given_ = BASE, (f"{key}={value}",)
    if expected is None:
        assert "a whole number" in mistake(text, *given_)
        return
    key, value = expected
    one = loading.parse(text, "my.yaml", given_)
    for name in key.split("."):
        one = getattr(one, name)
    assert (one, type(one)) == (value, type(value))


@pytest.mark.parametrize("text", ["010", "1e3", "09", "no", "1:30", "2026-01-02", "0x1f", "~", "="])
def test_texts_that_look_like_numbers_come_back_as_texts(text):
    """Also for readers of YAML 1.1, such as PyYAML, which other tools are made with."""
    one = loading.parse(BASE, "my.yaml", [f"data.path='{text}'" if text != "~" else "data.path=a"])
    dumped = loading.dump(one)
    assert loading.parse(dumped, "dumped") == one
    assert yaml.safe_load(dumped)["data"]["path"] == one.data.path


# What is not a configuration at all.

MALFORMED = {
    "list": ("- 1\n- 2", "`the configuration` must be a mapping .* got \\[1, 2\\]"),
    "text": ("hello", "`the configuration` must be a mapping"),
    "empty": ("", "`data.path` is required"),
    "comment": ("# nothing\n", "`data.path` is required"),
    "tab": ("data:\n\tpath: x\n", "my.yaml, line 2: .*cannot start any token"),
    "unclosed": ("a: 1\nb: [1, 2", r"my.yaml, line 2: expected ',' or '\]'"),
    "two documents": ("a: 1\n---\nb: 2", "my.yaml, line 2: but found another document"),
    "control character": ("a: 1\nb: \x07", "my.yaml, line 2: special characters"),
    "deep list": ("a: " + "[" * 4000, "my.yaml: nested too deeply"),
    "deep mapping": ("{a: " * 4000 + "1" + "}" * 4000, "nested too deeply"),
    "deep block": ("".join(" " * i + "a:\n" for i in range(1500)), "nested too deeply"),
    "endless": ("data: &a\n  path: *a", "my.yaml, line 2: aliases"),
    "alias": ("a: &a [x, x]\nb: [*a, *a]", "line 2: aliases"),
    "key of keys": ("? {a: 1}\n: 2", "my.yaml, line 1: found unhashable key"),
    "date by its tag": (lines("name: !!timestamp 2026-01-02"), "line 4: could not determine"),
    "octal by its tag": (lines("seed: !!int 0o10"), "line 4: not of the type int"),
    "base 60 by its tag": (lines("optimizer: {lr: !!float 1:30}"), "line 4: not of the type float"),
    "a word for false by its tag": (lines("seed: !!bool no"), "line 4: not of the type bool"),
    "merge by its tag": (lines("optimizer: {!!merge <<: {lr: 1}}"), "line 4: could not determine"),
    "tag that does not fit": (lines("seed: !!int x"), "line 4: not of the type int"),
    "tag of nothing": (lines('seed: !!int ""'), "line 4: not of the type int"),
    "tag of bool": (lines("seed: !!bool x"), "line 4: not of the type bool"),
    "endless number": (lines("seed: " + "9" * 5000), "line 4: not of the type int"),
}


@pytest.mark.parametrize(("text", "pattern"), MALFORMED.values(), ids=MALFORMED.keys())
def test_what_is_no_configuration_is_refused(text, pattern):
    assert re.search(pattern, mistake(text))
    mistake(text, "seed=1")  # nor with a setting, whatever there is to set it in


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40), st.text(max_size=20))
def test_nothing_that_is_read_raises_anything_else(text, setting):
    for source, given_ in (
        (text, []),
        (BASE + text, []),
        (BASE, [setting]),
        (BASE, ["seed=" + text]),
    ):
        with contextlib.suppress(InputError):
            loading.parse(source, "my.yaml", given_)


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch {}']",
        "!!python/object/apply:os.mkdir ['{}']",
        "!!python/object/new:os.mkdir ['{}']",
        "!!python/name:os.system",
        "!!python/module:os",
        "!!python/tuple [1, 2]",
    ],
)
def test_nothing_in_yaml_makes_an_object(value, tmp_path):
    target = tmp_path / "made"
    value = value.format(target)
    for text, given_ in ((lines(f"seed: {value}"), []), (BASE, [f"seed={value}"])):
        assert "could not determine a constructor for the tag" in mistake(text, *given_)
    assert not os.listdir(tmp_path)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    (tmp_path / "empty.yaml").write_bytes(b"")
    for name, what in (
        ("latin.yaml", "utf-8"),
        ("absent.yaml", "No such file"),
        (".", "directory"),
        ("a\0b", "null"),
    ):
        with pytest.raises(InputError, match=what) as caught:
            loading.load(tmp_path / name)
        assert str(tmp_path) in str(caught.value)
    with pytest.raises(InputError, match=r"`data.path` is required.*empty\.yaml"):
        loading.load(tmp_path / "empty.yaml")


def test_a_byte_order_mark_is_no_mistake(tmp_path):
    (tmp_path / "a.yaml").write_text(BASE, encoding="utf-8-sig")
    assert loading.load(tmp_path / "a.yaml").data.path == "d"

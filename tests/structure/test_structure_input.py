"""What users write passes through one function of its kind: paths, YAML.

Read from the source, so that a new option or key cannot go around it.
"""

import ast
import dataclasses

from ist_hpc.config.filling import FilePath, Text, help_of, sections_in
from ist_hpc.config.keys import Config
from tests.structure.test_structure import PACKAGE, SOURCES

PATHS = {"FILE", "DIR", "CKPT", "RUN", "FOLDER", "scaling.csv"}
"""What `metavar` says of an option that is a path."""


def options() -> list[tuple[str, ast.Call]]:
    """(module, the call that adds an option) of all parsers; `add` is a name for `add_argument`."""
    return [
        (module, node)
        for module, tree in SOURCES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and getattr(node.func, "attr", getattr(node.func, "id", "")) in ("add_argument", "add")
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    ]


def test_every_option_that_is_a_path_expands_the_home_folder():
    found = {}
    for module, call in options():
        words = {word.arg: word.value for word in call.keywords}
        kind = words.get("type")
        name = f"{module} {ast.unparse(call.args[0])}"
        assert not (isinstance(kind, ast.Name) and kind.id in ("Path", "str")), name
        metavar = words.get("metavar")
        if isinstance(metavar, ast.Constant) and metavar.value in PATHS:
            found[name] = isinstance(kind, ast.Name) and kind.id == "given_path"
        elif isinstance(kind, ast.Name) and kind.id == "given_path":
            found[name] = True
    assert len(found) >= 22
    assert [name for name, expands in found.items() if not expands] == []


def test_no_program_beside_the_package_has_another_way():
    for path in sorted((PACKAGE.parent / "bench").glob("*.py")):
        assert "type=Path" not in path.read_text(encoding="utf-8"), path.name


def test_every_key_that_is_opened_expands_the_home_folder():
    """A key is opened where it becomes a `Path`, or is given to what opens it."""
    opened = set()
    for tree in SOURCES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Path", "Dataset.open"):
                text = ast.unparse(node)
                for section in ("data", "model", "train", "checkpoint", "runtime"):
                    marker = f"config.{section}."
                    if marker in text:
                        opened.add(f"{section}.{text.partition(marker)[2].partition(')')[0]}")
    assert "data.path" in opened
    keys = {
        f"{section.name}.{field.name}": field
        for section in dataclasses.fields(Config)
        for kind in sections_in(section.type)
        for field in dataclasses.fields(kind)
    }
    marked = {name for name, key in keys.items() if key.type in (FilePath, FilePath | None)}
    assert opened <= marked
    named = {
        name
        for name, key in keys.items()
        if {"folder", "file", "checkpoint,"} & set(help_of(key).split())
        and key.type in (FilePath, FilePath | None, Text, Text | None)
    }
    assert named == marked


def test_yaml_is_read_and_written_in_one_module():
    importers = {
        module
        for module, tree in SOURCES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        and any(
            name.split(".")[0] == "yaml"
            for name in [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
        )
    }
    assert importers == {"config.yaml_text"}


def test_lines_that_are_pasted_are_quoted_in_one_way():
    """`names.quoted` also quotes what `shlex.quote` leaves in: bytes that are not UTF-8."""
    users = {
        module
        for module, tree in SOURCES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "shlex"
    }
    assert users == {"common.disk.names", "studies.launches"}  # the latter only splits
    splits = ast.dump(SOURCES["studies.launches"])
    assert "attr='quote'" not in splits
    assert "attr='join'" not in splits

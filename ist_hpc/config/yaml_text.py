"""Reads the YAML of configurations safely, each key once and with its line; and writes it."""

import math
import re
from collections.abc import Callable
from typing import Any, ClassVar

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError
from yaml.reader import ReaderError

from ist_hpc.common.errors import InputError, show

_TAG = "tag:yaml.org,2002:"
# The rules of YAML 1.2's core schema (section 10.3.2) for the type of a plain word, without octal
# and hexadecimal numbers. The library has YAML 1.1, which reads 010 as 8, 1:30 as 90, `no` as
# false and 2026-01-02 as a date.
_RULES = {
    "null": (r"~|null|Null|NULL|", ("~", "n", "N", "")),
    "bool": (r"true|True|TRUE|false|False|FALSE", tuple("tTfF")),
    "int": (r"[-+]?[0-9]+", tuple("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        tuple("-+.0123456789"),
    ),
}
_NAME_BYTES = re.compile("[\udc80-\udcff]")
_FORMS = {name: re.compile(form, re.ASCII) for name, (form, _) in _RULES.items()}


def _resolvers() -> dict[str, list[tuple[str, Any]]]:
    """By first character, the types that a word may have, and their forms."""
    found: dict[str, list[tuple[str, Any]]] = {}
    for name, (form, firsts) in _RULES.items():
        for first in firsts:
            whole = re.compile(rf"(?:{form})\Z", re.ASCII)
            found.setdefault(first, []).append((_TAG + name, whole))
    return found


class _Loader(yaml.SafeLoader):
    """Safe YAML by the core rules of YAML 1.2: a whole number is decimal, `no` is a text.

    Features of YAML that no configuration needs are errors: aliases, which can make a value
    endless, and types beyond JSON's.
    """

    yaml_implicit_resolvers = _resolvers()
    yaml_constructors: ClassVar[dict[Any, Any]] = {
        tag: yaml.SafeLoader.yaml_constructors[tag]
        for tag in (*(_TAG + name for name in (*_RULES, "str", "seq", "map")), None)
    }

    def check_printable(self, data: Any) -> None:
        """Refuse characters outside YAML, except bytes of names: see `names`."""
        super().check_printable(_NAME_BYTES.sub("x", data))

    def compose_node(self, parent: Any, index: Any) -> Any:
        """The next node of the text."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise ComposerError(None, None, "aliases (*name) are not for here", mark)
        return super().compose_node(parent, index)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node; a scalar that does not fit its type is an error like any other."""
        kind = str(node.tag).removeprefix(_TAG)
        try:
            form = _FORMS.get(kind)
            if form is not None and not form.fullmatch(str(node.value)):
                raise ValueError
            if kind == "int":
                return int(str(node.value))  # the library would read 010 as octal
            return super().construct_object(node, deep)
        except (ValueError, LookupError, ArithmeticError, AttributeError):
            problem = f"not of the type {kind}, or out of its range: {show(node.value)}"
            raise ConstructorError(None, None, problem, node.start_mark) from None

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Do nothing: merging mappings (<<) is not part of YAML 1.2."""


def _both() -> dict[str, list[tuple[str, Any]]]:
    """The rules of YAML 1.1, which other readers of our files may use, and those of 1.2."""
    old, new = yaml.SafeDumper.yaml_implicit_resolvers, _resolvers()
    return {first: [*old.get(first, []), *new.get(first, [])] for first in {*old, *new}}


class _Dumper(yaml.SafeDumper):
    """Quotes every text that the rules of 1.1 or those of 1.2 would read as something else."""

    yaml_implicit_resolvers = _both()


def write_yaml(value: Any, one_line: bool = False) -> str:
    """YAML of plain values that `read_yaml`, and readers of YAML 1.1, read back to equal ones."""
    return yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=one_line,
        width=math.inf if one_line else None,
    )


def read_yaml(
    text: str, where: str, on_key: Callable[[str, int], None] = lambda key, line: None
) -> Any:
    """The value of a YAML text; calls `on_key` with the dotted keys and their lines.

    where  where the text comes from, for errors: "in runs/a/config.yaml"
    Raises `InputError` for text that is not YAML, or has a key twice.
    """
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _walk_keys(node, "", where, on_key)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise InputError(f"cannot read the YAML {where}: nested too deeply") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else None
        problem = getattr(error, "problem", None) or "not YAML"
        if isinstance(error, ReaderError):
            line, problem = text.count("\n", 0, error.position) + 1, error.reason
        place = f", line {line}" if line else ""
        raise InputError(f"cannot read the YAML {where}{place}: {problem}") from None


def _walk_keys(
    node: yaml.Node, prefix: str, where: str, on_key: Callable[[str, int], None]
) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        name = str(getattr(key_node, "value", ""))
        line = key_node.start_mark.line + 1
        dotted = f"{prefix}{name}"
        if name in seen:
            raise InputError(f"`{dotted}` is given twice {where}, lines {seen[name]} and {line}")
        seen[name] = line
        on_key(dotted, line)
        _walk_keys(value_node, f"{dotted}.", where, on_key)

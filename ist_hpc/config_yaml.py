"""Reading the YAML of a configuration: safe, small, each key once, and the line of each known."""

import re
from collections.abc import Callable
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError
from yaml.reader import ReaderError

from ist_hpc.configtypes import show
from ist_hpc.errors import InputError

_MOST_DEPTH = 20  # of the nesting; a configuration has 3


class _Loader(yaml.SafeLoader):
    """Safe YAML, with 1e-3 a number (YAML 1.1 wants 1.0e-3).

    What YAML has and no configuration needs is an error: a nesting so deep that Python's recursion
    would end it, and aliases, by which a short text makes a large value or one without end.
    """

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """The next node of the text."""
        event = self.peek_event()
        mark: Any = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            raise ComposerError(None, None, "aliases (*name) are not for here", mark)
        if self._depth == _MOST_DEPTH:
            problem = f"nested deeper than {_MOST_DEPTH} levels"
            raise ComposerError(None, None, problem, mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node; a scalar that is not of its type is an error as any other is."""
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int):
                str(value)  # Python refuses numbers of thousands of digits, and so do the checks
            return value
        except (ValueError, LookupError, ArithmeticError, AttributeError):
            kind = str(node.tag).rpartition(":")[2]
            problem = f"not of the type {kind}, or out of its range: {show(node.value)}"
            raise ConstructorError(None, None, problem, node.start_mark) from None


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def read_yaml(text: str, where: str, on_key: Callable[[str, int], None]) -> Any:
    """The value of a YAML text; tells `on_key` the dotted keys and their lines.

    where  the text is from, for errors: "in runs/a/config.yaml"
    Raises `InputError` for what is not YAML, or has a key twice.
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

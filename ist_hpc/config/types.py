"""Filling dataclasses from untrusted mappings, with errors that answer.

A section of a configuration is a dataclass whose fields are made with `key`: default, help, range
and choices stand together, and `fill` checks them. Every error names the dotted key, where it was
given, what was got and what is allowed.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ist_hpc.common.errors import InputError, describe, show
from ist_hpc.common.names import expanded

Where = Callable[[str], str]
"""dotted key -> where its value was given, such as `in configs/x.yaml, line 3`."""

REQUIRED = dataclasses.MISSING


def key(
    default: Any = REQUIRED,
    help: str = "",
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    choices: Sequence[str] = (),
    is_path: bool = False,
) -> Any:
    """A field of a section: `low` <= value <= `high`, value > `above`, or one of `choices`.

    Bounds of a list hold for each of its items. A value that `is_path` may begin with `~`.
    """
    metadata = {
        "help": help,
        "low": low,
        "above": above,
        "high": high,
        "choices": tuple(choices),
        "is_path": is_path,
    }
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def fill(section: type, values: Any, where: Where, prefix: str = "") -> Any:
    """An instance of the dataclass `section` from a mapping. Raises `InputError`."""
    if not isinstance(values, Mapping):
        raise InputError(
            f"`{prefix or 'the configuration'}` must be a mapping of keys to values, "
            f"got {show(values)} {where(prefix)}"
        )
    hints = typing.get_type_hints(section)
    fields = {field.name: field for field in dataclasses.fields(section)}
    for name in values:
        if name not in fields:
            raise _unknown(f"{prefix}.{name}" if prefix else str(name), list(fields), where)
    filled = {}
    for name, field in fields.items():
        dotted = f"{prefix}.{name}" if prefix else name
        if dataclasses.is_dataclass(hints[name]):
            assert isinstance(hints[name], type)
            filled[name] = fill(hints[name], values.get(name, {}), where, dotted)
        elif name in values:
            filled[name] = _checked(values[name], hints[name], field, dotted, where)
        elif field.default is REQUIRED and field.default_factory is REQUIRED:
            raise InputError(f"`{dotted}` is required and missing {where(prefix)}: {_help(field)}")
    return section(**filled)


def _unknown(dotted: str, valid: list[str], where: Where) -> InputError:
    *parents, name = dotted.split(".")
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    dotted_near = ".".join([*parents, near[0]]) if near else ""
    hint = f"did you mean `{dotted_near}`? " if near else ""
    return InputError(f"unknown key `{dotted}` {where(dotted)}; {hint}valid: {', '.join(valid)}")


def _help(field: "dataclasses.Field[Any]") -> str:
    return str(field.metadata.get("help", ""))


def _checked(
    value: Any, hint: Any, field: "dataclasses.Field[Any]", dotted: str, where: Where
) -> Any:
    try:
        converted = _converted(value, hint)
    except (TypeError, ValueError, OverflowError):
        raise InputError(
            f"`{dotted}` must be {describe(hint)}, got {show(value)} {where(dotted)}"
        ) from None
    for item in converted if isinstance(converted, list | tuple) else [converted]:
        problem = _out_of_range(item, field.metadata)
        if problem:
            raise InputError(f"`{dotted}` must be {problem}, got {show(value)} {where(dotted)}")
    if field.metadata.get("is_path") and converted is not None:
        try:
            return expanded(converted)
        except InputError as error:
            raise InputError(f"`{dotted}` {where(dotted)}: {error}") from None
    return converted


def _out_of_range(item: Any, allowed: Mapping[str, Any]) -> str:
    choices = allowed.get("choices") or ()
    if choices and item not in choices:
        near = difflib.get_close_matches(str(item), choices, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        return "one of " + ", ".join(choices) + hint
    if isinstance(item, bool) or not isinstance(item, int | float):
        return ""
    low, above, high = (allowed.get(bound) for bound in ("low", "above", "high"))
    if low is not None and item < low:
        return f"at least {low}"
    if above is not None and item <= above:
        return f"more than {above}"
    if high is not None and item > high:
        return f"at most {high}"
    return ""


def _converted(value: Any, hint: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        if value is None and type(None) in arguments:
            return None
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return _converted(value, inner)
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            raise TypeError
        if origin is tuple and Ellipsis not in arguments and len(value) != len(arguments):
            raise ValueError
        return origin(_converted(item, arguments[0]) for item in value)
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError
        if not math.isfinite(value):
            raise ValueError
        return float(value)
    if type(value) is not hint:
        raise TypeError
    if hint is str and not value:
        raise ValueError
    return value

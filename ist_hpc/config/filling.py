"""Fills the sections of a configuration from untrusted mappings, with helpful errors.

A section is a pydantic dataclass, whose fields have a type with its bounds, a default and a help.
pydantic checks them; its first error becomes one line with the dotted key, where it was given, the
value and what is allowed.
"""

import dataclasses
import difflib
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from annotated_types import MinLen
from pydantic import (
    AllowInfNan,
    ConfigDict,
    Field,
    PlainValidator,
    Strict,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from ist_hpc.common.disk.names import expanded
from ist_hpc.common.errors import InputError, describe, show

Where = Callable[[str], str]
"""From a dotted key to where its value was given, such as `in configs/x.yaml, line 3`."""

Whole = Annotated[int, Strict()]
Number = Annotated[float, Strict(), AllowInfNan(False)]
Flag = Annotated[bool, Strict()]
Text = Annotated[str, Strict(), MinLen(1)]


def _path(value: Any) -> str:
    """A path with `~` expanded. Names of files are bytes; pydantic's texts are Unicode."""
    if not isinstance(value, str) or not value:
        raise PydanticCustomError("path", "no path")
    try:
        return expanded(value)
    except InputError as error:
        raise PydanticCustomError("refused", "{reason}", {"reason": str(error)}) from None


FilePath = Annotated[str, PlainValidator(_path), WithJsonSchema({"type": "string"})]
"""A file or folder, which may begin with `~`."""

NO_OTHERS = ConfigDict(extra="forbid", defer_build=True)
"""The settings of a section: no other keys; pydantic builds its check on first use."""


def key(default: Any = ..., help: str = "", **bounds: float) -> Any:
    """A field of a section: its default, if it has one, its meaning, and `ge`, `gt` or `le`."""
    limits: dict[str, Any] = {"description": help, **bounds}
    if isinstance(default, type):  # a section; its keys have defaults
        return Field(default_factory=default, **limits)
    if isinstance(default, list):
        return Field(default_factory=lambda: list(default), **limits)
    return Field(default=default, **limits)


def default_of(field: "dataclasses.Field[Any]") -> Any:
    """The default of a key; `dataclasses.MISSING` if it must be given."""
    info = typing.cast(Any, field.default)
    if info.is_required():
        return dataclasses.MISSING
    return info.get_default(call_default_factory=True)


def help_of(field: "dataclasses.Field[Any]") -> str:
    """The meaning of a key."""
    return str(typing.cast(Any, field.default).description)


def fill(kind: type, values: Any, where: Where) -> Any:
    """A whole configuration, the section `kind`, from a mapping. Raises `InputError`."""
    if not isinstance(values, Mapping):
        raise InputError(
            "`the configuration` must be a mapping of keys to values, got "
            f"{show(values)} {where('')}"
        )
    # In a section that is not given, the required keys are missing.
    required = [
        field.name
        for field in dataclasses.fields(kind)
        if sections_in(field.type) and default_of(field) is dataclasses.MISSING
    ]
    values = {**values, **{name: {} for name in required if name not in values}}
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        found = error.errors(include_url=False)
        unknown = [one for one in found if one["type"] in _UNKNOWN]
        raise _answer(kind, values, dict((unknown or found)[0]), where) from None


_UNKNOWN = ("unexpected_keyword_argument", "invalid_key")
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
}


def _answer(kind: type, values: Any, problem: dict[str, Any], where: Where) -> InputError:
    """One of pydantic's errors in our words."""
    place = _Place.of(kind, values, problem["loc"])
    dotted, what, context = place.dotted, problem["type"], problem.get("ctx", {})
    if what in _UNKNOWN:
        valid = place.names
        near = difflib.get_close_matches(place.name, valid, n=1, cutoff=0.5)
        hint = f"did you mean `{place.beside(near[0])}`? " if near else ""
        return InputError(
            f"unknown key `{dotted}` {where(dotted)}; {hint}valid: {', '.join(valid)}"
        )
    if what == "missing" and place.field is not None and not place.is_within:
        return InputError(
            f"`{dotted}` is required and missing {where(place.parent)}: {help_of(place.field)}"
        )
    if what == "refused":
        return InputError(f"`{dotted}` {where(dotted)}: {context['reason']}")
    if what == "union_tag_invalid":
        tags = [tag.strip("' ") for tag in context["expected_tags"].split(",")]
        allowed, value = _one_of(tags, context["tag"]), values["model"]["kind"]
        return InputError(
            f"`{dotted}.kind` must be {allowed}, got {show(value)} {where(f'{dotted}.kind')}"
        )
    if what in ("dataclass_type", "model_attributes_type"):
        allowed = "a mapping of keys to values"
    elif what in _BOUNDS:
        words, name = _BOUNDS[what]
        allowed = f"{words} {_plain(context[name])}"
    elif what == "literal_error" and isinstance(place.value, str) and place.value:
        allowed = _one_of(choices_of(place.hint), place.value)
    elif what == "too_short" and place.value == []:
        allowed = f"{describe(place.hint)}, one or more"
    else:
        allowed = describe(place.hint)
    return InputError(f"`{dotted}` must be {allowed}, got {show(place.value)} {where(dotted)}")


def _plain(number: float) -> float:
    """A bound as it was written: 1, not 1.0."""
    return int(number) if float(number).is_integer() and abs(number) < 2**53 else number


def _one_of(choices: typing.Sequence[str], got: str) -> str:
    near = difflib.get_close_matches(got, choices, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return "one of " + ", ".join(choices) + hint


def choices_of(hint: Any) -> tuple[str, ...]:
    """The values of a `Literal`; none of another type."""
    return typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()


def kind_of_section(section: Any) -> str:
    """The kind of a section, the only value of its key `kind`."""
    return str(choices_of(section.__annotations__["kind"])[0])


def sections_in(hint: Any) -> list[Any]:
    """The sections that a field of this type can hold: none, one, or several kinds."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return [hint]
    return [found for inner in typing.get_args(hint) for found in sections_in(inner)]


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where in a configuration something is wrong.

    parent     dotted key of the section, empty for the whole
    name       the key in it, which the section may not know
    names      the keys that it knows
    field      the field of the key, if it knows the key
    value      what was given
    is_within  whether an item of a list is wrong
    """

    parent: str
    name: str
    names: list[str]
    field: "dataclasses.Field[Any] | None"
    value: Any
    is_within: bool

    @staticmethod
    def of(kind: Any, values: Any, location: tuple[Any, ...]) -> "_Place":
        parents: list[str] = []
        rest = [*location]
        while True:
            fields = {field.name: field for field in dataclasses.fields(kind)}
            name = str(rest.pop(0))
            value = values.get(name) if isinstance(values, Mapping) else None
            field = fields.get(name)
            inner = sections_in(field.type) if field else []
            if not rest or not inner:
                return _Place(".".join(parents), name, list(fields), field, value, bool(rest))
            kind = inner[0]
            if len(inner) > 1:  # pydantic names the kind that was tried, too
                tag = rest.pop(0)
                (kind,) = (one for one in inner if kind_of_section(one) == tag)
                if not rest:
                    return _Place(".".join(parents), name, list(fields), field, value, False)
            parents.append(name)
            values = value

    @property
    def dotted(self) -> str:
        return self.beside(self.name)

    @property
    def hint(self) -> Any:
        return self.field.type if self.field else None

    def beside(self, name: str) -> str:
        """The dotted key of another name in the same section."""
        return f"{self.parent}.{name}" if self.parent else name

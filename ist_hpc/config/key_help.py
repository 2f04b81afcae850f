"""The list of keys that `train --help` ends with."""

import dataclasses
import textwrap
from typing import Any

from ist_hpc.common.errors import describe
from ist_hpc.config.filling import default_of, help_of, kind_of_section, sections_in
from ist_hpc.config.keys import Config
from ist_hpc.config.yaml_text import write_yaml

_INDENT = " " * 6
_WRAPPED = textwrap.TextWrapper(100, initial_indent=_INDENT, subsequent_indent=_INDENT)
Field = dataclasses.Field[Any]


def describe_keys() -> str:
    """Every key with its type, default and meaning, in lines of at most 100 characters."""
    return "\n".join(_section_lines([Config], ""))


def _section_lines(kinds: list[type], prefix: str) -> list[str]:
    """The lines of a section, which may have several kinds: a key they share is listed once."""
    lines = []
    for fields in _alike(kinds):
        field = next(iter(fields.values()))
        sections = sections_in(field.type)
        if sections:
            lines += _section_lines(sections, f"{prefix}{field.name}.")
            continue
        of = "" if len(fields) == len(kinds) else f" ({', '.join(fields)})"
        if field.name == "kind" and len(kinds) > 1:
            type_ = f"one of {', '.join(map(kind_of_section, kinds))}"
        else:
            type_ = describe(field.type)
        lines.append(f"  {prefix + field.name:28} {type_}; {_default(field)}{of}")
        lines += _WRAPPED.wrap(help_of(field))
    return lines


def _alike(kinds: list[type]) -> list[dict[str, Field]]:
    """The fields of all kinds, in their order; equal fields share one dict, by kind."""
    found: dict[Any, dict[str, Field]] = {}
    for kind in kinds:
        of = kind_of_section(kind) if len(kinds) > 1 else ""
        for field in dataclasses.fields(kind):
            says: tuple[str, ...] = ()
            if not sections_in(field.type) and not (of and field.name == "kind"):
                says = describe(field.type), _default(field), help_of(field)
            found.setdefault((field.name, says), {})[of] = field
    return list(found.values())


def _default(field: Field) -> str:
    """The default as written in YAML."""
    default = default_of(field)
    if default is dataclasses.MISSING:
        return "required"
    plain = list(default) if isinstance(default, tuple) else default
    written = write_yaml([plain], one_line=True).strip()
    return f"default {written.removeprefix('[').removesuffix(']')}"

"""Reads the configuration of a run from YAML and --set, and writes it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ist_hpc.common.errors import InputError, show
from ist_hpc.config.filling import Where, fill
from ist_hpc.config.foreign import drop_foreign
from ist_hpc.config.keys import Config
from ist_hpc.config.rules import check_together
from ist_hpc.config.yaml_text import read_yaml, write_yaml

QUICKSTART = Path(__file__).parent / "quickstart.yaml"
"""The configuration of a run that names none."""


def load(path: Path | None, settings: Sequence[str] = ()) -> Config:
    """The configuration of a file (the quickstart's if None) with `section.key=value` settings.

    Local; every rank reads the same file. Raises `InputError`.
    """
    source = path or QUICKSTART
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot read the configuration {source}: {reason}") from None
    return parse(text, str(source), settings)


def parse(text: str, source: str, settings: Sequence[str] = ()) -> Config:
    """The configuration of a YAML text; `source` names it in errors. Raises `InputError`."""
    lines: dict[str, str] = {}
    values = read_yaml(text, f"in {source}", lambda key, line: lines.update({key: f"line {line}"}))
    if values is None:
        values = {}
    given: dict[str, str] = {}
    for setting in settings if isinstance(values, dict) else ():
        _apply_setting(values, setting, given)
    _let_length_replace(values, given)

    def where(dotted: str) -> str:
        if dotted in given:
            return f"in --set {given[dotted]}"
        return f"in {source}" + (f", {lines[dotted]}" if dotted in lines else "")

    return resolve(values, where)


def resolve(values: Any, where: Where) -> Config:
    """The configuration of a mapping, which it may change. Raises `InputError`.

    where  from a dotted key to where its value was given, for errors
    """
    drop_foreign(values, where)
    config: Config = fill(Config, values, where)
    check_together(config, where)
    return config


def _apply_setting(values: dict[Any, Any], setting: str, given: dict[str, str]) -> None:
    dotted, separator, text = setting.partition("=")
    names = dotted.strip().split(".")
    if not separator or not all(names):
        raise InputError(f"--set wants key=value, such as optimizer.lr=0.1, got {setting!r}")
    target = ".".join(names)

    def on_key(key: str, line: int) -> None:
        given[f"{target}.{key}"] = setting

    value = read_yaml(text, f"in --set {setting}", on_key)
    section: Any = values
    for depth, name in enumerate(names[:-1], start=1):
        parent = ".".join(names[:depth])
        given[parent] = setting
        section = section.setdefault(name, {})
        if not isinstance(section, dict):
            raise InputError(
                f"--set {setting}: `{parent}` must be a mapping of keys to values, got "
                f"{show(section)}"
            )
    section[names[-1]] = value
    given[target] = setting


def _let_length_replace(values: Any, given: dict[str, str]) -> None:
    """A length that is set replaces the other kind of length in the file."""
    train = values.get("train") if isinstance(values, dict) else None
    if not isinstance(train, dict):
        return
    for name, other in (("rounds", "epochs"), ("epochs", "rounds")):
        replaces = f"train.{name}" in given and f"train.{other}" not in given
        if replaces and train.get(name) is not None:
            train.pop(other, None)


def dump(config: Config) -> str:
    """The resolved configuration as YAML that `parse` reads back to an equal one."""
    plain = dataclasses.asdict(config)
    plain["optimizer"]["betas"] = list(config.optimizer.betas)
    plain["evaluate"]["propensity"] = list(config.evaluate.propensity)
    return write_yaml(plain)


def schema() -> dict[str, Any]:
    """The JSON Schema of a configuration, with which editors complete and check YAML."""
    made = TypeAdapter(Config).json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}

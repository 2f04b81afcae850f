"""What a study has done so far: a CSV of rows, and the settings under which they were measured."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ist_hpc.common.decimals import number, whole
from ist_hpc.common.disk.files import json_text, write_text
from ist_hpc.common.disk.locks import FileLock, owner_facts
from ist_hpc.common.errors import InputError

Row = dict[str, Any]


def read_rows(path: Path, needed: Sequence[str]) -> list[Row]:
    """The rows of a study's CSV, numbers as numbers; empty fields are left out.

    Raises `InputError` if it cannot be read or a row lacks one of the `needed` columns.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is no CSV of a study: not UTF-8") from None
    rows = []
    try:
        for number, fields in enumerate(csv.DictReader(io.StringIO(text), strict=True), start=2):
            row = {key: _value(field) for key, field in fields.items() if key and field}
            missing = [name for name in needed if name not in row]
            if missing or None in fields:
                what = f"no {missing[0]!r}" if missing else "more fields than the first line"
                raise InputError(
                    f"{path}, line {number}: {what}; was it edited by hand, or made by another "
                    "version?"
                )
            rows.append(row)
    except csv.Error as error:
        raise InputError(f"{path} is no CSV of a study: {error}") from None
    return rows


def _value(text: str) -> int | float | str:
    for kind in (whole, number):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write or replace the CSV; the columns are those of all rows, in order of appearance."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_configs(path: Path) -> dict[str, dict[str, Any]]:
    """The configurations of a study, by "METHOD on RANKS"; none if the file does not exist.

    Raises `InputError` if it cannot be read.
    """
    if not path.exists():
        return {}
    return dict(_read_settings(path)["methods"])


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found["common"], dict) and isinstance(found["methods"], dict):
            return dict(found)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise InputError(f"{path} cannot be read as the settings of a study")


class State:
    """The rows of one study in its folder; only one process may have it (see `opened`).

    kind     names its files: `scaling.csv` and `scaling.json`
    numbers  the column that distinguishes runs of one method and number of ranks
    lock     the file descriptor with which this process holds the folder; None: it does not
    """

    lock: int | None = None

    def __init__(self, folder: Path, kind: str, number_column: str) -> None:
        self.folder, self.kind = folder, kind
        self.path, self.settings_path = folder / f"{kind}.csv", folder / f"{kind}.json"
        self._key = ("method", "ranks", number_column)
        self.rows: list[Row] = read_rows(self.path, self._key) if self.path.exists() else []

    def done(self) -> set[tuple[str, int, int]]:
        """The keys of the runs that have a row."""
        return {self.key(row) for row in self.rows}

    def key(self, row: Row) -> tuple[str, int, int]:
        """The key of a row's run."""
        method, ranks, number = (row[name] for name in self._key)
        return method, ranks, number

    def add(self, row: Row) -> None:
        """Add a row; the file on disk has it when this returns."""
        self.rows.append(row)
        write_rows(self.path, self.rows)

    def take_settings(
        self,
        common: Mapping[str, Any],
        methods: Mapping[str, Mapping[str, Any]],
        as_now: Callable[[dict[str, Any]], dict[str, Any]],
    ) -> None:
        """Store the settings of the study, or check that they are those of its earlier rows.

        common    settings of all runs
        methods   those of each method; a study may get more methods, but not other settings
        as_now    converts a method's settings from an earlier version of the package to this one

        Raises `InputError`.
        """
        # As they will be read.
        common, methods = json.loads(json.dumps([common, methods]))
        if self.settings_path.exists():
            before = _read_settings(self.settings_path)
            noted = {name: before["methods"].get(name, methods[name]) for name in methods}
            noted = json.loads(json.dumps({name: as_now(one) for name, one in noted.items()}))
            differing = _first_difference(before["common"], common) or _first_difference(
                noted, methods
            )
            if differing:
                name, old, new = differing
                raise InputError(
                    f"{self.folder} has a {self.kind} study with other settings: {name} was "
                    f"{old!r}, now {new!r}; give another --output, or the settings it had"
                )
            methods = before["methods"] | methods
        text = json_text({"common": common, "methods": methods})
        write_text(self.settings_path, text + "\n")


def _first_difference(
    before: Mapping[str, Any], now: Mapping[str, Any]
) -> tuple[str, Any, Any] | None:
    """(dotted key, old, new) of the first value that differs."""
    for name in [*before, *(name for name in now if name not in before)]:
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            inner = _first_difference(old, new)
            if inner:
                return f"{name}.{inner[0]}", inner[1], inner[2]
        elif old != new:
            return name, old, new
    return None


@contextmanager
def opened(folder: Path, kind: str, number_column: str) -> Iterator[State]:
    """The state of a study, its folder made. Raises `InputError` if a study is at work there."""
    lock = FileLock(folder / f".{kind}.lock", inherited=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.take(owner_facts(), lambda owner, waited_s: _refuse_second(folder, owner))
    except OSError as error:
        raise InputError(
            f"cannot make the folder of the study, {folder}: {error.strerror}"
        ) from None
    try:
        state = State(folder, kind, number_column)
        state.lock = lock.fileno()
        yield state
    finally:
        lock.release()


def _refuse_second(folder: Path, owner: str) -> None:
    raise InputError(
        f"another study is at work in {folder}, or ranks of one that was killed ({owner}); wait "
        "for its end, or give another --output"
    )

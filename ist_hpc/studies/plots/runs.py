"""Reads the folders of runs, for curves, tables and studies; uses no MPI."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ist_hpc.common.errors import InputError
from ist_hpc.config.yaml_text import read_yaml

Values = npt.NDArray[np.float64]

POINTS = ("steps", "samples", "seconds", "bytes", "test")
"""What a run has for each of its evaluations."""


@dataclass(frozen=True)
class Run:
    """Data of a run folder; `points` has an array [evaluations] for each kind of x and for y.

    points  steps (of a rank), samples (of all ranks), seconds (of rounds), bytes (received or
            averaged by all ranks in rounds), test (the metric, as a fraction of 1, on test rows)
    metric  the name of the metric: `accuracy`, `precision_at_1`, ...
    """

    path: Path
    config: Mapping[str, Any]
    ranks: int
    points: Mapping[str, Values]
    metric: str

    @property
    def sameness(self) -> str:
        """Equal for runs that differ only in name, seed and fold of the data."""
        config = {key: value for key, value in self.config.items() if key not in ("name", "seed")}
        data = dict(config.get("data") or {})
        data["path"] = _without_fold(str(data.get("path", "")))
        return json.dumps([config | {"data": data}, self.ranks], sort_keys=True, default=str)


def _without_fold(path: str) -> str:
    """`data/speech` of `data/speech-fold2`."""
    return re.sub(r"[-_]?fold[-_]?\d+$", "", path.rstrip("/"))


def read_run(path: Path, metric: str | None = None) -> Run:
    """A run folder, finished or not; None: its main metric. Raises `InputError`."""
    config_path = path / "config.yaml"
    try:
        config = read_yaml(config_path.read_text(encoding="utf-8"), f"in {config_path}")
    except OSError as error:
        raise InputError(
            f"{path} is no run folder: cannot read {config_path} ({error.strerror}); give folders "
            "such as runs/NAME"
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"{config_path} is not UTF-8; was it edited by hand?") from None
    if not isinstance(config, dict):
        raise InputError(f"{config_path} must be a mapping of keys to values")
    rows = read_metrics(path / "metrics.jsonl")
    metric = metric or metric_of(rows)
    points = evaluations(rows, metric)
    if not len(points["test"]):
        names = sorted({name for row in rows for name in row.get("test") or {}})
        if names:
            raise InputError(f"{path}: no evaluation has `{metric}`; it has: {', '.join(names)}")
    return Run(path, config, _ranks(path), points, metric)


def _ranks(path: Path) -> int:
    """The ranks of the newest start."""
    try:
        return int(
            json.loads((path / "run.json").read_text(encoding="utf-8"))["starts"][-1]["ranks"]
        )
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        raise InputError(f"{path / 'run.json'} does not say how many ranks the run has") from None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file, which may still grow: an incomplete last line is left out.

    Raises `InputError` if the file cannot be read or another line is damaged.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []  # the run has just started
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError
        except ValueError:
            if number == len(lines):
                break
            raise InputError(f"{path}, line {number}: not a row of metrics; damaged?") from None
        rows.append(row)
    return rows


def metric_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """The first metric of the first evaluation; `accuracy` before there is one."""
    results = (row.get("test") for row in rows if row.get("kind") == "evaluation")
    first = next((result for result in results if isinstance(result, dict) and result), {})
    return next(iter(first), "accuracy")


class RoundSeconds:
    """Seconds of all rounds up to a row of metrics, with the waits at their ends.

    `wait` of a row is the time that ranks waited for each other at the end of the previous row's
    work.
    """

    def __init__(self) -> None:
        self.total = 0.0
        self._after_round = False

    def add(self, row: Mapping[str, Any]) -> None:
        """Take the next row."""
        seconds = row.get("seconds") or {}
        wait_s = seconds.get("wait", 0.0)
        if self._after_round:
            self.total += wait_s
        self._after_round = row["kind"] == "round"
        if self._after_round:
            self.total += sum(seconds.values()) - wait_s


def evaluations(rows: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Values]:
    """The points of a run (see `Run`) from its rows; a round evaluated twice counts once.

    Raises `InputError` if a row lacks a required key.
    """
    size, spent = 0, RoundSeconds()
    found: dict[int, tuple[float, ...]] = {}
    for number, row in enumerate(rows, start=1):
        try:
            spent.add(row)
            if row["kind"] == "round":
                size += row["bytes_received"] + row.get("bytes_averaged", 0)
            elif row["kind"] == "evaluation":
                if metric not in row["test"]:
                    continue  # evaluated under another `evaluate.top`
                value = float(row["test"][metric])
                found[row["round"]] = (row["steps"], row["samples"], spent.total, size, value)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(
                f"metrics.jsonl, row {number}: {type(error).__name__} {error}; was it written by "
                "another version of ist_hpc?"
            ) from None
    table = np.array(list(found.values()), dtype=np.float64).reshape(-1, len(POINTS))
    return dict(zip(POINTS, table.T, strict=True))

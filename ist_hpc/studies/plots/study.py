"""Curves, tables and pictures of the studies of `python -m ist_hpc.bench scaling | convergence`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ist_hpc.common.errors import InputError
from ist_hpc.studies import convergence, scaling
from ist_hpc.studies.plots.curves import Curve, ranks_told
from ist_hpc.studies.plots.runs import Run, read_run
from ist_hpc.studies.state import Row, read_rows
from ist_hpc.studies.study import by_method
from ist_hpc.studies.tables import markdown

_NEEDED = {scaling.FILE: scaling.NEEDED, convergence.FILE: convergence.NEEDED}


def find(path: Path) -> Path | None:
    """The CSV of a study, from the CSV or its folder; None for neither. Raises `InputError`."""
    if path.name in _NEEDED and path.is_file():
        return path
    found = [path / name for name in _NEEDED if (path / name).is_file()]
    if len(found) > 1:
        raise InputError(f"{path} has two studies; name one: {found[0]} or {found[1]}")
    return found[0] if found else None


def rows_of(path: Path, ranks: Sequence[int]) -> list[Row]:
    """The rows of a study, for some numbers of ranks or (if none) for all. Raises `InputError`.

    One rank always stays, as others are compared with it.
    """
    rows = read_rows(path, _NEEDED[path.name])
    rows = [row for row in rows if not ranks or row["ranks"] in (*ranks, 1)]
    if not rows:
        raise InputError(f"{path} has no rows yet" + (" of these ranks" if ranks else ""))
    return rows


def is_scaling(path: Path) -> bool:
    """Whether a study measures scaling; else it measures convergence."""
    return path.name == scaling.FILE


def scaling_summary(paths: Sequence[Path], ranks: Sequence[int]) -> list[dict[str, Any]]:
    """The data of `draw.draw_scaling` and the tables, from several studies together."""
    found = [row for path in paths for row in rows_of(path, () if len(paths) > 1 else ranks)]
    return scaling.summary([row for row in found if not ranks or row["ranks"] in (*ranks, 1)])


def curves(
    path: Path,
    ranks: Sequence[int],
    labels: Sequence[str],
    metric: str | None,
    seconds_from: Path | None,
) -> list[Curve]:
    """A curve for each method and number of ranks of a convergence study, over its seeds.

    seconds_from  a scaling.csv: the seconds of a curve are its steps times the seconds per step of
                  this study

    Raises `InputError`.
    """
    rows = rows_of(path, ranks)
    steps = scaling.read_steps(seconds_from) if seconds_from is not None else None
    groups = by_method(rows)
    if labels and len(labels) != len(groups):
        raise InputError(
            f"--label wants one label a curve: got {len(labels)} for {len(groups)} methods and "
            "numbers of ranks"
        )
    made = []
    for index, ((method, count), places) in enumerate(groups.items()):
        runs = [read_run(path.parent / "runs" / str(rows[at]["run"]), metric) for at in places]
        if steps is not None:
            runs = [_with_seconds(run, steps.of(method, count, run.config)) for run in runs]
        label = labels[index] if labels else f"{method}, {ranks_told(count)}"
        made.append(Curve(label, tuple(runs), method))
    return made


def _with_seconds(run: Run, step_s: float) -> Run:
    """The run, with seconds computed from its steps."""
    seconds = run.points["steps"] * step_s
    return dataclasses.replace(run, points={**run.points, "seconds": seconds})


def table(paths: Sequence[Path], ranks: Sequence[int], seconds_from: Path | None) -> str:
    """The tables of a study, as `bench` prints them at its end. Raises `InputError`.

    Only scaling studies can share one table.
    """
    path = paths[0]
    if is_scaling(path):
        return markdown(scaling.tables(scaling_summary(paths, ranks)))
    rows = rows_of(path, ranks)
    steps = scaling.read_steps(seconds_from) if seconds_from is not None else None
    figures = convergence.results(rows, path.parent, (), steps)
    return convergence.show({**figures, "seconds_from": seconds_from})

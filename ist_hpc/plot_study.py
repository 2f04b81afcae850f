"""Curves, tables and pictures of the studies of `python -m ist_hpc.bench scaling | convergence`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ist_hpc.bench import convergence, scaling
from ist_hpc.bench.study import by_method
from ist_hpc.bench.study_state import Row, read_rows
from ist_hpc.bench.study_tables import markdown
from ist_hpc.errors import InputError
from ist_hpc.plot_curves import Curve, ranks_told
from ist_hpc.plot_runs import read_run

_NEEDED = {scaling.FILE: scaling.NEEDED, convergence.FILE: convergence.NEEDED}


def find(path: Path) -> Path | None:
    """The CSV of a study, given it or its folder; None if it is neither. Raises `InputError`."""
    if path.name in _NEEDED and path.is_file():
        return path
    found = [path / name for name in _NEEDED if (path / name).is_file()]
    if len(found) > 1:
        raise InputError(f"{path} has two studies; name one: {found[0]} or {found[1]}")
    return found[0] if found else None


def rows_of(path: Path, ranks: Sequence[int]) -> list[Row]:
    """The rows of a study, of some numbers of ranks or (for none) of all. Raises `InputError`.

    One rank, which others are compared with, always stays.
    """
    rows = read_rows(path, _NEEDED[path.name])
    rows = [row for row in rows if not ranks or row["ranks"] in (*ranks, 1)]
    if not rows:
        raise InputError(f"{path} has no rows yet" + (" of these ranks" if ranks else ""))
    return rows


def is_scaling(path: Path) -> bool:
    """Whether a study is of scaling; else it is of convergence."""
    return path.name == scaling.FILE


def scaling_summary(path: Path, ranks: Sequence[int]) -> list[dict[str, Any]]:
    """What `plot_draw.draw_scaling` and the tables show."""
    return scaling.summary(rows_of(path, ranks))


def curves(
    path: Path,
    ranks: Sequence[int],
    labels: Sequence[str],
    metric: str | None,
    seconds_from: Path | None,
) -> list[Curve]:
    """A curve for each method and number of ranks of a convergence study, over its seeds.

    seconds_from  a scaling.csv: the seconds of a curve are its steps times this study's seconds a
                  step

    Raises `InputError`.
    """
    rows = rows_of(path, ranks)
    step_s = scaling.seconds_a_step(seconds_from) if seconds_from is not None else {}
    groups = by_method(rows)
    if labels and len(labels) != len(groups):
        raise InputError(
            f"--label wants one label a curve: got {len(labels)} for {len(groups)} methods and "
            "numbers of ranks"
        )
    made = []
    for index, ((method, count), places) in enumerate(groups.items()):
        runs = [read_run(path.parent / "runs" / str(rows[at]["run"]), metric) for at in places]
        if seconds_from is not None:
            key = (method.partition("@")[0], count)
            if key not in step_s:
                raise InputError(f"{seconds_from} has no seconds of {key[0]} on {count} rank(s)")
            runs = [
                dataclasses.replace(
                    run, points={**run.points, "seconds": run.points["steps"] * step_s[key]}
                )
                for run in runs
            ]
        label = labels[index] if labels else f"{method}, {ranks_told(count)}"
        made.append(Curve(label, tuple(runs), method))
    return made


def table(path: Path, ranks: Sequence[int], seconds_from: Path | None) -> str:
    """The tables of a study, as `bench` prints them at its end. Raises `InputError`."""
    rows = rows_of(path, ranks)
    if is_scaling(path):
        return markdown(scaling.tables(scaling.summary(rows)))
    step_s = scaling.seconds_a_step(seconds_from) if seconds_from is not None else {}
    figures = convergence.results(rows, path.parent, (), step_s)
    return convergence.show({**figures, "seconds_from": seconds_from})

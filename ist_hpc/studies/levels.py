"""When runs reach levels of accuracy; pure."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ist_hpc.studies.plots.runs import Run

_STEP = 0.05  # between default levels
_FEW = 3  # of them below the highest that all reach


def reached(run: Run, level: float) -> dict[str, float] | None:
    """Where an evaluation of the run first reached `level`; None if none did.

    The result has the values of all kinds of x in `Run.points`.
    """
    values = run.points["test"]
    hits = (values >= level).nonzero()[0]
    if not len(hits):
        return None
    return {x: float(at[hits[0]]) for x, at in run.points.items() if x != "test"}


def common_level(runs: Sequence[Run]) -> float | None:
    """The highest level that every run reaches; None if one has no evaluation."""
    best = [float(run.points["test"].max()) for run in runs if len(run.points["test"])]
    return min(best) if best and len(best) == len(runs) else None


def default_levels(runs: Sequence[Run]) -> list[float]:
    """Multiples of 0.05: a few up to the highest level that all reach, then those any reaches."""
    common = common_level(runs)
    if common is None:
        return []
    most = max(float(run.points["test"].max()) for run in runs)
    first = max(1, math.floor(common / _STEP + 1e-9) - _FEW + 1)
    last = math.floor(most / _STEP + 1e-9)
    return [round(index * _STEP, 2) for index in range(first, last + 1)]


def to_levels(
    runs: Sequence[Run], levels: Sequence[float], step_s: Mapping[str, float]
) -> list[dict[str, Any]]:
    """For each level and run: {level, run} and, if it was reached, x of `Run.points` and product_s.

    step_s  seconds per step by name of the run folder, measured elsewhere: `product_s` is their
            product with the steps
    """
    found = []
    for level in levels:
        for run in runs:
            at = reached(run, level)
            seconds = step_s.get(run.path.name)
            product = {"product_s": at["steps"] * seconds} if at and seconds is not None else {}
            found.append({"level": level, "run": run.path.name, **(at or {}), **product})
    return found

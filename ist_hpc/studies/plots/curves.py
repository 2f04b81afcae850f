"""Learning curves: which runs form one line, and their table; pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ist_hpc.common.disk.names import printable, spoken
from ist_hpc.common.errors import InputError
from ist_hpc.studies.plots.runs import Run, Values


@dataclass(frozen=True)
class Curve:
    """A line of the plot and of the table: one run, or several that differ only in seed or fold.

    method  lines of the same method share a colour; "" shares with no other
    """

    label: str
    runs: tuple[Run, ...]
    method: str = ""

    def over(self, x: str) -> tuple[Values, Values, Values, Values]:
        """(x, mean, least, most) of the metric over one kind of x.

        Runs of a group may have been evaluated at different places: values between two evaluations
        are interpolated linearly, and the curve spans the range where all runs have values.
        """
        points = [(run.points[x], run.points["test"]) for run in self.runs]
        if len(points) == 1:
            at, values = points[0]
            return at, values, values, values
        at = np.unique(np.concatenate([places for places, _ in points]))
        low = max(places[0] for places, _ in points)
        high = min(places[-1] for places, _ in points)
        at = at[(at >= low) & (at <= high)]
        values = np.stack([np.interp(at, places, own) for places, own in points])
        return at, values.mean(axis=0), values.min(axis=0), values.max(axis=0)


def curves(runs: Sequence[Run], group: bool, labels: Sequence[str]) -> list[Curve]:
    """The lines to draw, in the order of the runs. Raises `InputError` if labels do not fit."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.sameness if group else str(run.path), []).append(run)
    members = [tuple(group) for group in groups.values()]
    if labels and len(labels) != len(members):
        what = "groups" if group else "runs"
        raise InputError(
            f"--label wants one label a curve: got {len(labels)} for {len(members)} {what}"
        )
    names = labels or [_label(group) for group in members]
    return [Curve(printable(label), group) for label, group in zip(names, members, strict=True)]


def _label(runs: Sequence[Run]) -> str:
    first = runs[0]
    if len(runs) == 1:
        return first.path.name or str(first.path)
    return f"{first.config.get('name', 'run')}, {ranks_told(first.ranks)} ({len(runs)} runs)"


def ranks_told(ranks: int) -> str:
    """`1 rank`, `4 ranks`."""
    return "1 rank" if ranks == 1 else f"{ranks} ranks"


def table(lines: Sequence[Curve]) -> str:
    """A Markdown table of the curves; for a group the mean, and in brackets the least and most."""
    metric = spoken(lines[0].runs[0].metric)
    text = [
        f"| run | ranks | steps | samples | best {metric} | final {metric} |",
        "|:--|--:|--:|--:|--:|--:|",
    ]
    for curve in lines:
        label = curve.label.replace("|", "\\|")
        cells = [
            label,
            str(curve.runs[0].ranks),
            *(_spread([_last(run, key) for run in curve.runs], "{:,.0f}") for key in _COUNTS),
            _spread([_best(run) for run in curve.runs], "{:.4f}"),
            _spread([_last(run, "test") for run in curve.runs], "{:.4f}"),
        ]
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text)


_COUNTS = ("steps", "samples")


def _last(run: Run, key: str) -> float | None:
    values = run.points[key]
    return float(values[-1]) if len(values) else None


def _best(run: Run) -> float | None:
    values = run.points["test"]
    return float(values.max()) if len(values) else None


def _spread(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = form.format(sum(known) / len(known))
    low, high = form.format(min(known)), form.format(max(known))
    return mean if low == high else f"{mean} ({low} to {high})"

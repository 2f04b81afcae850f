"""Pictures of learning curves and of speed-ups; drawing imports matplotlib."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ist_hpc.common.disk.names import spoken
from ist_hpc.common.errors import InputError
from ist_hpc.studies.plots.curves import Curve
from ist_hpc.studies.plots.pictures import COLOURS, as_label, new_figure, plain
from ist_hpc.studies.plots.runs import Values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DASHES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def draw(
    lines: Sequence[Curve], kinds: Sequence[str], log_x: bool = False, time: str = ""
) -> "Figure":
    """A figure with a panel for each kind of x. Raises `InputError` if matplotlib is missing.

    log_x  whether the x axes are logarithmic
    time   the name of the seconds, if not those that the runs took
    """
    figure = _figure(1.2 + 5.2 * len(kinds))
    for curve in lines:
        for run in curve.runs:
            if not len(run.points["test"]):
                raise InputError(f"{run.path} has no evaluation yet; wait for one, or leave it out")
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axes, x in zip(panels, kinds, strict=True):
        _panel(axes, lines, x, time)
        if log_x:
            axes.set_xscale("log")
            _few_ticks(axes.xaxis)
        else:
            axes.set_xlim(left=0)
    panels[0].set_ylabel(f"test {spoken(lines[0].runs[0].metric)} (%)")
    if all(curve.method for curve in lines):
        _legend_beside(figure, panels[0])
    elif len(lines) > 1 or len(lines[0].runs) > 1:
        panels[-1].legend(loc="best", framealpha=0.85, edgecolor="none", fontsize="small")
    else:
        figure.suptitle(as_label(lines[0].label), fontsize="medium")
    return figure


def _figure(width: float) -> "Figure":
    return new_figure(width, 4.2, "take --table")


def _styles(methods: Sequence[str]) -> list[tuple[str, str]]:
    """(colour, dash) of lines: one colour per method, one dash per line; "" is a method."""
    colours: dict[str, int] = {}
    lines: dict[str, int] = {}
    styles = []
    for place, method in enumerate(methods):
        name = method or f"line {place}"
        colour = colours.setdefault(name, len(colours))
        line = lines[name] = lines.get(name, -1) + 1
        dash = line if method else colour // len(COLOURS)
        styles.append((COLOURS[colour % len(COLOURS)], _DASHES[dash % len(_DASHES)]))
    return styles


def _panel(axes: "Axes", lines: Sequence[Curve], x: str, time: str) -> None:
    label, unit = _axis([curve.over(x)[0] for curve in lines], x, time)
    styles = _styles([curve.method for curve in lines])
    for curve, (colour, dash) in zip(lines, styles, strict=True):
        at, mean, low, high = curve.over(x)
        marker = "o" if len(at) <= 25 else ""
        name = as_label(curve.label)
        axes.plot(
            at / unit, 100 * mean, dash, color=colour, lw=1.8, marker=marker, ms=3.5, label=name
        )
        if len(curve.runs) > 1:
            axes.fill_between(
                at / unit, 100 * low, 100 * high, color=colour, alpha=0.18, linewidth=0
            )
    axes.set_xlabel(label)
    plain(axes)


def _legend_beside(figure: "Figure", axes: "Axes") -> None:
    """A legend right of the panels, with entries in the order in which a panel's lines end."""
    lines = [line for line in axes.lines if not str(line.get_label()).startswith("_")]
    lines.sort(key=lambda line: float(np.asarray(line.get_ydata())[-1]), reverse=True)
    figure.legend(handles=lines, loc="outside right center", frameon=False, fontsize="small")


def draw_scaling(found: Sequence[Mapping[str, Any]]) -> "Figure":
    """Speed-up over ranks, one line per method, from the summary of a scaling study.

    Without runs on one rank to compare with, it shows seconds per epoch. Raises `InputError` if
    matplotlib is missing.
    """
    figure = _figure(7.2)
    axes = figure.subplots()
    quantity = "speed_up" if any(item["speed_up"] for item in found) else "epoch_s"
    shown = [item for item in found if item[quantity] and (item["ranks"] > 1 or len(found) == 1)]
    shown = shown or [item for item in found if item[quantity]]
    methods = list(dict.fromkeys(item["method"] for item in shown))
    for place, (method, (colour, _)) in enumerate(zip(methods, _styles(methods), strict=True)):
        own = [item for item in shown if item["method"] == method]
        middle, low, high = (
            [item[quantity][name] for item in own] for name in ("middle", "low", "high")
        )
        errors = [
            [m - value for m, value in zip(middle, low, strict=True)],
            [value - m for m, value in zip(middle, high, strict=True)],
        ]
        marker = _MARKERS[place % len(_MARKERS)]
        ranks = [item["ranks"] for item in own]
        axes.errorbar(ranks, middle, errors, color=colour, fmt="none", capsize=2, lw=1)
        axes.plot(ranks, middle, color=colour, lw=1.8, marker=marker, ms=5, label=as_label(method))
    ranks = sorted({item["ranks"] for item in shown})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(ranks, [str(count) for count in ranks])
    axes.minorticks_off()
    _few_ticks(axes.yaxis)
    axes.set_xlabel("ranks")
    if quantity == "speed_up":
        axes.axhline(1, color="0.6", lw=1, zorder=0, label="_one rank")
        axes.plot(ranks, ranks, ":", color="0.5", lw=1, zorder=0, label="linear")
        axes.set_ylabel("speed-up of an epoch over one rank")
    else:
        axes.set_ylabel("seconds an epoch")
    plain(axes)
    _legend_beside(figure, axes)
    return figure


def _few_ticks(axis: Any) -> None:
    """Plain numbers on a logarithmic axis."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:g}")


def _axis(places: Sequence[Values], x: str, time: str = "") -> tuple[str, float]:
    """The label of an x axis, and the divisor that makes its values short."""
    most = max((float(at[-1]) for at in places if len(at)), default=0.0)
    if x == "bytes":
        for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
            if most >= unit:
                return f"received by all ranks in rounds ({name})", unit
        return "received by all ranks in rounds (bytes)", 1
    if x == "seconds":
        unit, name = (60, "minutes") if most > 600 else (1, "seconds")
        return f"{time or 'time of training and exchanging'} ({name})", unit
    what = "local steps of a rank" if x == "steps" else "training samples seen by all ranks"
    for unit, name in ((10**6, "millions"), (10**3, "thousands")):
        if most >= 5 * unit:
            return f"{what} ({name})", unit
    return what, 1

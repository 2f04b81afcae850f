"""`python -m ist_hpc.plot`: learning curves and tables from the metrics of runs; no MPI."""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import yaml

from ist_hpc import __version__
from ist_hpc.commandline import Parser
from ist_hpc.errors import EXIT_BAD_INPUT, InputError
from ist_hpc.progress import spoken

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PROGRAM = "python -m ist_hpc.plot"
_EPILOG = f"""\
examples:
  {_PROGRAM} runs/speech2-a --output curves.png
  {_PROGRAM} runs/r1 runs/r4 --x steps samples --label "1 rank" "4 ranks" --output a.png
      two panels: the same curves over steps and over samples
  {_PROGRAM} runs/r4-seed* runs/r1-seed* --group --output curves.png --table
      runs that differ only in seed or fold of the data become one curve: mean, band from the least
      to the most; --table prints them as Markdown, too
  {_PROGRAM} runs/* --table
      only the table

A run that is still going can be plotted. Seconds and bytes are those of training and exchanging;
evaluations and checkpoints are left out, so that how often one looks does not change the curve.
"""
_FORMATS = (".png", ".pdf", ".svg")
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which colour-blind people can tell apart; black last, no yellow."""
_DASHES = ("-", "--", ":", "-.")

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """What a run folder says; `points` has an array [evaluations] for each kind of x and for y.

    points  steps (of a rank), samples (of all ranks), seconds, bytes (received, all ranks),
            test (the metric, of 1, on the test rows)
    metric  which: `accuracy`, `precision_at_1`, ...
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


@dataclass(frozen=True)
class Curve:
    """A line of the plot and of the table: one run, or several that differ only in seed or fold."""

    label: str
    runs: tuple[Run, ...]

    def over(self, x: str) -> tuple[Values, Values, Values, Values]:
        """(x, mean, least, most) of the metric over one kind of x.

        Runs of a group may have been evaluated at different places: between two evaluations a run
        is on the straight line, and the curve spans where all runs have values.
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


# Reading runs.


def read_run(path: Path, metric: str | None = None) -> Run:
    """A run folder, finished or not; None: its main metric. Raises `InputError`."""
    config_path = path / "config.yaml"
    try:
        config = yaml.safe_load(config_path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path} is no run folder: cannot read {config_path} ({error.strerror}); give folders "
            "such as runs/NAME"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise InputError(f"{config_path} is not YAML; was it edited by hand?") from None
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
    """The rows of a metrics file, which may still be written to: a last line cut off is left out.

    Raises `InputError` if the file cannot be read or another line is damaged.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []  # a run that has just been started
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


def evaluations(rows: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Values]:
    """The points of a run (see `Run`) from its rows, a round evaluated twice only once.

    Raises `InputError` if a row lacks what it should have.
    """
    seconds, received = 0.0, 0
    found: dict[int, tuple[float, ...]] = {}
    for number, row in enumerate(rows, start=1):
        try:
            if row["kind"] == "round":
                seconds += sum(row["seconds"].values())
                received += row["bytes_received"]
            elif row["kind"] == "evaluation":
                if metric not in row["test"]:
                    continue  # evaluated under another `evaluate.top`
                value = float(row["test"][metric])
                found[row["round"]] = (row["steps"], row["samples"], seconds, received, value)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(
                f"metrics.jsonl, row {number}: {type(error).__name__} {error}; was it written by "
                "another version of ist_hpc?"
            ) from None
    table = np.array(list(found.values()), dtype=np.float64).reshape(-1, 5)
    return dict(zip(("steps", "samples", "seconds", "bytes", "test"), table.T, strict=True))


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
    return [Curve(label, group) for label, group in zip(names, members, strict=True)]


def _label(runs: Sequence[Run]) -> str:
    first = runs[0]
    if len(runs) == 1:
        return first.path.name or str(first.path)
    ranks = "1 rank" if first.ranks == 1 else f"{first.ranks} ranks"
    return f"{first.config.get('name', 'run')}, {ranks} ({len(runs)} runs)"


# Tables.


def table(lines: Sequence[Curve]) -> str:
    """A Markdown table of the curves; of a group the mean, and in brackets the least and most."""
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


# Plots.


def draw(lines: Sequence[Curve], kinds: Sequence[str]) -> "Figure":
    """A figure with a panel for each kind of x. Raises `InputError` if matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError(
            "plots need matplotlib, which is not installed; pip install 'ist_hpc[plot]', or leave "
            "--output out and take --table"
        ) from None
    for curve in lines:
        for run in curve.runs:
            if not len(run.points["test"]):
                raise InputError(f"{run.path} has no evaluation yet; wait for one, or leave it out")
    figure = Figure(figsize=(1.2 + 5.2 * len(kinds), 4.2), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axes, x in zip(panels, kinds, strict=True):
        _panel(axes, lines, x)
    panels[0].set_ylabel(f"test {spoken(lines[0].runs[0].metric)} (%)")
    if len(lines) > 1 or len(lines[0].runs) > 1:
        panels[-1].legend(loc="best", framealpha=0.85, edgecolor="none", fontsize="small")
    else:
        figure.suptitle(lines[0].label, fontsize="medium")
    return figure


def _panel(axes: "Axes", lines: Sequence[Curve], x: str) -> None:
    label, unit = _axis([curve.over(x)[0] for curve in lines], x)
    for index, curve in enumerate(lines):
        at, mean, low, high = curve.over(x)
        colour = _COLOURS[index % len(_COLOURS)]
        dash = _DASHES[index // len(_COLOURS) % len(_DASHES)]
        marker = "o" if len(at) <= 25 else ""
        name = curve.label
        axes.plot(
            at / unit, 100 * mean, dash, color=colour, lw=1.8, marker=marker, ms=3.5, label=name
        )
        if len(curve.runs) > 1:
            axes.fill_between(
                at / unit, 100 * low, 100 * high, color=colour, alpha=0.18, linewidth=0
            )
    axes.set_xlabel(label)
    axes.set_xlim(left=0)
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _axis(places: Sequence[Values], x: str) -> tuple[str, float]:
    """The label of an x axis, and what its values are divided by to be short numbers."""
    most = max((float(at[-1]) for at in places if len(at)), default=0.0)
    if x == "bytes":
        for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
            if most >= unit:
                return f"received by all ranks in rounds ({name})", unit
        return "received by all ranks in rounds (bytes)", 1
    if x == "seconds":
        unit, name = (60, "minutes") if most > 600 else (1, "seconds")
        return f"time of training and exchanging ({name})", unit
    what = "local steps of a rank" if x == "steps" else "training samples seen by all ranks"
    for unit, name in ((10**6, "millions"), (10**3, "thousands")):
        if most >= 5 * unit:
            return f"{what} ({name})", unit
    return what, 1


# The command line.


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=_PROGRAM,
        description="Draw learning curves (a metric on the test rows) of runs, and print tables.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="the plot: .png (or .pdf, .svg); replaced"
    )
    parser.add_argument(
        "--x",
        nargs="+",
        default=["steps"],
        choices=("steps", "samples", "seconds", "bytes"),
        help="what the metric is drawn over, a panel each (default: steps)",
    )
    parser.add_argument(
        "--group",
        action="store_true",
        help="one curve for runs that differ only in seed or fold of the data",
    )
    parser.add_argument(
        "--label", nargs="+", default=[], metavar="TEXT", help="a label for each curve, in order"
    )
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="such as precision_at_5; default: accuracy, or precision_at_1 for sets of labels",
    )
    parser.add_argument("--table", action="store_true", help="print a Markdown table")
    parser.add_argument("--version", action="version", version=f"ist_hpc {__version__}")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        _run(_parser().parse_args(argv))
    except InputError as error:
        print(f"plot: error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return 0


def _run(arguments: argparse.Namespace) -> None:
    output: Path | None = arguments.output
    if output is None and not arguments.table:
        raise InputError("nothing to do: give --output FILE for a plot, or --table; see --help")
    if output is not None and output.suffix.lower() not in _FORMATS:
        raise InputError(f"--output must end with {', '.join(_FORMATS)}, got {output}")
    runs = [read_run(path, arguments.metric) for path in arguments.runs]
    metrics = sorted({run.metric for run in runs if len(run.points["test"])})
    if len(metrics) > 1:
        raise InputError(
            f"the runs have different metrics, {' and '.join(metrics)}; plot them apart, or name "
            "one that all have: --metric"
        )
    lines = curves(runs, arguments.group, arguments.label)
    if output is not None:
        figure = draw(lines, arguments.x)
        try:
            figure.savefig(output)
        except OSError as error:
            raise InputError(f"cannot write {output}: {error.strerror}") from None
    if arguments.table:
        print(table(lines))


if __name__ == "__main__":
    sys.exit(main())

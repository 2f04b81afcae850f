"""`bench convergence`: seconds, steps, samples and bytes to levels of accuracy, and the best one.

The paper's Figure 4, Tables 1 and 3. Each run is a whole `python -m ist_hpc.train`; a row a run
lands in FOLDER/convergence.csv, and the same command goes on where it was stopped, in the middle of
a run, too. `{seed}` in a setting is replaced by the run's seed: data.path=data/speech-fold{seed}.

How accuracy grows over steps does not depend on the links. So runs can be made without limits, and
--seconds-from takes the seconds of a step from a study of `bench scaling` on limited links: the
time to a level is then the PRODUCT of steps and seconds a step, evaluations not included.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from ist_hpc.common.commandline import count_from, given_path
from ist_hpc.common.disk.names import spoken
from ist_hpc.common.errors import InputError
from ist_hpc.config.keys import Config
from ist_hpc.studies import one_run, scaling
from ist_hpc.studies.levels import common_level, default_levels, to_levels
from ist_hpc.studies.plots.runs import RoundSeconds, Run, read_metrics, read_run
from ist_hpc.studies.state import Row
from ist_hpc.studies.study import Planned, by_method
from ist_hpc.studies.tables import (
    Spread,
    Table,
    markdown,
    number,
    over_least,
    share_table,
    shares_of,
    spread_of,
    times,
    told,
)

HELP = "seconds, steps and bytes to levels of accuracy (starts runs itself)"
FILE = "convergence.csv"
NEEDED = ("method", "ranks", "seed", "hosts", "run")
"""Columns that readers of the file need."""

_NOTE = ("* the highest that all runs reach. [n] only n of the runs reach it.",)
_QUANTITIES = {
    "seconds": ("Seconds of training and exchanging, as the runs took them", 1.0),
    "product_s": ("Seconds as the PRODUCT of steps and the seconds a step of {source}", 1.0),
    "steps": ("Local steps of a rank", 1.0),
    "samples": ("Samples seen by all ranks", 1.0),
    "bytes": ("MB (10^6 bytes) received or averaged by all ranks", 1e6),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `bench convergence`."""
    one_run.add_arguments(parser, "runs/convergence")
    parser.add_argument("--seeds", nargs="+", type=count_from(0), default=[0, 1, 2], metavar="S")
    parser.add_argument(
        "--levels",
        nargs="+",
        type=float,
        default=[],
        metavar="A",
        help="levels of the metric, of 1; default: multiples of 0.05. The highest that all runs "
        "reach is added",
    )
    parser.add_argument(
        "--seconds-from",
        type=given_path,
        metavar="scaling.csv",
        help="also seconds to a level as the product of steps and this study's seconds a step",
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make the missing runs; return all rows and what follows from them."""
    bad = [level for level in arguments.levels if not 0 < level <= 1]
    if bad:
        raise InputError(f"--levels are of 1, such as 0.75, got {bad[0]:g}")
    kind = one_run.Kind("convergence", "seed", lambda _, __: (), _row_of, resumes=True, keeps=True)
    steps = None
    if arguments.seconds_from is not None:
        steps = scaling.read_steps(arguments.seconds_from)
        # Before hours are spent: the seconds to multiply with must exist, and be of the same work.
        for planned, config in one_run.configurations(kind, arguments.seeds[:1], arguments):
            steps.of(planned.method.name, planned.ranks, asdict(config))
    rows, failed = one_run.conduct(kind, list(dict.fromkeys(arguments.seeds)), arguments)
    source = str(arguments.seconds_from) if arguments.seconds_from else None
    figures = results(rows, arguments.output, arguments.levels, steps)
    return {"rows": rows, **figures, "seconds_from": source, "failed": failed}


def _row_of(run: Planned, config: Config, folder: Path) -> Row:
    metrics = read_metrics(folder / "metrics.jsonl")
    curve = read_run(folder)
    values = curve.points["test"]
    if not len(values):
        raise InputError(f"{folder} has no evaluation")
    try:
        last = [row for row in metrics if row["kind"] == "round"][-1]
        rounds = [row for row in metrics if row["kind"] == "round"]
        seconds: dict[str, float] = {}
        spent = RoundSeconds()
        for row in metrics:
            spent.add(row)
            for kind, value in row["seconds"].items():
                seconds[kind] = seconds.get(kind, 0.0) + value
        return {
            "run": folder.name,
            "metric": curve.metric,
            "rounds": last["round"],
            "steps": last["steps"],
            "samples": last["samples"],
            "epochs": last["epoch"],
            "best": float(values.max()),
            "final": float(values[-1]),
            "rounds_s": round(spent.total, 3),
            "received_bytes": sum(row["bytes_received"] for row in rounds),
            "averaged_bytes": sum(row.get("bytes_averaged", 0) for row in rounds),
            **{f"{kind}_s": round(value, 3) for kind, value in seconds.items()},
        }
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise InputError(
            f"{folder}/metrics.jsonl cannot be read: {type(error).__name__} {error}; was it "
            "written by another version of ist_hpc?"
        ) from None


_NO_KINDS = ("rounds_s", "launch_s")


def results(
    rows: Sequence[Row],
    folder: Path,
    levels: Sequence[float],
    steps: scaling.Steps | None,
) -> dict[str, Any]:
    """Levels, when each run reached them, and the spreads of each method and number of ranks.

    folder  folder of the study, whose run folders have the curves
    steps   seconds per step from a scaling study, for the product
    Raises `InputError`.
    """
    runs = [read_run(folder / "runs" / str(row["run"])) for row in rows]
    step_s = {}
    if steps is not None:
        step_s = {
            run.path.name: steps.of(str(row["method"]), row["ranks"], run.config)
            for row, run in zip(rows, runs, strict=True)
        }
    return summary(rows, runs, levels, step_s)


def summary(
    rows: Sequence[Row],
    runs: Sequence[Run],
    levels: Sequence[float],
    step_s: Mapping[str, float],
) -> dict[str, Any]:
    """The result of `results`, from the rows and the curves of the same runs; pure.

    step_s  seconds per step by name of the run folder, if known
    """
    common = common_level(runs)
    wanted = sorted({*(levels or default_levels(runs)), *([] if common is None else [common])})
    crossings = to_levels(runs, wanted, step_s)
    found = [
        _of_method([rows[place] for place in places], crossings, wanted)
        for places in by_method(rows).values()
    ]
    for at, name in product(range(len(wanted)), ("seconds", "product_s")):
        medians = [(item["ranks"], item["to_level"][at][name]) for item in found]
        for item, ratio in zip(found, over_least(medians), strict=True):
            item["to_level"][at][f"{name}_over_least"] = ratio
    metric = str(rows[0]["metric"]) if rows else "accuracy"
    return {
        "metric": metric,
        "levels": wanted,
        "common_level": common,
        "crossings": crossings,
        "summary": found,
    }


def _of_method(
    rows: Sequence[Row], crossings: Sequence[Mapping[str, Any]], levels: Sequence[float]
) -> dict[str, Any]:
    """The spreads over the runs of one method on one number of ranks."""
    names = {str(row["run"]) for row in rows}
    kinds = [key.removesuffix("_s") for key in rows[0] if _is_kind(key)]
    to_level = [
        {
            "level": level,
            **{
                name: spread_of(
                    crossing[name]
                    for crossing in crossings
                    if crossing["run"] in names and crossing["level"] == level and name in crossing
                )
                for name in _QUANTITIES
            },
        }
        for level in levels
    ]
    return {
        "method": rows[0]["method"],
        "ranks": rows[0]["ranks"],
        "runs": len(rows),
        "best": _mean([row["best"] for row in rows]),
        "final": _mean([row["final"] for row in rows]),
        "shares": shares_of(
            {kind: sum(number(row, f"{kind}_s") for row in rows) for kind in kinds}
        ),
        "to_level": to_level,
    }


def _is_kind(column: str) -> bool:
    return column.endswith("_s") and column not in _NO_KINDS


def _mean(values: Sequence[float]) -> dict[str, float]:
    return {"mean": sum(values) / len(values), "low": min(values), "high": max(values)}


def tables(figures: Mapping[str, Any]) -> list[Table]:
    """The figures as tables: best and final metric, the cost of each level, shares of time."""
    found, metric = figures["summary"], spoken(figures["metric"])
    made = [
        Table(
            f"Test {metric}: mean (lowest to highest of the seeds)",
            ["method", "ranks", "runs", f"best {metric}", f"final {metric}"],
            [
                [
                    *(item["method"], str(item["ranks"]), str(item["runs"])),
                    *(_told_mean(item[name]) for name in ("best", "final")),
                ]
                for item in found
            ],
        )
    ]
    common = figures["common_level"]
    heads = [f"{level:.4f}*" if level == common else f"{level:g}" for level in figures["levels"]]
    for name, (title, unit) in _QUANTITIES.items():
        rows = [
            [item["method"], str(item["ranks"]), *_cells(item, name, unit)]
            for item in found
            if any(at[name] for at in item["to_level"])
        ]
        source = figures.get("seconds_from") or "a scaling study"
        text = f"{title.format(source=source)} to {metric}: median (lowest to highest)"
        made.append(Table(text, ["method", "ranks", *heads], rows, _NOTE))
    name = "product_s" if figures.get("seconds_from") else "seconds"
    what = "those of the product" if figures.get("seconds_from") else "as the runs took them"
    ratios = [
        [
            *(item["method"], str(item["ranks"])),
            *(times(at[f"{name}_over_least"]) + _few(item, at[name]) for at in item["to_level"]),
        ]
        for item in found
    ]
    text = f"Seconds to {metric} ({what}), times the least of as many ranks: of medians"
    made.append(Table(text, ["method", "ranks", *heads], ratios, _NOTE))
    shares = [(item["method"], item["ranks"], item["shares"]) for item in found]
    made.append(share_table("Where the time of whole runs goes", shares))
    return made


def _cells(item: Mapping[str, Any], name: str, unit: float) -> list[str]:
    cells = []
    for at in item["to_level"]:
        spread = at[name]
        cells.append(told(spread, unit, whole=name in ("steps", "samples")) + _few(item, spread))
    return cells


def _few(item: Mapping[str, Any], spread: Spread | None) -> str:
    """A mark if a spread does not include all runs of a method."""
    if spread is None or spread["count"] == item["runs"]:
        return ""
    return f" [{spread['count']:g}]"


def _told_mean(values: Mapping[str, float]) -> str:
    mean, low, high = (f"{values[name]:.4f}" for name in ("mean", "low", "high"))
    return mean if low == high else f"{mean} ({low} to {high})"


def show(figures: dict[str, Any]) -> str:
    """The tables, in Markdown."""
    return markdown(tables(figures))

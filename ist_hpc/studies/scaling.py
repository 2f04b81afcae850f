"""`bench scaling`: seconds a step and an epoch of methods at several numbers of ranks.

The paper's Figure 3. Each run is a short `python -m ist_hpc.train` of its own; the first rounds
warm up, the rest are counted. Rows land in FOLDER/scaling.csv as runs finish; the same command goes
on where it was stopped. `python -m ist_hpc.plot FOLDER` draws them.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ist_hpc.common.commandline import count
from ist_hpc.common.errors import InputError
from ist_hpc.config.keys import Config
from ist_hpc.data.meta_reading import load_meta
from ist_hpc.studies import one_run
from ist_hpc.studies.plots.runs import read_metrics
from ist_hpc.studies.state import Row, read_configs, read_rows
from ist_hpc.studies.study import Planned, by_method, parse_method
from ist_hpc.studies.tables import (
    Table,
    markdown,
    number,
    over_least,
    share_table,
    shares_of,
    short,
    spread_of,
    times,
    told,
)

HELP = "seconds a step and an epoch of methods, and speed-up over one rank (starts runs itself)"
FILE = "scaling.csv"
NEEDED = ("method", "ranks", "repeat", "hosts", "step_s", "epoch_s")
"""Columns that readers of the file need."""

BASE = "sgd"
"""Speed-ups are relative to this method's epoch on one rank."""

_STEPS_A_ROW = 5  # for methods whose local steps only say how often they report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `bench scaling`."""
    one_run.add_arguments(parser, "runs/scaling")
    parser.add_argument("--repeats", type=count, default=3, help="runs of each (default 3)")
    parser.add_argument(
        "--steps", type=count, default=40, help="steps measured in a run, in whole rounds"
    )
    parser.add_argument(
        "--warm-up", type=count, default=5, metavar="STEPS", help="before them, in whole rounds"
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make the missing runs; return all rows and what follows from them."""

    def own_settings(run: Planned, config: Config) -> Sequence[str]:
        local_steps = config.train.local_steps
        if not run.method.has_local_steps:
            local_steps = min(local_steps, _STEPS_A_ROW)
        rounds = warm_up_rounds(local_steps) + -(-arguments.steps // local_steps)
        averages = config.train.algorithm == "local_sgd"
        return (
            *(("train.warmup_steps=0",) if averages else ()),  # they are not measured
            *(f"train.local_steps={local_steps}", f"train.rounds={rounds}"),
            *("evaluate.every_epochs=0", "evaluate.every_rounds=0"),
            "evaluate.calibration_rows=2",  # the one at the end does not count: no bytes for it
            *("checkpoint.every_minutes=0", "checkpoint.every_rounds=0"),
        )

    def warm_up_rounds(local_steps: int) -> int:
        return -(-arguments.warm_up // local_steps)

    def row_of(run: Planned, config: Config, folder: Path) -> Row:
        train_rows = sum(shard.rows for shard in load_meta(Path(config.data.path)).shards["train"])
        warm_up = warm_up_rounds(config.train.local_steps)
        metrics = read_metrics(folder / "metrics.jsonl")
        return measured(metrics, warm_up, run.ranks, config.data.batch_size, train_rows)

    kind = one_run.Kind("scaling", "repeat", own_settings, row_of, resumes=False, keeps=False)
    rows, failed = one_run.conduct(kind, range(arguments.repeats), arguments)
    return {"rows": rows, "summary": summary(rows), "failed": failed}


def measured(
    metrics: Sequence[Mapping[str, Any]], warm_up: int, ranks: int, batch_rows: int, train_rows: int
) -> Row:
    """The measurements in a run's metrics, from its rounds after the first `warm_up`.

    Seconds (means over the ranks) and bytes (per rank) are those of a step. Raises `InputError` if
    there are no such rounds, or rows are not as expected.
    """
    try:
        rounds = [row for row in metrics if row["kind"] == "round"]
        counted = rounds[warm_up:]
        steps = counted[-1]["steps"] - rounds[warm_up - 1]["steps"]
        kinds = list(dict.fromkeys(kind for row in counted for kind in row["seconds"]))
        seconds = {
            kind: sum(row["seconds"].get(kind, 0.0) for row in counted) / steps for kind in kinds
        }
        sizes = {
            name: sum(row.get(f"bytes_{name}", 0) for row in counted) / (steps * ranks)
            for name in ("sent", "received", "averaged")
        }
        arrived = sum(row["bytes_received"] + row.get("bytes_averaged", 0) for row in metrics)
        local_steps = rounds[0]["steps"]
    except (KeyError, IndexError, TypeError, ZeroDivisionError) as error:
        raise InputError(
            f"the metrics of a run cannot be read: {type(error).__name__} {error}; was it written "
            "by another version of ist_hpc?"
        ) from None
    step_s = sum(seconds.values())
    return {
        "local_steps": local_steps,
        "batch_rows": batch_rows,
        "train_rows": train_rows,
        "steps": steps,
        "step_s": round(step_s, 6),
        "epoch_s": round(step_s * train_rows / (ranks * batch_rows), 6),
        **{f"{kind}_s": round(value, 6) for kind, value in seconds.items()},
        **{f"{name}_bytes": round(value) for name, value in sizes.items()},
        "launch_steps": rounds[-1]["steps"],
        "launch_counted_bytes": round(arrived / ranks),
    }


_NO_KINDS = ("step_s", "epoch_s", "launch_s")


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Medians with their spread over repeats, for each method and number of ranks.

    Each repeat has its own speed-up over one rank in the same repeat, since a slow spell of the
    machine hits both.
    """
    base = {row["repeat"]: row["epoch_s"] for row in rows if row["method"] == BASE}
    found = []
    for (method, ranks), places in by_method(rows).items():
        own = [rows[place] for place in places]
        kinds = [key.removesuffix("_s") for key in own[0] if _is_kind(key)]
        ratios = [
            base[row["repeat"]] / row["epoch_s"]
            for row in own
            if row["repeat"] in base and row["epoch_s"]
        ]
        found.append(
            {
                "method": method,
                "ranks": ranks,
                "hosts": own[0]["hosts"],
                "step_s": spread_of(row["step_s"] for row in own),
                "epoch_s": spread_of(row["epoch_s"] for row in own),
                "speed_up": spread_of(ratios),
                "shares": shares_of(
                    {kind: sum(number(row, f"{kind}_s") for row in own) for kind in kinds}
                ),
                "bytes_a_step": {
                    name: statistics.median(number(row, f"{name}_bytes") for row in own)
                    for name in ("sent", "received", "averaged")
                },
                "launch_counted_bytes": spread_of(
                    number(row, "launch_counted_bytes") for row in own
                ),
                "launch_nic_bytes": spread_of(
                    row["launch_nic_bytes"] for row in own if "launch_nic_bytes" in row
                ),
            }
        )
    ratios_of_ranks = over_least([(item["ranks"], item["step_s"]) for item in found])
    for item, ratio in zip(found, ratios_of_ranks, strict=True):
        item["step_over_least"] = ratio
    return found


def _is_kind(column: str) -> bool:
    return column.endswith("_s") and column not in _NO_KINDS


def tables(found: Sequence[Mapping[str, Any]]) -> list[Table]:
    """The summary as tables: seconds and speed-up, shares of time, bytes."""
    rates = ", ".join(dict.fromkeys(str(item["hosts"]) for item in found))
    links = "no limit on links" if rates == "none" else f"links of {rates}"
    seconds = [
        [
            *(item["method"], str(item["ranks"])),
            *(told(item["step_s"]), times(item["step_over_least"])),
            *(told(item["epoch_s"]), told(item["speed_up"])),
        ]
        for item in found
    ]
    sizes = [
        [
            *(item["method"], str(item["ranks"])),
            *(short(item["bytes_a_step"][name] / 1e6) for name in ("received", "averaged")),
            told(item["launch_counted_bytes"], 1e6),
            told(item["launch_nic_bytes"], 1e6),
        ]
        for item in found
    ]
    repeats = "median (lowest to highest of the repeats)"
    shares = [(item["method"], item["ranks"], item["shares"]) for item in found]
    return [
        Table(
            f"Seconds, {links}: {repeats}",
            [
                *("method", "ranks", "a step", "times the least of these ranks", "an epoch"),
                "speed-up over one rank",
            ],
            seconds,
        ),
        share_table("Where the time of a step goes", shares),
        Table(
            "MB (10^6 bytes) a rank",
            [
                *("method", "ranks", "received a step", "averaged a step"),
                *("whole launch, counted", "whole launch, at the interface"),
            ],
            sizes,
            [
                "A launch has its start, warm-up and one evaluation, whose activations "
                "are not counted."
            ],
        ),
    ]


def show(figures: dict[str, Any]) -> str:
    """The tables, in Markdown."""
    return markdown(tables(figures["summary"]))


@dataclass(frozen=True)
class Steps:
    """The seconds per step in a scaling study.

    medians   seconds by (method, ranks)
    settings  settings that affect them, by (method, ranks): dotted key -> value
    """

    path: Path
    medians: Mapping[tuple[str, int], float]
    settings: Mapping[tuple[str, int], Mapping[str, Any]]

    def of(self, method: str, ranks: int, config: Mapping[str, Any]) -> float:
        """Seconds per step of a method: its own, or those of the method without its label.

        config  configuration of the run whose steps they will multiply, as a mapping
        Raises `InputError` if there are none, or they belong to another model, batch or round.
        """
        base = parse_method(method).base
        key = next((k for k in ((method, ranks), (base, ranks)) if k in self.medians), None)
        if key is None:
            raise InputError(
                f"{self.path} has no seconds of {base} on {ranks} rank(s); run bench scaling with "
                "it, or leave --seconds-from out"
            )
        for name, value in self.settings[key].items():
            section, _, last = name.partition(".")
            now = (config.get(section) or {}).get(last, value)
            if now != value:
                raise InputError(
                    f"{self.path} has seconds of {key[0]} with `{name}` {value}, {method} has "
                    f"{now}; run bench scaling with that, or leave --seconds-from out"
                )
        if (config.get("train") or {}).get("warmup_steps"):
            raise InputError(
                f"{method} on {ranks} rank(s) has `train.warmup_steps`, which take longer than the "
                f"steps in {self.path}; leave them or --seconds-from out"
            )
        return self.medians[key]


_DECIDING = ("kind", "hidden", "channels", "deal_channels", "freeze_body", "output_norm")


def read_steps(path: Path) -> Steps:
    """The seconds per step of a study, from its scaling.csv or folder. Raises `InputError`."""
    path = path / FILE if path.is_dir() else path
    groups: dict[tuple[str, int], list[float]] = {}
    settings: dict[tuple[str, int], dict[str, Any]] = {}
    configs = read_configs(path.with_suffix(".json"))
    for row in read_rows(path, NEEDED):
        method = parse_method(str(row["method"]))
        key = (method.name, int(row["ranks"]))
        groups.setdefault(key, []).append(row["step_s"])
        of_row = {"data.batch_size": row.get("batch_rows")}
        if method.has_local_steps and not method.one_rank:
            of_row["train.local_steps"] = row.get("local_steps")
        model = configs.get(f"{key[0]} on {key[1]}", {}).get("model", {})
        of_row |= {f"model.{name}": model.get(name) for name in _DECIDING}
        known = {name: value for name, value in of_row.items() if value is not None}
        settings.setdefault(key, {}).update(known)
    return Steps(path, {key: statistics.median(s) for key, s in groups.items()}, settings)

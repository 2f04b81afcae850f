#!/usr/bin/env python
"""What rounds, evaluations and checkpoints of runs cost: a Markdown table from their folders.

usage: python bench/run_costs.py RUN...

A round is the mean over all but the first, which warms up (the first, if it is the only one).
Seconds are means over ranks; bytes are what a rank receives, on average, averages included.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

HEADER = (
    "| run | ranks | hidden | step, s | exchange a round, s | received a rank a round, MB "
    "| evaluation, s | checkpoint, s | visit home, s | peak memory of the ranks, MiB "
    "| an epoch's rounds, s | best |"
)


def main(folders: list[str]) -> None:
    """Print a line a run."""
    print(HEADER)
    print("|:--" + "|--:" * 11 + "|")
    for folder in folders:
        path = Path(folder)
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        summary = json.loads((path / "summary.json").read_text())
        print("| " + " | ".join(_cells(path, rows, summary)) + " |")


def _cells(path: Path, rows: list[dict[str, Any]], summary: dict[str, Any]) -> list[str]:
    ranks = summary["ranks"]
    rounds = [row for row in rows if row["kind"] == "round"]
    later = rounds[1:] or rounds
    visits = [row for row in rows if row["kind"] in ("evaluation", "save")]
    steps = (rounds[-1]["steps"] - (rounds[0]["steps"] if len(rounds) > 1 else 0)) / len(later)

    def mean(of: list[dict[str, Any]], kind: str) -> float:
        spent = [row["seconds"][kind] for row in of if row["seconds"][kind] > 0]
        return sum(spent) / max(1, len(spent))

    moved = (row["bytes_received"] + row["bytes_averaged"] for row in later)
    received = sum(moved) / len(later) / ranks / 1e6
    hidden = yaml.safe_load((path / "config.yaml").read_text())["model"]["hidden"]
    peaks = sorted(summary["peak_rss_mib"])
    return [
        path.name,
        str(ranks),
        "-".join(map(str, hidden)),
        f"{mean(later, 'train') / steps:.2f}",
        f"{mean(later, 'exchange'):.2f}",
        f"{received:,.1f}",
        f"{mean(visits, 'evaluate'):.1f}",
        f"{mean(visits, 'save'):.1f}",
        f"{mean(visits, 'exchange'):.1f}",
        f"{peaks[0]:,.0f} to {peaks[-1]:,.0f}",
        f"{_epoch_s(rounds):,.0f}",
        ", ".join(f"{name} {value:.4f}" for name, value in summary["best"].items()),
    ]


def _epoch_s(rounds: list[dict[str, Any]]) -> float:
    """Seconds of the rounds of an epoch, without visits home."""
    later = rounds[1:] or rounds
    begin = rounds[0]["epoch"] if len(rounds) > 1 else 0.0
    return sum(sum(row["seconds"].values()) for row in later) / (rounds[-1]["epoch"] - begin)


if __name__ == "__main__":
    main(sys.argv[1:])

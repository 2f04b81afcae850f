#!/usr/bin/env python
"""Runs of one rank as an ensemble: the mean of their class probabilities, on the test rows.

usage: python bench/ensemble.py OUTPUT MEMBER MEMBER [MEMBER ...]

MEMBER is the folder of a run whose checkpoints of all evaluations were kept. OUTPUT becomes a run
folder that `ist_hpc.plot` can draw: an evaluation for each round of which all members have a
checkpoint, `steps` of a member, `samples` of all. No weight or gradient goes from one to another.
The last one is also a row of ensembles.csv beside OUTPUT, in place of an earlier row of OUTPUT.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from mpi4py import MPI

from ist_hpc.checkpoint import restore
from ist_hpc.checkpoint.folder import newest_first
from ist_hpc.common.disk.files import write_text
from ist_hpc.config.keys import subnets_of
from ist_hpc.data.images import scaling_of
from ist_hpc.data.rows import CommonRows
from ist_hpc.data.shards import Dataset
from ist_hpc.models import networks
from ist_hpc.studies.plots.runs import read_metrics, read_run
from ist_hpc.studies.state import read_rows, write_rows
from ist_hpc.training.evaluation.full_network import HomeNetwork
from ist_hpc.training.evaluation.metrics import ClassificationMetrics

COMM = MPI.COMM_SELF
SPLIT = "test"


def main(output: Path, members: Sequence[Path]) -> None:
    """Evaluate the ensemble wherever all members were saved, and write its run folder."""
    saved = [{path.name: path for path in newest_first(run / "checkpoints")} for run in members]
    common = sorted(set.intersection(*(set(of_run) for of_run in saved)))
    metrics = [read_metrics(run / "metrics.jsonl") for run in members]
    rows = []
    for name in common:
        number = int(name.removeprefix("round-"))
        rounds = [of_round(run, number) for run in metrics]
        result = evaluate([of_run[name] for of_run in saved])
        row = {key: rounds[0][key] for key in ("round", "steps", "epoch")}
        row["samples"] = sum(round_["samples"] for round_ in rounds)
        seconds = max(trained_s(run, number) for run in metrics)
        before_s = sum(row["seconds"]["train"] for row in rows if row["kind"] == "round")
        nothing = {"bytes_sent": 0, "bytes_received": 0, "bytes_averaged": 0}
        rows.append({"kind": "round", **row, **nothing, "seconds": {"train": seconds - before_s}})
        rows.append({"kind": "evaluation", **row, SPLIT: result, "seconds": {}})
        print(f"{output} {name} {row['samples']} samples: {result['accuracy']:.4f}", flush=True)
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_text(output / "config.yaml", (members[0] / "config.yaml").read_text(encoding="utf-8"))
    write_text(output / "run.json", json.dumps({"starts": [{"ranks": len(members)}]}))
    add_row(output, members, rows[-1])


def add_row(output: Path, members: Sequence[Path], last: dict) -> None:
    """Put the ensemble's last evaluation into ensembles.csv."""
    configs = [read_run(run).config for run in members]
    row = {
        "run": output.name,
        "members": len(members),
        "seeds": " ".join(str(config["seed"]) for config in configs),
        "lr": configs[0]["optimizer"]["lr"],
        **{key: last[key] for key in ("steps", "samples", "epoch")},
        "final": last[SPLIT]["accuracy"],
    }
    path = output.parent / "ensembles.csv"
    before = read_rows(path, ("run",)) if path.exists() else []
    write_rows(path, [*(old for old in before if old["run"] != output.name), row])


def of_round(rows: Sequence[dict], number: int) -> dict:
    """The row of a round."""
    return next(row for row in rows if row["kind"] == "round" and row["round"] == number)


def trained_s(rows: Sequence[dict], number: int) -> float:
    """Seconds of the rounds of a run up to one."""
    return sum(
        sum(row["seconds"].values())
        for row in rows
        if row["kind"] == "round" and row["round"] <= number
    )


def evaluate(folders: Sequence[Path]) -> dict[str, float]:
    """Metrics of the mean of the members' class probabilities."""
    total, labels = None, None
    for folder in folders:
        found = restore.check(COMM, folder)
        with found.opened() as opened, Dataset.open(opened.config.data.path) as dataset:
            config, data = opened.config, opened.data
            subnets = subnets_of(config, opened.progress.ranks)
            model = networks.build(config.model, data.features, data.outputs, data.sparse, subnets)
            restored = restore.restore(opened, model, (), (), rank=0, ranks=1)
            weights = {spec.key: restored.state[spec.key].place("home") for spec in model.specs}
            network = HomeNetwork(COMM, model, weights | restored.shared, restored.statistics)
            rows = CommonRows(COMM, dataset, SPLIT, "rows", scaling_of(config.data, dataset))
            batches = network.predict(rows, config.evaluate.batch_rows, ClassificationMetrics())
            parts = [(batch["logits"].softmax(dim=1), batch["labels"]) for _, batch in batches]
        probabilities = torch.cat([part for part, _ in parts])
        labels = torch.cat([part for _, part in parts])
        total = probabilities if total is None else total + probabilities
    assert total is not None
    assert labels is not None
    metrics = ClassificationMetrics()
    metrics.add((total / len(folders)).log(), labels)
    return metrics.result()


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])

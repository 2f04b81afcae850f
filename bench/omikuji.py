#!/usr/bin/env python
"""Omikuji's trees (Parabel, and like Bonsai) on a sparse data set, by the metrics of this package.

usage: pip install omikuji; python bench/omikuji.py data/delicious [THREADS [TEST ROWS]] 2>/dev/null

Its text format is written from the shards first, which no second counts. Predictions are made one
row at a time, as its Python interface does; so are their seconds.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from ist_hpc.data.csr import Csr
from ist_hpc.data.shards import Dataset
from ist_hpc.data.sparse_rows import SparseRows
from ist_hpc.training.evaluation.ranking import RankingMetrics

TOP = (1, 3, 5)
METHODS = {
    "Parabel": {},
    "like Bonsai": {"cluster_balanced": True, "collapse_every_n_layers": 5},
}


def main(path: str, threads: int, test_rows: int) -> None:
    """Train each, and print a Markdown table."""
    sys.path.pop(0)  # this file has the library's name
    import omikuji

    with Dataset.open(path) as dataset, tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "train.txt")
        write(dataset, "train", text)
        features, labels = dataset.read("test", 0, min(test_rows, dataset.rows("test")))
        print("| method | P@1 | P@3 | P@5 | training, s | prediction of a row, ms |")
        print("|:--" + "|--:" * 5 + "|")
        for name, settings in METHODS.items():
            chosen = omikuji.Model.default_hyper_param()
            for key, value in settings.items():
                setattr(chosen, key, value)
            begin = time.perf_counter()
            model = omikuji.Model.train_on_data(str(text), chosen, threads)
            trained_s = time.perf_counter() - begin
            begin = time.perf_counter()
            predicted = np.stack([ranked(model.predict(row)) for row in pairs(features)])
            each_ms = (time.perf_counter() - begin) / len(features) * 1e3
            metrics = RankingMetrics(TOP)
            metrics.add(torch.from_numpy(predicted), SparseRows.of(labels))
            found = metrics.result()
            cells = [f"{found[f'precision_at_{k}']:.3f}" for k in TOP]
            print(f"| {name} | {' | '.join(cells)} | {trained_s:.1f} | {each_ms:.2f} |", flush=True)


def write(dataset: Dataset, split: str, path: Path) -> None:
    """A split in the text format of the Extreme Classification Repository."""
    rows, at_once = dataset.rows(split), 10_000
    with path.open("w", encoding="ascii") as file:
        file.write(f"{rows} {dataset.features} {dataset.outputs}\n")
        for start in range(0, rows, at_once):
            features, labels = dataset.read(split, start, min(start + at_once, rows))
            sets = np.split(labels.indices, labels.indptr[1:-1])
            for row, own in zip(pairs(features), sets, strict=True):
                of_row = " ".join(f"{feature}:{value:.6g}" for feature, value in row)
                file.write(f"{','.join(map(str, own))} {of_row}\n")


def pairs(rows: Csr) -> list[list[tuple[int, float]]]:
    """(feature, value) of each row."""
    values = np.ones(rows.entries, dtype=np.float32) if rows.values is None else rows.values
    flat = list(zip(rows.indices.tolist(), values.tolist(), strict=True))
    return [flat[a:b] for a, b in zip(rows.indptr[:-1], rows.indptr[1:], strict=True)]


def ranked(found: list[tuple[int, float]]) -> list[int]:
    """The best labels, and -1 after the last."""
    labels = [label for label, _ in found[: max(TOP)]]
    return labels + [-1] * (max(TOP) - len(labels))


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3, 4):
        sys.exit(__doc__)
    rows = int(sys.argv[3]) if len(sys.argv) > 3 else 5000
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else os.cpu_count() or 1, rows)

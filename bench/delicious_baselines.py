#!/usr/bin/env python
"""Linear and tree methods of scikit-learn on Delicious, by the metrics of this package.

usage: python bench/delicious_baselines.py [data/delicious]     (some minutes on two cores)
"""

import sys
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_matrix
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier

from ist_hpc.data.csr import Csr
from ist_hpc.data.shards import Dataset
from ist_hpc.data.sparse_rows import SparseRows
from ist_hpc.training.evaluation.ranking import RankingMetrics, inverse_propensities

Scores = npt.NDArray[np.float64]
TOP = (1, 3, 5)


def main(path: str) -> None:
    """Fit each, and print a Markdown table."""
    with Dataset.open(path) as dataset:
        (features, labels), (test_features, test_labels) = (
            dataset.read(split, 0, dataset.rows(split)) for split in ("train", "test")
        )
        counts = dataset.label_counts()
    assert counts is not None
    inverse = inverse_propensities(counts, len(labels), 0.55, 1.5)
    x, y, test_x = as_matrix(features), as_matrix(labels), as_matrix(test_features)
    methods: dict[str, Callable[[], Scores]] = {
        "most frequent labels": lambda: np.tile(counts, (test_x.shape[0], 1)),
        "ridge regression (penalty 10)": lambda: (
            Ridge(alpha=10.0, solver="cholesky")
            .fit(x.toarray(), y.toarray())
            .predict(test_x.toarray())
        ),
        "one-vs-rest logistic regression (C = 0.1)": lambda: (
            OneVsRestClassifier(LogisticRegression(C=0.1, solver="liblinear"))
            .fit(x, y)
            .decision_function(test_x)
        ),
        "50 extremely randomised trees": lambda: (
            ExtraTreesRegressor(
                50, min_samples_leaf=10, max_features=0.1, n_jobs=-1, random_state=0
            )
            .fit(x.toarray(), y.toarray())
            .predict(test_x.toarray())
        ),
    }
    print("| method | P@1 | P@3 | P@5 | PSP@1 | PSP@3 | PSP@5 | s |")
    print("|:--" + "|--:" * 7 + "|")
    for name, scores in methods.items():
        began = time.monotonic()
        predicted = np.argsort(-scores(), axis=1, kind="stable")[:, : max(TOP)]
        metrics = RankingMetrics(TOP, inverse)
        metrics.add(torch.from_numpy(predicted), SparseRows.of(test_labels))
        result = metrics.result()
        keys = [f"{kind}_at_{k}" for kind in ("precision", "psp") for k in TOP]
        cells = [f"{result[key]:.4f}" for key in keys]
        print(f"| {name} | " + " | ".join(cells) + f" | {time.monotonic() - began:.0f} |")


def as_matrix(rows: Csr) -> csr_matrix:
    """The same rows, for scikit-learn."""
    values = np.ones(rows.entries, np.float32) if rows.values is None else rows.values
    return csr_matrix((values, rows.indices, rows.indptr), shape=(len(rows), rows.columns))


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["data/delicious"]))

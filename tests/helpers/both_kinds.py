"""A data set of each kind with 50 train rows, in shards of 16, and 7 test rows; all are known."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.helpers.data_sets import make_rows, write
from tests.helpers.sparse_rows import numbered_features, numbered_labels, rows_of, write_numbered

WIDTH, LABELS = 11, 9  # of the sparse one
ROWS, TEST_ROWS, SHARD_ROWS = 50, 7, 16
DATASETS = {
    "dense": ["features", "labels"],
    "sparse": [
        *("features/data", "features/indices", "features/indptr"),
        *("labels/data", "labels/indices", "labels/indptr"),
    ],
}
"""What is in a shard of each kind."""


@dataclass(frozen=True)
class Made:
    """One of them."""

    kind: str
    path: Path

    def write(self, train: int = ROWS, test: int = TEST_ROWS, **options) -> None:
        if self.kind == "dense":
            write(self.path, train, test, **options)
            return
        splits = {split: rows for split, rows in (("train", train), ("test", test)) if rows}
        write_numbered(self.path, splits, WIDTH, LABELS, shard_rows=SHARD_ROWS, **options)

    def assert_same(self, got, rows: range | list[int]) -> None:
        """What was read against these train rows, as they were made."""
        if self.kind == "dense":
            for part, made in zip(got, make_rows(ROWS), strict=True):
                np.testing.assert_array_equal(part, made[list(rows)])
            return
        features, labels = numbered(rows)
        assert rows_of(got[0]) == features
        assert rows_of(got[1]) == labels


def numbered(rows):
    """Features and labels of sparse rows."""
    return (
        [numbered_features(row, WIDTH) for row in rows],
        [numbered_labels(row, LABELS) for row in rows],
    )

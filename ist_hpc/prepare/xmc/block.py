"""A block of lines as rows: features and labels, sorted within each row."""

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from ist_hpc.data.csr import Csr
from ist_hpc.prepare.xmc.line import Header

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Block:
    """The contents of a block of lines.

    rows             int64 [samples], ascending: the lines of the block that are samples, from 0
    features         float32 values, one row per sample; `labels` the same samples' label sets
    errors           (line of the block from 0, message) of every other line, ascending
    repeated_labels  number of labels that occur twice in their line and are kept once
    """

    lines: int
    rows: Integers
    features: Csr
    labels: Csr
    repeated_labels: int = 0
    errors: list[tuple[int, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Entries:
    """Numbers, uint64, a few per row: row k has those from `starts[k]` to `starts[k + 1]`."""

    numbers: npt.NDArray[np.uint64]
    starts: Integers

    def sorting(self) -> Integers | None:
        """The order that sorts each row; None if the rows already ascend strictly."""
        if not (self._in_one_row() & (self.numbers[1:] <= self.numbers[:-1])).any():
            return None
        row = np.repeat(np.arange(len(self.starts) - 1, dtype=np.uint64), np.diff(self.starts))
        return np.argsort((row << np.uint64(32)) | self.numbers, kind="stable")

    def repeated(self) -> Integers:
        """Positions of the numbers that equal the one before in their row."""
        return np.flatnonzero(self._in_one_row() & (self.numbers[1:] == self.numbers[:-1])) + 1

    def rows_of(self, positions: Integers) -> Integers:
        """The rows in which the positions are; ascending, each once."""
        return np.unique(np.searchsorted(self.starts, positions, side="right") - 1)

    def _in_one_row(self) -> npt.NDArray[np.bool_]:
        """For each number but the first whether it is in the row of the one before."""
        one = np.ones(len(self.numbers) + 1, dtype=bool)
        one[self.starts] = False
        return one[1 : len(self.numbers)]


def sorted_block(
    header: Header,
    features: Entries,
    values: npt.NDArray[np.float32],
    labels: Entries,
) -> Block | Integers:
    """The block with every row sorted, or the lines in which a feature occurs twice."""
    order = features.sorting()
    if order is not None:
        features, values = replace(features, numbers=features.numbers[order]), values[order]
        twice = features.repeated()
        if len(twice):
            return features.rows_of(twice)
    repeated_labels = 0
    order = labels.sorting()
    if order is not None:
        labels = replace(labels, numbers=labels.numbers[order])
        twice = labels.repeated()
        repeated_labels = len(twice)
        starts = labels.starts - np.searchsorted(twice, labels.starts)
        labels = Entries(np.delete(labels.numbers, twice), starts)
    lines = len(features.starts) - 1
    return Block(
        lines,
        np.arange(lines),
        Csr(features.starts, features.numbers.astype(np.int32), values, header.features),
        Csr(labels.starts, labels.numbers.astype(np.int32), None, header.labels),
        repeated_labels,
    )

"""Sparse rows as compressed arrays (CSR): what shards store and batches are cut from. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Csr:
    """Rows of numbers most of which are zero, or sets of labels.

    Row i has `values[indptr[i]:indptr[i + 1]]` in the columns `indices[indptr[i]:indptr[i + 1]]`,
    which ascend strictly; it may have none.

    indptr   int64 [rows + 1], from 0
    indices  int32 [entries], 0 to columns - 1
    values   float32 [entries]; None where every value is one: sets of labels
    columns  width of a row
    """

    indptr: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int32]
    values: npt.NDArray[np.float32] | None
    columns: int

    def __len__(self) -> int:
        """Rows."""
        return len(self.indptr) - 1

    @property
    def entries(self) -> int:
        """Stored values."""
        return len(self.indices)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        values = self.values.nbytes if self.values is not None else 0
        return self.indptr.nbytes + self.indices.nbytes + values

    def part(self, start: int, stop: int) -> "Csr":
        """The rows `start` to `stop`; indices and values are views."""
        first, last = int(self.indptr[start]), int(self.indptr[stop])
        values = None if self.values is None else self.values[first:last]
        indptr = self.indptr[start : stop + 1] - first
        return Csr(indptr, self.indices[first:last], values, self.columns)

    def take(self, rows: npt.NDArray[np.integer[Any]]) -> "Csr":
        """The given rows in the given order; repeated ones are allowed."""
        starts = self.indptr[:-1][rows]
        lengths = self.indptr[1:][rows] - starts
        indptr = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(lengths, out=indptr[1:])
        where = np.arange(indptr[-1]) + np.repeat(starts - indptr[:-1], lengths)
        values = None if self.values is None else self.values[where]
        return Csr(indptr, self.indices[where], values, self.columns)


def concatenate(parts: Sequence[Csr]) -> Csr:
    """The rows of all parts, one part after the other; at least one part, all of one width."""
    if len(parts) == 1:
        return parts[0]
    before = np.cumsum([0, *(part.entries for part in parts)])
    starts = [part.indptr[:-1] + begin for part, begin in zip(parts, before, strict=False)]
    indptr = np.concatenate([*starts, before[-1:]]).astype(np.int64)
    indices = np.concatenate([part.indices for part in parts])
    given = [part.values for part in parts if part.values is not None]
    assert len(given) in (0, len(parts)), "parts with and without values"
    values = np.concatenate(given) if given else None
    return Csr(indptr, indices, values, parts[0].columns)

"""Sparse rows as compressed arrays (CSR), as in shards and in memory. Uses no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Csr:
    """Rows of mostly zeros, or sets of labels.

    Row i has `values[indptr[i]:indptr[i + 1]]` in the columns `indices[indptr[i]:indptr[i + 1]]`,
    which ascend strictly; a row may be empty.

    indptr   int64 [rows + 1], from 0
    indices  int32 [entries], 0 to columns - 1
    values   float32 [entries]; None if every value is one: sets of labels
    columns  width of a row
    """

    indptr: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int32]
    values: npt.NDArray[np.float32] | None
    columns: int

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.indptr) - 1

    @property
    def entries(self) -> int:
        """The number of stored values."""
        return len(self.indices)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        values = self.values.nbytes if self.values is not None else 0
        return self.indptr.nbytes + self.indices.nbytes + values

    @staticmethod
    def empty(columns: int, with_values: bool) -> "Csr":
        """No rows."""
        values = np.empty(0, dtype=np.float32) if with_values else None
        return Csr(np.zeros(1, dtype=np.int64), np.empty(0, dtype=np.int32), values, columns)

    def row_of(self, entry: int) -> int:
        """The row of the entry."""
        return int(np.searchsorted(self.indptr, entry, side="right")) - 1

    def first_fault(self) -> tuple[int, str] | None:
        """(row, error) for a row whose columns are out of range or do not ascend strictly.

        None if all rows are right. `indptr` must be right: from 0, never falling, to the entries.
        """
        indices = self.indices
        if len(indices) == 0:
            return None
        if indices.min() < 0 or indices.max() >= self.columns:
            entry = int(np.flatnonzero((indices < 0) | (indices >= self.columns))[0])
            what = f"must be 0 to {self.columns - 1} (got {indices[entry]})"
            return self.row_of(entry), what
        rising = indices[1:] > indices[:-1]
        firsts = self.indptr[(self.indptr > 0) & (self.indptr < len(indices))]
        rising[firsts - 1] = True
        if rising.all():
            return None
        entry = int(np.flatnonzero(~rising)[0]) + 1
        what = f"must ascend strictly (got {indices[entry - 1]}, then {indices[entry]})"
        return self.row_of(entry), what

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


class CsrColumn:
    """See `stores.Column`. Filled in place, since joining parts would hold every row twice.

    capacity  number of entries before it has to grow
    """

    def __init__(self, rows: int, columns: int, capacity: int, with_values: bool) -> None:
        self._indptr = np.zeros(rows + 1, dtype=np.int64)
        self._indices = np.empty(capacity, dtype=np.int32)
        self._values = np.empty(capacity, dtype=np.float32) if with_values else None
        self._columns, self._rows, self._entries = columns, 0, 0

    def add(self, rows: Csr) -> None:
        """See `stores.Column`."""
        all_rows = len(self._indptr) - 1
        if len(rows) == all_rows:
            self._indptr, self._indices, self._values = rows.indptr, rows.indices, rows.values
            return
        first, last = self._entries, self._entries + rows.entries
        if last > len(self._indices):
            self._resize(last + last // 2)
        self._indices[first:last] = rows.indices
        if self._values is not None and rows.values is not None:
            self._values[first:last] = rows.values
        self._indptr[self._rows + 1 : self._rows + 1 + len(rows)] = rows.indptr[1:] + first
        self._rows += len(rows)
        self._entries = last
        if self._rows == all_rows:
            self._resize(last)

    def _resize(self, entries: int) -> None:
        # No view of them exists: rows are chosen from full windows, and copied.
        self._indices.resize(entries, refcheck=False)
        if self._values is not None:
            self._values.resize(entries, refcheck=False)

    def rows(self) -> Csr:
        """See `stores.Column`."""
        return Csr(self._indptr, self._indices, self._values, self._columns)

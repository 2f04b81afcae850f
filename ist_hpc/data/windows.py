"""Rows that a rank keeps in memory, from which batches are cut: dense or sparse."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ist_hpc.data.csr import Csr, concatenate
from ist_hpc.data.images import Scaling
from ist_hpc.data.shards import Dataset, StoredRows
from ist_hpc.data.sparse_rows import Rows, SparseRows

_FEATURE_BYTES = 8  # of an entry, column and value, in memory as on disk
_SPARE = 16  # part by which the rows of a window may have more entries than rows on average

Integers = npt.NDArray[np.int64]
Batch = tuple[Rows, Rows]
"""(features, labels). Dense: float32 [n, width] and int64 [n]. Sparse: both `SparseRows`."""


class Window(Protocol):
    """So many rows of a data set, filled from the first to the last."""

    def add(self, features: Any, labels: Any) -> None:
        """Put the next rows, as the data set gives them, behind those that are there."""

    def choose(self, rows: Integers) -> tuple[Any, Any]:
        """A copy of (features, labels) of the given rows, in that order."""

    def batch(self, parts: Sequence[tuple[Any, Any]]) -> Batch:
        """What `choose` gave, one part behind the other; at least one, of any window."""


def new_window(dataset: Dataset, rows: int) -> Window:
    """A window for so many rows of the data set, with none in it yet."""
    if dataset.sparse:
        most_features = rows * dataset.row_bytes("train") // _FEATURE_BYTES
        return SparseWindow(dataset.features, dataset.outputs, rows, most_features)
    return DenseWindow(dataset.feature_shape, dataset.feature_dtype, rows)


def as_features(stored: npt.NDArray[Any] | Tensor, scaling: Scaling | None = None) -> Tensor:
    """Stored features as the networks take them: float32 [rows, width].

    uint8 is divided by 255; then they are scaled.
    """
    features = stored if isinstance(stored, Tensor) else torch.from_numpy(stored)
    flat = features.flatten(start_dim=1)
    if flat.dtype == torch.uint8:
        flat = flat.float().div_(255)
    return flat if scaling is None else scaling.apply(flat)


def as_batch(stored: StoredRows, scaling: Scaling | None = None) -> Batch:
    """Stored rows as the networks take them; dense ones are scaled."""
    features, labels = stored
    if isinstance(features, Csr):
        return SparseRows.of(features), SparseRows.of(labels)
    return as_features(features, scaling), torch.from_numpy(labels)


class DenseWindow:
    """Allocated whole, and filled in place; rows are kept and chosen as they are stored."""

    def __init__(self, shape: tuple[int, ...], dtype: str, rows: int) -> None:
        kept_as = torch.uint8 if dtype == "uint8" else torch.float32
        self._features = torch.empty(rows, *shape, dtype=kept_as)
        self._labels = torch.empty(rows, dtype=torch.int64)
        self._filled = 0

    def add(self, features: npt.NDArray[Any], labels: Integers) -> None:
        """See `Window`."""
        place = slice(self._filled, self._filled + len(labels))
        self._features[place] = torch.from_numpy(features)
        self._labels[place] = torch.from_numpy(labels)
        self._filled = place.stop

    def choose(self, rows: Integers) -> tuple[Tensor, Tensor]:
        """See `Window`."""
        chosen = torch.from_numpy(rows)
        return self._features[chosen], self._labels[chosen]

    def batch(self, parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """See `Window`."""
        features, labels = (_joined(part) for part in zip(*parts, strict=True))
        return as_features(features), labels


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts))


class SparseWindow:
    """How many entries there are is known only when they have been read.

    There is room for about `most_features` from the start, as pages that are not touched cost
    nothing; labels, which are few, grow.
    """

    def __init__(self, features: int, outputs: int, rows: int, most_features: int) -> None:
        self._features = _GrowingCsr(rows, features, most_features + most_features // _SPARE)
        self._labels = _GrowingCsr(rows, outputs, 0)

    def add(self, features: Csr, labels: Csr) -> None:
        """See `Window`."""
        self._features.add(features)
        self._labels.add(labels)

    def choose(self, rows: Integers) -> tuple[Csr, Csr]:
        """See `Window`."""
        return self._features.csr().take(rows), self._labels.csr().take(rows)

    def batch(self, parts: Sequence[tuple[Csr, Csr]]) -> tuple[SparseRows, SparseRows]:
        """See `Window`."""
        features, labels = zip(*parts, strict=True)
        return SparseRows.of(concatenate(features)), SparseRows.of(concatenate(labels))


class _GrowingCsr:
    """Rows put one behind the other in place: joining parts would hold every row twice."""

    def __init__(self, rows: int, columns: int, capacity: int) -> None:
        self._indptr = np.zeros(rows + 1, dtype=np.int64)
        self._indices = np.empty(capacity, dtype=np.int32)
        self._values: npt.NDArray[np.float32] | None = None
        self._columns, self._rows, self._entries = columns, 0, 0

    def add(self, rows: Csr) -> None:
        first, last = self._entries, self._entries + rows.entries
        if rows.values is not None and self._values is None:
            self._values = np.empty(len(self._indices), dtype=np.float32)
        if last > len(self._indices):
            self._resize(last + last // 2)
        self._indices[first:last] = rows.indices
        if self._values is not None and rows.values is not None:
            self._values[first:last] = rows.values
        self._indptr[self._rows + 1 : self._rows + 1 + len(rows)] = rows.indptr[1:] + first
        self._rows += len(rows)
        self._entries = last
        if self._rows == len(self._indptr) - 1:
            self._resize(last)

    def _resize(self, entries: int) -> None:
        # No view of them is alive: rows are chosen from windows that are full, and copied.
        self._indices.resize(entries, refcheck=False)
        if self._values is not None:
            self._values.resize(entries, refcheck=False)

    def csr(self) -> Csr:
        """The rows, as views."""
        return Csr(self._indptr, self._indices, self._values, self._columns)

"""Sparse rows: features and sets of labels, both CSR; in shards, in memory and as batches.

In a shard:

    /features  a CSR matrix (csr_files.py) with float32 values, finite
    /labels    a CSR matrix of ones

docs/data-format.md describes them for users; `stores` explains the methods.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import numpy.typing as npt

from ist_hpc.common.errors import InputError
from ist_hpc.data import shard_files
from ist_hpc.data.csr import Csr, CsrColumn, concatenate
from ist_hpc.data.csr_files import MatrixOutput, StoredMatrix
from ist_hpc.data.shard_files import ShardOutput, StoredFile
from ist_hpc.data.shard_meta import Schema

if TYPE_CHECKING:
    from ist_hpc.data.sparse_rows import SparseRows

_FEATURE_BYTES, _LABEL_BYTES, _ROW_BYTES = 4 + 4, 1 + 4, 8 + 8  # an entry, an entry, a row
_SPARE = 16  # 1/16: by how much a window's rows may exceed the average number of entries

Integers = npt.NDArray[np.int64]
Sparse = tuple[Csr, Csr]


class SparseStore:
    """Sparse rows of one schema; see `stores.Store`."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema

    def check(self, where: str, features: Any, labels: Any) -> Sparse:
        """Features with values, finite, and labels without, both of `n` rows."""
        for name, rows, columns in (
            ("features", features, self.schema.features),
            ("labels", labels, self.schema.outputs),
        ):
            if not isinstance(rows, Csr):
                raise InputError(
                    f"{where}: {name} of a sparse data set must be an ist_hpc.data.csr.Csr "
                    f"(got {type(rows).__name__})"
                )
            _check_arrays(f"{where}: {name}", rows, name == "features")
            if rows.columns != columns:
                raise InputError(
                    f"{where}: {name} must have {columns} columns (got {rows.columns})"
                )
            fault = rows.first_fault()
            if fault is not None:
                row, what = fault
                raise InputError(f"{where}: indices of {name} {what} in row {row} of this block")
        if len(features) != len(labels):
            raise InputError(
                f"{where}: features and labels must have as many rows "
                f"(got {len(features)} and {len(labels)})"
            )
        if not np.isfinite(features.values).all():
            entry = int(np.flatnonzero(~np.isfinite(features.values))[0])
            row = features.row_of(entry)
            raise InputError(f"{where}: features must be finite (row {row} of this block is not)")
        return features, labels

    def begin(self, path: Path, name: str, split: str, shard_rows: int | None) -> "_SparseOutput":
        """See `stores.Store`."""
        return _SparseOutput(path, name, split, self.schema, shard_rows)

    def open(self, file: StoredFile, rows: int) -> "SparseShard":
        """See `stores.Store`."""
        return SparseShard(file, self.schema, rows)

    def columns(self, rows: int, row_bytes: int) -> tuple[CsrColumn, CsrColumn]:
        """See `stores.Store`.

        The number of entries is known only after they have been read. There is room for about
        the average number of features, as pages that are not touched cost nothing;
        labels, which are few, grow.
        """
        expected = rows * row_bytes // _FEATURE_BYTES
        capacity = expected + expected // _SPARE
        return (
            CsrColumn(rows, self.schema.features, capacity, with_values=True),
            CsrColumn(rows, self.schema.outputs, 0, with_values=False),
        )

    @staticmethod
    def choose(stored: Sparse, rows: Integers) -> Sparse:
        """See `stores.Store`."""
        features, labels = stored
        return features.take(rows), labels.take(rows)

    @staticmethod
    def gather(
        own: Sparse,
        row_counts: Integers,
        gather: Callable[[npt.NDArray[Any], Integers, str], npt.NDArray[Any]],
    ) -> Sparse:
        """See `stores.Store`."""
        rows = int(row_counts.sum())

        def gathered(part: Csr) -> Csr:
            lengths = gather(np.diff(part.indptr), row_counts, f"{rows} rows")
            indptr = np.append(0, np.cumsum(lengths))
            counts = np.diff(indptr[np.append(0, np.cumsum(row_counts))])
            what = f"{rows} rows with {indptr[-1]} entries"
            indices = gather(part.indices, counts, what)
            values = None if part.values is None else gather(part.values, counts, what)
            return Csr(indptr, indices, values, part.columns)

        features, labels = own
        return gathered(features), gathered(labels)

    @staticmethod
    def batch(parts: Sequence[Sparse]) -> "tuple[SparseRows, SparseRows]":
        """Features with values, labels without."""
        from ist_hpc.data.sparse_rows import SparseRows  # here: it imports torch

        features, labels = zip(*parts, strict=True)
        return SparseRows.of(concatenate(features)), SparseRows.of(concatenate(labels))


def _check_arrays(where: str, rows: Csr, with_values: bool) -> None:
    """Raise InputError unless the arrays have the types, lengths and order that `Csr` promises."""
    if (rows.values is not None) != with_values:
        raise InputError(f"{where} must have {'values' if with_values else 'no values (None)'}")
    arrays: list[tuple[str, npt.NDArray[Any], type]] = [
        ("indptr", rows.indptr, np.int64),
        ("indices", rows.indices, np.int32),
    ]
    if rows.values is not None:
        arrays.append(("values", rows.values, np.float32))
    for name, array, dtype in arrays:
        if array.ndim != 1 or array.dtype != dtype:
            raise InputError(
                f"{where}: {name} must be a vector of {np.dtype(dtype)} "
                f"(got shape {array.shape}, {array.dtype})"
            )
    if rows.values is not None and len(rows.values) != rows.entries:
        raise InputError(
            f"{where}: indices and values must be as many (got {rows.entries}, {len(rows.values)})"
        )
    indptr = rows.indptr
    if (
        len(indptr) < 1
        or indptr[0] != 0
        or indptr[-1] != rows.entries
        or (np.diff(indptr) < 0).any()
    ):
        raise InputError(
            f"{where}: indptr must rise from 0 to the number of entries, {rows.entries}"
        )


def _bytes_before(features: Integers, labels: Integers) -> Integers:
    """Bytes stored before each row, and before the end, from both `indptr`s; int64 [n]."""
    rows = np.arange(len(features), dtype=np.int64)
    return _FEATURE_BYTES * features + _LABEL_BYTES * labels + _ROW_BYTES * rows


class _SparseOutput(ShardOutput):
    """Full with `most_rows` rows; if that is None, with the row that reaches SHARD_BYTES."""

    def _create(self, file: h5py.File, schema: Schema) -> None:
        self._bytes = 0
        self._features = MatrixOutput(file, "features", schema.features, "float32")
        about = f"one row a sample, CSR. {schema.feature_description}".rstrip()
        self._features.group.attrs["description"] = about
        self._labels = MatrixOutput(file, "labels", schema.outputs, "uint8")
        labels = self._labels.group
        labels.attrs["description"] = "the labels of each sample, from 0: CSR with ones"
        shard_files.describe_classes(labels, schema.outputs, schema.classes)

    @property
    def full(self) -> bool:
        return super().full if self._most_rows else self._bytes >= shard_files.SHARD_BYTES

    def room(self, features: Csr, labels: Csr, start: int) -> int:
        if self._most_rows:
            return super().room(features, labels, start)
        before = _bytes_before(features.indptr, labels.indptr)
        left = shard_files.SHARD_BYTES - self._bytes
        return min(len(labels), int(np.searchsorted(before, before[start] + left)))

    def _put(self, features: Csr, labels: Csr, start: int, stop: int) -> None:
        features, labels = features.part(start, stop), labels.part(start, stop)
        self._features.append(features)
        self._labels.append(labels)
        self._bytes += int(_bytes_before(features.indptr, labels.indptr)[-1])

    def _end(self) -> None:
        self._features.finish()
        self._labels.finish()


class SparseShard:
    """An open shard of sparse rows; see `stores.StoredShard`."""

    def __init__(self, file: StoredFile, schema: Schema, rows: int) -> None:
        self.file = file
        self._features = StoredMatrix(file, "features", "float32", rows, schema.features)
        self._labels = StoredMatrix(file, "labels", "uint8", rows, schema.outputs)
        self.block_bytes = shard_files.CHUNK_BYTES

    def blocks(self, rows: Integers) -> Integers:
        """See `stores.StoredShard`."""
        first, last = int(rows[0]), int(rows[-1])
        pointers = (matrix.pointers(first, last) for matrix in (self._features, self._labels))
        return _bytes_before(*pointers)[rows - first] // self.block_bytes

    def read(self, start: int, stop: int) -> Sparse:
        """See `stores.StoredShard`."""
        return self._features.read(start, stop), self._labels.read(start, stop)

"""Sparse rows in a shard: features and sets of labels, each as a CSR matrix in AnnData's layout.

    /features  /labels           groups; attributes encoding-type, encoding-version, shape
    /features/data     [entries] float32, finite;   /labels/data     [entries] uint8, ones
    /features/indices  [entries] int32, ascending in a row;   /labels/indices  the same
    /features/indptr   [rows + 1] int64, from 0;              /labels/indptr   the same

docs/data-format.md describes them for users; `shard_layouts.Layout` says what the methods are for.
"""

from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from ist_hpc.common.errors import InputError
from ist_hpc.data import shard_files
from ist_hpc.data.csr import Csr, concatenate
from ist_hpc.data.shard_files import StoredFile
from ist_hpc.data.shard_meta import Schema

_ENCODING = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0"}
_FEATURE_BYTES, _LABEL_BYTES, _ROW_BYTES = 4 + 4, 1 + 4, 8 + 8  # an entry, an entry, a row

Integers = npt.NDArray[np.int64]


class SparseLayout:
    """Sparse rows of one schema; see `shard_layouts.Layout`."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema

    def check(self, where: str, features: Any, labels: Any) -> tuple[Csr, Csr]:
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

    def begin(self, file: h5py.File, shard_rows: int | None) -> "_SparseWriting":
        """Both groups, without rows yet."""
        return _SparseWriting(file, self.schema, shard_rows)

    def open(self, file: StoredFile, rows: int) -> "_SparseStored":
        """Both groups, checked."""
        return _SparseStored(file, self.schema, rows)

    def collect(self, rows: int) -> "_SparseCollected":
        """A list of blocks, which are joined at the end."""
        return _SparseCollected(self.schema)


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
    """Of each row, and of the end, the bytes stored before it: from both `indptr`s, int64 [n]."""
    rows = np.arange(len(features), dtype=np.int64)
    return _FEATURE_BYTES * features + _LABEL_BYTES * labels + _ROW_BYTES * rows


class _SparseWriting:
    """Full with `shard_rows` rows; without that, with the row that reaches SHARD_BYTES."""

    def __init__(self, file: h5py.File, schema: Schema, shard_rows: int | None) -> None:
        self._most_rows = shard_rows
        self._rows = self._bytes = 0
        self._features = _GroupWriting(file, "features", schema.features, "float32")
        about = f"one row a sample, CSR. {schema.feature_description}".rstrip()
        self._features.group.attrs["description"] = about
        self._labels = _GroupWriting(file, "labels", schema.outputs, "uint8")
        labels = self._labels.group
        labels.attrs["description"] = "the labels of each sample, from 0: CSR with ones"
        shard_files.describe_classes(labels, schema.outputs, schema.classes)

    @property
    def full(self) -> bool:
        if self._most_rows:
            return self._rows == self._most_rows
        return self._bytes >= shard_files.SHARD_BYTES

    def room(self, features: Csr, labels: Csr, start: int) -> int:
        if self._most_rows:
            return min(len(labels), start + self._most_rows - self._rows)
        before = _bytes_before(features.indptr, labels.indptr)
        left = shard_files.SHARD_BYTES - self._bytes
        return min(len(labels), int(np.searchsorted(before, before[start] + left)))

    def append(self, features: Csr, labels: Csr, start: int, stop: int) -> None:
        features, labels = features.part(start, stop), labels.part(start, stop)
        self._features.append(features)
        self._labels.append(labels)
        self._rows += stop - start
        self._bytes += int(_bytes_before(features.indptr, labels.indptr)[-1])

    def finish(self) -> None:
        self._features.finish()
        self._labels.finish()


class _GroupWriting:
    """One CSR matrix, growing by rows."""

    def __init__(self, file: h5py.File, name: str, columns: int, dtype: str) -> None:
        self.group = file.create_group(name)
        self.group.attrs.update(_ENCODING)
        self._columns, self._rows, self._entries = columns, 0, 0
        chunk_entries = max(1, shard_files.CHUNK_BYTES // 4)
        self._data = _Vector(self.group, "data", dtype, chunk_entries)
        self._indices = _Vector(self.group, "indices", "int32", chunk_entries)
        chunk_rows = max(1, shard_files.CHUNK_BYTES // 8)
        self._indptr = _Vector(self.group, "indptr", "int64", chunk_rows)
        self._indptr.append(np.zeros(1, dtype=np.int64))

    def append(self, rows: Csr) -> None:
        values = np.ones(rows.entries, dtype=np.uint8) if rows.values is None else rows.values
        self._data.append(values)
        self._indices.append(rows.indices)
        self._indptr.append(rows.indptr[1:] + self._entries)
        self._rows += len(rows)
        self._entries += rows.entries

    def finish(self) -> None:
        for vector in (self._data, self._indices, self._indptr):
            vector.finish()
        self.group.attrs["shape"] = np.array([self._rows, self._columns], dtype=np.int64)


class _Vector:
    """A dataset of one dimension that is written in whole blocks; less than one is kept.

    So a block is written once however few rows a call brings, and one that is never filled is no
    longer than the vector.
    """

    def __init__(self, group: h5py.Group, name: str, dtype: str, chunk: int) -> None:
        self._group, self._name, self._dtype, self._chunk = group, name, dtype, chunk
        self._dataset: h5py.Dataset | None = None
        self._kept: list[npt.NDArray[Any]] = []
        self._kept_count = 0

    def append(self, values: npt.NDArray[Any]) -> None:
        whole = (self._kept_count + len(values)) // self._chunk * self._chunk
        if whole:
            used = whole - self._kept_count
            self._write(np.concatenate([*self._kept, values[:used]]))
            values, self._kept, self._kept_count = values[used:], [], 0
        self._kept.append(values.copy())  # the caller may use its array again
        self._kept_count += len(values)

    def _write(self, values: npt.NDArray[Any]) -> None:
        if self._dataset is None:
            chunk = min(self._chunk, max(1, len(values)))
            self._dataset = shard_files.create(self._group, self._name, (), self._dtype, chunk)
        start = len(self._dataset)
        self._dataset.resize(start + len(values), axis=0)
        self._dataset[start:] = values

    def finish(self) -> None:
        """Write what is kept."""
        if self._kept_count or self._dataset is None:
            self._write(np.concatenate(self._kept))
        self._kept, self._kept_count = [], 0


class _SparseStored:
    def __init__(self, file: StoredFile, schema: Schema, rows: int) -> None:
        self._features = _GroupStored(file, "features", "float32", rows, schema.features)
        self._labels = _GroupStored(file, "labels", "uint8", rows, schema.outputs)
        self.block_bytes = shard_files.CHUNK_BYTES

    def blocks(self, rows: Integers) -> Integers:
        first, last = int(rows[0]), int(rows[-1])
        pointers = (group.pointers(first, last) for group in (self._features, self._labels))
        return _bytes_before(*pointers)[rows - first] // self.block_bytes

    def read(self, start: int, stop: int) -> tuple[Csr, Csr]:
        return self._features.read(start, stop), self._labels.read(start, stop)


class _GroupStored:
    """One CSR matrix of an open file."""

    def __init__(self, file: StoredFile, name: str, dtype: str, rows: int, columns: int) -> None:
        self._file, self._name, self._rows, self._columns = file, name, rows, columns
        file.group(name, {**_ENCODING, "shape": [rows, columns]})
        self._indptr = file.dataset(f"{name}/indptr", "int64", (rows + 1,))
        self._indices = file.dataset(f"{name}/indices", "int32", (None,))
        self._entries = len(self._indices)
        self._data = file.dataset(f"{name}/data", dtype, (self._entries,))

    def pointers(self, start: int, stop: int) -> Integers:
        """Where the entries of the rows `start` to `stop` begin, and the last ends; checked."""
        name = f"{self._name}/indptr"
        with self._file.reporting(name):
            indptr = np.asarray(self._indptr[start : stop + 1], dtype=np.int64)
        good = (np.diff(indptr) >= 0).all() and indptr[0] >= 0 and indptr[-1] <= self._entries
        good = good and (start > 0 or indptr[0] == 0)
        if not good or (stop == self._rows and indptr[-1] != self._entries):
            raise self._file.error(
                f"`{name}` must rise from 0 to the length of `{self._name}/indices`, "
                f"{self._entries} (it does not in rows {start} to {stop})"
            )
        return indptr

    def read(self, start: int, stop: int) -> Csr:
        indptr = self.pointers(start, stop)
        first, last = int(indptr[0]), int(indptr[-1])
        with self._file.reporting(f"{self._name}/indices"):
            indices = np.asarray(self._indices[first:last], dtype=np.int32)
        with self._file.reporting(f"{self._name}/data"):
            data = self._data[first:last]
        values = data.astype(np.float32, copy=False) if data.dtype.kind == "f" else None
        rows = Csr(indptr - first, indices, values, self._columns)
        fault = rows.first_fault()
        if fault is not None:
            row, what = fault
            raise self._file.error(f"`{self._name}/indices` {what} in row {start + row}")
        if values is None and (data != 1).any():
            raise self._file.error(f"`{self._name}/data` must be ones, in rows {start} to {stop}")
        return rows


class _SparseCollected:
    def __init__(self, schema: Schema) -> None:
        self._features = [Csr.empty(schema.features, with_values=True)]
        self._labels = [Csr.empty(schema.outputs, with_values=False)]

    def add(self, stored: _SparseStored, start: int, stop: int) -> None:
        self._keep(*stored.read(start, stop))

    def add_some(self, stored: _SparseStored, rows: Integers) -> None:
        start = int(rows[0])
        features, labels = stored.read(start, int(rows[-1]) + 1)
        self._keep(features.take(rows - start), labels.take(rows - start))

    def _keep(self, features: Csr, labels: Csr) -> None:
        self._features.append(features)
        self._labels.append(labels)

    def result(self) -> tuple[Csr, Csr]:
        # One block is given as it is, without a copy.
        features, labels = self._features[1:], self._labels[1:]
        return concatenate(features or self._features), concatenate(labels or self._labels)

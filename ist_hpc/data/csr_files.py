"""CSR matrices in HDF5 files, in AnnData's layout: written row by row, and read.

/NAME          group; attributes encoding-type, encoding-version, shape
/NAME/data     [entries] float32; for sets of labels uint8, all ones
/NAME/indices  [entries] int32, ascending in a row
/NAME/indptr   [rows + 1] int64, from 0
"""

from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from ist_hpc.data import shard_files
from ist_hpc.data.csr import Csr
from ist_hpc.data.shard_files import StoredFile

_ENCODING = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0"}

Integers = npt.NDArray[np.int64]


class MatrixOutput:
    """A matrix that is written row by row; methods raise OSError."""

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
        """Append rows."""
        values = np.ones(rows.entries, dtype=np.uint8) if rows.values is None else rows.values
        self._data.append(values)
        self._indices.append(rows.indices)
        self._indptr.append(rows.indptr[1:] + self._entries)
        self._rows += len(rows)
        self._entries += rows.entries

    def finish(self) -> None:
        """Write what is still in memory, and the shape."""
        for vector in (self._data, self._indices, self._indptr):
            vector.finish()
        self.group.attrs["shape"] = np.array([self._rows, self._columns], dtype=np.int64)


class _Vector:
    """A dataset of one dimension that is written in whole blocks; the rest is kept.

    So a block is written only once, however few rows a call adds, and a block that is never filled
    is no longer than the vector.
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
        """Write the rest."""
        if self._kept_count or self._dataset is None:
            self._write(np.concatenate(self._kept))
        self._kept, self._kept_count = [], 0


class StoredMatrix:
    """A matrix of an open file, whose objects are checked; methods raise InputError.

    dtype  type of `data`: if it is not float32, every value must be one, and rows have no values
    """

    def __init__(self, file: StoredFile, name: str, dtype: str, rows: int, columns: int) -> None:
        self._file, self._name, self._rows, self._columns = file, name, rows, columns
        file.group(name, {**_ENCODING, "shape": [rows, columns]})
        self._indptr = file.dataset(f"{name}/indptr", "int64", (rows + 1,))
        self._indices = file.dataset(f"{name}/indices", "int32", (None,))
        self._entries = len(self._indices)
        self._data = file.dataset(f"{name}/data", dtype, (self._entries,))

    def pointers(self, start: int, stop: int) -> Integers:
        """Where the entries of the rows `start` to `stop` begin, and the last end; checked."""
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
        """The rows `start` to `stop`, checked."""
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

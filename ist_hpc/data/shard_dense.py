"""Dense rows in a shard: an array of features and one class a row.

    /features  [rows, *feature_shape]  float32 or uint8
    /labels    [rows]                  int64

docs/data-format.md describes them for users; `shard_layouts.Layout` says what the methods are for.
"""

from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from ist_hpc.common.errors import InputError
from ist_hpc.data import shard_files
from ist_hpc.data.shard_files import StoredFile
from ist_hpc.data.shard_meta import META_FILE, Schema

Array = npt.NDArray[Any]


class DenseLayout:
    """Dense rows of one schema; see `shard_layouts.Layout`."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema

    def check(self, where: str, features: Any, labels: Any) -> tuple[Array, Array]:
        """features [n, *feature_shape] of exactly the dtype, finite; labels integers [n]."""
        features, labels = np.asarray(features), np.asarray(labels)
        schema = self.schema
        if features.dtype != np.dtype(schema.feature_dtype):
            raise InputError(
                f"{where}: features must be {schema.feature_dtype} (got {features.dtype}); "
                f"convert them with features.astype('{schema.feature_dtype}')"
            )
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise InputError(
                f"{where}: labels must be a vector of integers "
                f"(got shape {labels.shape}, {labels.dtype})"
            )
        if features.shape != (len(labels), *schema.feature_shape):
            raise InputError(
                f"{where}: features of {len(labels)} labels must have the shape "
                f"{(len(labels), *schema.feature_shape)} (got {features.shape})"
            )
        wrong = np.flatnonzero((labels < 0) | (labels >= schema.outputs))
        if len(wrong):
            raise InputError(
                f"{where}: labels must be 0 to {schema.outputs - 1} "
                f"(got {labels[wrong[0]]} in row {wrong[0]} of this block)"
            )
        if features.dtype.kind == "f" and not np.isfinite(features).all():
            row = int(np.argwhere(~np.isfinite(features))[0, 0])
            raise InputError(f"{where}: features must be finite (row {row} of this block is not)")
        return features, labels

    def begin(self, file: h5py.File, shard_rows: int | None) -> "_DenseWriting":
        """Both datasets, without rows yet."""
        return _DenseWriting(file, self.schema, shard_rows)

    def open(self, file: StoredFile, rows: int) -> "DenseStored":
        """Both datasets, checked."""
        return DenseStored(file, self.schema, rows)

    def collect(self, rows: int) -> "_DenseCollected":
        """Arrays for so many rows."""
        return _DenseCollected(self.schema, rows)


class _DenseWriting:
    def __init__(self, file: h5py.File, schema: Schema, shard_rows: int | None) -> None:
        row_bytes = schema.features * np.dtype(schema.feature_dtype).itemsize
        self._most_rows = shard_rows or max(1, shard_files.SHARD_BYTES // row_bytes)
        self._rows = 0
        self._features = self._create(
            file, "features", schema.feature_shape, schema.feature_dtype, row_bytes
        )
        about = f"one row a sample. {schema.feature_description}".rstrip()
        self._features.attrs["description"] = about
        self._labels = self._create(file, "labels", (), "int64", 8)
        self._labels.attrs["description"] = "index of the sample's class in `classes`, from 0"
        shard_files.describe_classes(self._labels, schema.outputs, schema.classes)

    def _create(
        self, file: h5py.File, name: str, shape: tuple[int, ...], dtype: str, row_bytes: int
    ) -> h5py.Dataset:
        # Never longer than the shard: the last chunk is stored at its full length.
        chunk_rows = min(self._most_rows, max(1, shard_files.CHUNK_BYTES // row_bytes))
        return shard_files.create(file, name, shape, dtype, chunk_rows)

    @property
    def full(self) -> bool:
        return self._rows == self._most_rows

    def room(self, features: Array, labels: Array, start: int) -> int:
        return min(len(labels), start + self._most_rows - self._rows)

    def append(self, features: Array, labels: Array, start: int, stop: int) -> None:
        end = self._rows + stop - start
        for dataset, values in ((self._features, features), (self._labels, labels)):
            dataset.resize(end, axis=0)
            dataset[self._rows : end] = values[start:stop]
        self._rows = end

    def finish(self) -> None:
        pass


class DenseStored:
    """An open shard of dense rows; see `shard_layouts.Stored`."""

    def __init__(self, file: StoredFile, schema: Schema, rows: int) -> None:
        self._file, self._outputs = file, schema.outputs
        self.path = file.path
        shape = (rows, *schema.feature_shape)
        self._features = file.dataset("features", schema.feature_dtype, shape)
        self._labels = file.dataset("labels", "int64", (rows,))
        self.block_bytes = int(np.prod(self._features.chunks)) * self._features.dtype.itemsize

    def blocks(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """See `shard_layouts.Stored`."""
        return rows // int(self._features.chunks[0])

    def fill(self, start: int, features: Array, labels: npt.NDArray[np.int64]) -> None:
        """Fill the arrays with the rows from `start` on."""
        wanted = np.s_[start : start + len(labels)]
        with self._file.reporting("features"):
            self._features.read_direct(features, wanted)
        with self._file.reporting("labels"):
            self._labels.read_direct(labels, wanted)
        if len(labels) and not 0 <= labels.min() <= labels.max() < self._outputs:
            at = int(np.flatnonzero((labels < 0) | (labels >= self._outputs))[0])
            raise self._file.error(
                f"`labels` must be 0 to {self._outputs - 1}, as {META_FILE} has {self._outputs} "
                f"classes (got {labels[at]} in row {start + at})"
            )


class _DenseCollected:
    """Allocated once and filled in place: no row is held twice."""

    def __init__(self, schema: Schema, rows: int) -> None:
        self._schema = schema
        self._features, self._labels = self._empty(rows)
        self._filled = 0

    def _empty(self, rows: int) -> tuple[Array, npt.NDArray[np.int64]]:
        shape = (rows, *self._schema.feature_shape)
        return np.empty(shape, dtype=self._schema.feature_dtype), np.empty(rows, dtype=np.int64)

    def add(self, stored: DenseStored, start: int, stop: int) -> None:
        stored.fill(start, *self._next(stop - start))

    def add_some(self, stored: DenseStored, rows: npt.NDArray[np.int64]) -> None:
        start = int(rows[0])
        block_features, block_labels = self._empty(int(rows[-1]) + 1 - start)
        stored.fill(start, block_features, block_labels)
        features, labels = self._next(len(rows))
        features[:], labels[:] = block_features[rows - start], block_labels[rows - start]

    def _next(self, rows: int) -> tuple[Array, npt.NDArray[np.int64]]:
        place = slice(self._filled, self._filled + rows)
        self._filled += rows
        return self._features[place], self._labels[place]

    def result(self) -> tuple[Array, Array]:
        return self._features, self._labels

"""Dense rows: an array of features and one class per row; in shards, in memory and as batches.

In a shard:

    /features  [rows, *feature_shape]  float32 or uint8
    /labels    [rows]                  int64

docs/data-format.md describes them for users; `stores` explains the methods. Rows are kept and
chosen as they are stored.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import numpy.typing as npt

from ist_hpc.common.errors import InputError
from ist_hpc.data import shard_files
from ist_hpc.data.shard_files import ShardOutput, StoredFile
from ist_hpc.data.shard_meta import META_FILE, Schema

if TYPE_CHECKING:
    from torch import Tensor

Array = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]
Dense = tuple[Array, Integers]

_ALIGNMENT = 64  # bytes: where PyTorch begins a tensor


class DenseStore:
    """Dense rows of one schema; see `stores.Store`."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema

    def check(self, where: str, features: Any, labels: Any) -> Dense:
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

    def begin(self, path: Path, name: str, split: str, shard_rows: int | None) -> "_DenseOutput":
        """See `stores.Store`."""
        most_rows = shard_rows or max(1, shard_files.SHARD_BYTES // _feature_bytes(self.schema))
        return _DenseOutput(path, name, split, self.schema, most_rows)

    def open(self, file: StoredFile, rows: int) -> "DenseShard":
        """See `stores.Store`."""
        return DenseShard(file, self.schema, rows)

    def columns(self, rows: int, row_bytes: int) -> "tuple[ArrayColumn, ArrayColumn]":
        """See `stores.Store`."""
        schema = self.schema
        features = ArrayColumn((rows, *schema.feature_shape), schema.feature_dtype)
        return features, ArrayColumn((rows,), "int64")

    @staticmethod
    def choose(stored: Dense, rows: Integers) -> Dense:
        """See `stores.Store`."""
        features, labels = stored
        chosen = _aligned((len(rows), *features.shape[1:]), features.dtype)
        # The rows exist. To find that out, numpy would fill a copy of `chosen` first.
        np.take(features, rows, axis=0, out=chosen, mode="clip")
        return chosen, labels[rows]

    @staticmethod
    def gather(
        own: Dense, row_counts: Integers, gather: Callable[[Array, Integers, str], Array]
    ) -> Dense:
        """See `stores.Store`."""

        def gathered(part: Array) -> Array:
            width = int(np.prod(part.shape[1:], dtype=np.int64))
            return gather(part, row_counts, f"{row_counts.sum()} rows of {width} numbers")

        features, labels = own
        return gathered(features), gathered(labels)

    @staticmethod
    def batch(parts: Sequence[Dense]) -> "tuple[Tensor, Tensor]":
        """Features float32 [n, width], labels int64 [n]; bytes become 0 to 1."""
        import torch  # here: writing data sets needs no torch

        def joined(part: Sequence[Array]) -> torch.Tensor:
            tensors = [torch.from_numpy(values) for values in part]
            return tensors[0] if len(tensors) == 1 else torch.cat(tensors)

        features, labels = (joined(part) for part in zip(*parts, strict=True))
        flat = features.flatten(start_dim=1)
        return flat.float().div_(255) if flat.dtype == torch.uint8 else flat, labels


def _feature_bytes(schema: Schema) -> int:
    return schema.features * np.dtype(schema.feature_dtype).itemsize


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An array aligned like a tensor: a product's last bits may depend on that."""
    size_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = np.empty(size_bytes + _ALIGNMENT, dtype=np.uint8)
    begin = -memory.ctypes.data % _ALIGNMENT
    return memory[begin : begin + size_bytes].view(dtype).reshape(shape)


class _DenseOutput(ShardOutput):
    def _create(self, file: h5py.File, schema: Schema) -> None:
        self._features = self._dataset(
            file, "features", schema.feature_shape, schema.feature_dtype, _feature_bytes(schema)
        )
        about = f"one row a sample. {schema.feature_description}".rstrip()
        self._features.attrs["description"] = about
        self._labels = self._dataset(file, "labels", (), "int64", 8)
        self._labels.attrs["description"] = "index of the sample's class in `classes`, from 0"
        shard_files.describe_classes(self._labels, schema.outputs, schema.classes)

    def _dataset(
        self, file: h5py.File, name: str, shape: tuple[int, ...], dtype: str, row_bytes: int
    ) -> h5py.Dataset:
        # Never longer than the shard: the last chunk is stored at its full length.
        assert self._most_rows is not None
        chunk_rows = min(self._most_rows, max(1, shard_files.CHUNK_BYTES // row_bytes))
        return shard_files.create(file, name, shape, dtype, chunk_rows)

    def _put(self, features: Array, labels: Array, start: int, stop: int) -> None:
        end = self.rows + stop - start
        for dataset, values in ((self._features, features), (self._labels, labels)):
            dataset.resize(end, axis=0)
            dataset[self.rows : end] = values[start:stop]


class DenseShard:
    """An open shard of dense rows; see `stores.StoredShard`."""

    def __init__(self, file: StoredFile, schema: Schema, rows: int) -> None:
        self.file, self._outputs = file, schema.outputs
        shape = (rows, *schema.feature_shape)
        self._features = file.dataset("features", schema.feature_dtype, shape)
        self._labels = file.dataset("labels", "int64", (rows,))
        self.block_bytes = int(np.prod(self._features.chunks)) * self._features.dtype.itemsize

    def blocks(self, rows: Integers) -> Integers:
        """See `stores.StoredShard`."""
        return rows // int(self._features.chunks[0])

    def read(self, start: int, stop: int) -> Dense:
        """See `stores.StoredShard`."""
        wanted, rows = np.s_[start:stop], stop - start
        features = np.empty((rows, *self._features.shape[1:]), dtype=self._features.dtype)
        labels = np.empty(rows, dtype=np.int64)
        with self.file.reporting("features"):
            self._features.read_direct(features, wanted)
        with self.file.reporting("labels"):
            self._labels.read_direct(labels, wanted)
        if len(labels) and not 0 <= labels.min() <= labels.max() < self._outputs:
            at = int(np.flatnonzero((labels < 0) | (labels >= self._outputs))[0])
            raise self.file.error(
                f"`labels` must be 0 to {self._outputs - 1}, as {META_FILE} has {self._outputs} "
                f"classes (got {labels[at]} in row {start + at})"
            )
        return features, labels


class ArrayColumn:
    """See `stores.Column`; `shape` is the shape of all rows."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self._values = np.empty(shape, dtype=dtype)
        self._filled = 0

    def add(self, rows: Array) -> None:
        """See `stores.Column`."""
        if len(rows) == len(self._values):
            self._values = rows
            return
        self._values[self._filled : self._filled + len(rows)] = rows
        self._filled += len(rows)

    def rows(self) -> Array:
        """See `stores.Column`."""
        return self._values

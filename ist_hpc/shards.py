"""Reading a data set of HDF5 shards: `Dataset`. Writing one: `DatasetWriter` (shard_writer.py).

A data set is a folder (docs/data-format.md):

    meta.json       what the data is, how it was made, and of each shard its rows and SHA-256
    train-0000.h5   /features  [n, *feature_shape]  float32 or uint8, chunked, fletcher32
    train-0001.h5   /labels    [n]                  int64,            chunked, fletcher32
    test-0000.h5    ...

Rows are numbered through all shards of a split, in the order of `meta.json`. No MPI and no torch in
here, and nothing that is read can run code. Whatever is wrong with a file is an `InputError` that
names it.
"""

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from ist_hpc.errors import InputError
from ist_hpc.files import sha256_of
from ist_hpc.shard_meta import META_FILE, SPLITS, Meta, Shard, load_meta
from ist_hpc.shard_writer import DatasetWriter

__all__ = ["SPLITS", "Dataset", "DatasetWriter", "Shard"]

_MOST_OPEN_FILES = 64  # well under the usual limit of 1024 a process
_MOST_RUN_BYTES = 8 * 1024 * 1024  # bounds the extra memory of `take`

Rows = tuple[npt.NDArray[Any], npt.NDArray[np.int64]]


class Dataset:
    """A data set on disk, open for reading; `Dataset.open(path)`, and `close()` or `with`.

    `feature_shape`, `feature_dtype` ("float32" or "uint8") and `classes` describe a row; `shards`
    maps "train" and/or "test" to its `Shard`s; `made_by` says how the data was made. HDF5 files are
    opened when first read. Not for use by several threads at once.
    """

    def __init__(self, path: Path, meta: Meta) -> None:
        self.path = path
        self.name = meta.name
        self.feature_shape = meta.feature_shape
        self.feature_dtype = meta.feature_dtype
        self.feature_description = meta.feature_description
        self.classes = meta.classes
        self.made_by = meta.made_by
        self.shards: dict[str, tuple[Shard, ...]] = dict(meta.shards)
        self._starts = {
            split: np.cumsum([0, *(shard.rows for shard in shards)], dtype=np.int64)
            for split, shards in self.shards.items()
        }
        self._open_files: OrderedDict[tuple[str, int], _OpenShard] = OrderedDict()

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Dataset":
        """Check `meta.json` in the folder `path`, opening no HDF5 file. Raises InputError."""
        return cls(Path(path), load_meta(Path(path)))

    def __enter__(self) -> "Dataset":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every file; a later read opens what it needs again."""
        while self._open_files:
            self._open_files.popitem()[1].close()

    @property
    def features(self) -> int:
        """Numbers in one row's features."""
        return int(np.prod(self.feature_shape, dtype=np.int64))

    def rows(self, split: str) -> int:
        """Number of rows of `split`. InputError if the data set has no such split."""
        return int(self._split_starts(split)[-1])

    def shard_range(self, split: str, index: int) -> tuple[int, int]:
        """The rows of the split, start to stop, that shard number `index` holds."""
        starts = self._split_starts(split)
        return int(starts[index]), int(starts[index + 1])

    def check_shard(self, split: str, index: int, checksum: bool = True) -> None:
        """Check one shard against `meta.json`; raises InputError that names the file.

        Its presence and size; with `checksum` its SHA-256, which reads all of it and is what
        covers HDF5's own metadata; then names, shapes, dtypes, rows and fletcher32 of the datasets.
        """
        self._split_starts(split)
        shard = self.shards[split][index]
        path = self.path / shard.file
        with self._reporting(path):
            size = path.stat().st_size
        if size != shard.bytes:
            what = "is empty" if size == 0 else f"has {size} bytes"
            raise InputError(
                f"{path}: the file {what}, {META_FILE} says {shard.bytes} bytes; {self._fix()}"
            )
        if checksum:
            with self._reporting(path):
                found = sha256_of(path)
            if found != shard.sha256:
                raise InputError(
                    f"{path}: the SHA-256 {found[:12]}... is not that of {META_FILE}, "
                    f"{shard.sha256[:12]}...; the file is damaged or was changed; {self._fix()}"
                )
        self._open_shard(path, shard).close()

    def read(self, split: str, start: int, stop: int) -> Rows:
        """Rows `start` to `stop` of `split`: (features [n, *feature_shape], labels int64 [n]).

        Features have the stored dtype; both arrays are new and C-contiguous. Raises IndexError for
        rows that do not exist, InputError for a file that is missing or damaged.
        """
        if not 0 <= start <= stop <= self.rows(split):
            raise IndexError(f"rows {start} to {stop} of {self.rows(split)} {split} rows")
        features, labels = self._empty(stop - start)
        for index, first, last in self._pieces(split, start, stop):
            begin = int(self._starts[split][index])
            place = slice(first - start, last - start)
            self._fill(split, index, first - begin, features[place], labels[place])
        return features, labels

    def take(self, split: str, rows: npt.NDArray[np.int64]) -> Rows:
        """The given rows of `split`, as `read` gives them; `rows` is int64 [n], ascending.

        Reads every run of neighbouring chunks that holds wanted rows once, instead of row by row.
        Repeated rows are allowed. Raises as `read` does, and ValueError if `rows` is not ascending.
        """
        rows = np.asarray(rows, dtype=np.int64)
        features, labels = self._empty(len(rows))
        if len(rows) == 0:
            return features, labels
        if (np.diff(rows) < 0).any():
            raise ValueError("rows must be in ascending order; sort them and undo it afterwards")
        if rows[0] < 0 or rows[-1] >= self.rows(split):
            raise IndexError(f"rows {rows[0]} to {rows[-1]} of {self.rows(split)} {split} rows")
        cuts = np.searchsorted(rows, self._starts[split])
        for index in np.flatnonzero(np.diff(cuts)):
            place = slice(int(cuts[index]), int(cuts[index + 1]))
            local = rows[place] - self._starts[split][index]
            self._gather(split, int(index), local, features[place], labels[place])
        return features, labels

    def _split_starts(self, split: str) -> npt.NDArray[np.int64]:
        if split not in self._starts:
            has = ", ".join(self._starts)
            raise InputError(f"{self.path} has no {split} rows (it has: {has})")
        return self._starts[split]

    def _empty(self, rows: int) -> Rows:
        features = np.empty((rows, *self.feature_shape), dtype=self.feature_dtype)
        return features, np.empty(rows, dtype=np.int64)

    def _pieces(self, split: str, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(shard, first row, end row) for each shard that has some of the rows start to stop."""
        starts = self._starts[split]
        index = int(np.searchsorted(starts, start, side="right")) - 1
        while start < stop:
            end = min(stop, int(starts[index + 1]))
            yield index, start, end
            start, index = end, index + 1

    def _gather(
        self,
        split: str,
        index: int,
        rows: npt.NDArray[np.int64],
        features: npt.NDArray[Any],
        labels: npt.NDArray[np.int64],
    ) -> None:
        """Fill the arrays with the given rows of one shard, counted from its own start."""
        shard = self._opened(split, index)
        most_chunks = max(1, _MOST_RUN_BYTES // shard.chunk_bytes)
        for first, last in _runs(rows // shard.chunk_rows, most_chunks):
            low, high = int(rows[first]), int(rows[last - 1]) + 1
            if high - low == last - first and (np.diff(rows[first:last]) == 1).all():
                self._fill(split, index, low, features[first:last], labels[first:last])
                continue
            block = self._empty(high - low)
            self._fill(split, index, low, *block)
            wanted = rows[first:last] - low
            features[first:last], labels[first:last] = block[0][wanted], block[1][wanted]

    def _fill(
        self,
        split: str,
        index: int,
        start: int,
        features: npt.NDArray[Any],
        labels: npt.NDArray[np.int64],
    ) -> None:
        """Fill the arrays with one shard's rows from its row `start` on."""
        shard = self._opened(split, index)
        wanted = np.s_[start : start + len(labels)]
        with self._reporting(shard.path, "features"):
            shard.features.read_direct(features, wanted)
        with self._reporting(shard.path, "labels"):
            shard.labels.read_direct(labels, wanted)
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.classes):
            at = int(np.flatnonzero((labels < 0) | (labels >= len(self.classes)))[0])
            raise InputError(
                f"{shard.path}: `labels` must be 0 to {len(self.classes) - 1}, as {META_FILE} has "
                f"{len(self.classes)} classes (got {labels[at]} in row {start + at}); {self._fix()}"
            )

    def _opened(self, split: str, index: int) -> "_OpenShard":
        key = split, index
        if key not in self._open_files:
            if len(self._open_files) >= _MOST_OPEN_FILES:
                self._open_files.popitem(last=False)[1].close()
            shard = self.shards[split][index]
            self._open_files[key] = self._open_shard(self.path / shard.file, shard)
        self._open_files.move_to_end(key)
        return self._open_files[key]

    def _open_shard(self, path: Path, shard: Shard) -> "_OpenShard":
        with self._reporting(path):
            # Best effort: Lustre and NFS are often mounted without locks, and nobody writes here.
            file = h5py.File(path, "r", locking="best-effort")
        try:
            with self._reporting(path):
                features = self._checked(file, path, "features", self.feature_dtype, shard.rows)
                labels = self._checked(file, path, "labels", "int64", shard.rows)
                return _OpenShard(path, file, features, labels)
        except BaseException:
            file.close()
            raise

    def _checked(
        self, file: h5py.File, path: Path, name: str, dtype: str, rows: int
    ) -> h5py.Dataset:
        """The dataset `name`, or InputError where it is not what `meta.json` says."""
        names = sorted(file)
        if name not in names:
            has = ", ".join(names) or "nothing"
            raise InputError(f"{path}: no dataset `{name}` (it has {has}); {self._fix()}")
        dataset = file[name]
        if not isinstance(dataset, h5py.Dataset):
            raise InputError(f"{path}: `{name}` must be a dataset, not a group; {self._fix()}")
        shape = (rows, *self.feature_shape) if name == "features" else (rows,)
        if dataset.shape != shape or dataset.dtype != np.dtype(dtype):
            empty = "the shard is empty: " if dataset.shape and dataset.shape[0] == 0 else ""
            raise InputError(
                f"{path}: {empty}`{name}` must be {dtype} of shape {shape}, as {META_FILE} says "
                f"(got {dataset.dtype}, {dataset.shape}); {self._fix()}"
            )
        if dataset.chunks is None or not dataset.fletcher32:
            raise InputError(
                f"{path}: `{name}` is stored without the checksum fletcher32, so damage would go "
                "unseen; write the data set with ist_hpc.shards.DatasetWriter"
            )
        # HDF5 reads a chunk that was never stored as zeros, without an error.
        expected = int(np.prod([-(-n // c) for n, c in zip(shape, dataset.chunks, strict=True)]))
        stored = dataset.id.get_num_chunks()
        if stored != expected:
            raise InputError(
                f"{path}: `{name}` has {stored} of {expected} blocks; the file is damaged or was "
                f"not completely written; {self._fix()}"
            )
        return dataset

    @contextmanager
    def _reporting(self, path: Path, dataset: str = "") -> Iterator[None]:
        """Turn whatever a missing or damaged file makes HDF5 raise into an InputError."""
        try:
            yield
        except FileNotFoundError:
            raise InputError(
                f"{path}: no such file, but {META_FILE} lists it; {self._fix()}"
            ) from None
        except PermissionError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
            # h5py raises each of these for one kind of damaged metadata or another.
            if "filter returned failure" in str(error):
                what = f"checksum of a block of `{dataset}` does not match; the file is damaged"
            else:
                what = f"HDF5 cannot read it ({error}); the file is damaged or not an HDF5 file"
            raise InputError(f"{path}: {what}; {self._fix()}") from error

    def _fix(self) -> str:
        return f"copy the data again, or make it again (it was made by: {self.made_by['command']})"


@dataclass(frozen=True)
class _OpenShard:
    """An open file whose datasets are as `meta.json` says."""

    path: Path
    file: h5py.File
    features: h5py.Dataset
    labels: h5py.Dataset

    @property
    def chunk_rows(self) -> int:
        return int(self.features.chunks[0])

    @property
    def chunk_bytes(self) -> int:
        return int(np.prod(self.features.chunks)) * self.features.dtype.itemsize

    def close(self) -> None:
        with suppress(OSError, RuntimeError):  # a damaged file may refuse; it was only read
            self.file.close()


def _runs(chunk_of_row: npt.NDArray[np.int64], most_chunks: int) -> Iterator[tuple[int, int]]:
    """Cut ascending chunk numbers into runs of neighbouring chunks, `most_chunks` at the most.

    Yields (first, last) positions in `chunk_of_row`; no chunk is in two runs.
    """
    chunks, positions = np.unique(chunk_of_row, return_index=True)
    begin = 0
    for k in range(1, len(chunks)):
        if chunks[k] != chunks[k - 1] + 1 or chunks[k] - chunks[begin] >= most_chunks:
            yield int(positions[begin]), int(positions[k])
            begin = k
    if len(chunks):
        yield int(positions[begin]), len(chunk_of_row)

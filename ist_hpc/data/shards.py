"""Reads a data set of HDF5 shards: `Dataset`. `DatasetWriter` (in writing/) writes one.

A data set is a folder (docs/data-format.md):

    meta.json        what the data is, how it was made, and the rows and SHA-256 of each shard
    train-0000.h5    rows, as described in dense.py and sparse.py
    train-0001.h5
    test-0000.h5
    label-counts.h5  in a sparse set: in how many train rows each label occurs

Rows are numbered through all shards of a split, in the order of `meta.json`. This file uses no MPI
and no torch, and nothing that it reads can run code. Any error in a file is an `InputError` that
names it.
"""

import os
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from ist_hpc.common.errors import InputError
from ist_hpc.data.label_counts import read_label_counts
from ist_hpc.data.meta_reading import load_meta
from ist_hpc.data.shard_files import StoredFile, check_whole
from ist_hpc.data.shard_meta import SPLITS, Meta, Shard
from ist_hpc.data.stores import StoredRows, StoredShard, Window, store_of
from ist_hpc.data.writing.writer import DatasetWriter

__all__ = ["SPLITS", "Dataset", "DatasetWriter", "Shard", "StoredRows"]

_MOST_OPEN_FILES = 64  # well under the usual limit of 1024 per process
_MOST_RUN_BYTES = 8 * 1024 * 1024  # bounds the extra memory of `take`


class Dataset:
    """A data set on disk, open for reading; `Dataset.open(path)`, and `close()` or `with`.

    `kind` ("dense" or "sparse"), `feature_shape`, `feature_dtype` ("float32" or "uint8"), `outputs`
    (the number of classes) and `classes` (their names, () where they have none) describe a row;
    `shards` maps "train" and/or "test" to its `Shard`s; `made_by` says how the data was made;
    `store` does what can be done with rows that were read. HDF5 files are opened when first read.
    Not for use by several threads at once.
    """

    def __init__(self, path: Path, meta: Meta) -> None:
        self.path = path
        self._meta = meta
        self._label_counts: npt.NDArray[np.int64] | None = None
        self.store = store_of(meta)
        self.name = meta.name
        self.kind = meta.kind
        self.feature_shape = meta.feature_shape
        self.feature_dtype = meta.feature_dtype
        self.feature_description = meta.feature_description
        self.classes = meta.classes
        self.outputs = meta.outputs
        self.made_by = meta.made_by
        self.shards: dict[str, tuple[Shard, ...]] = dict(meta.shards)
        self._starts = {
            split: np.cumsum([0, *(shard.rows for shard in shards)], dtype=np.int64)
            for split, shards in self.shards.items()
        }
        self._open_files: OrderedDict[tuple[str, int], StoredShard] = OrderedDict()

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
            self._open_files.popitem()[1].file.close()

    @property
    def features(self) -> int:
        """Numbers in one row's features."""
        return self._meta.features

    @property
    def sparse(self) -> bool:
        """Whether features and sets of labels are sparse, `csr.Csr`."""
        return self._meta.sparse

    def rows(self, split: str) -> int:
        """Number of rows of `split`. InputError if the data set has no such split."""
        return int(self._split_starts(split)[-1])

    def row_bytes(self, split: str) -> int:
        """Approximate bytes in memory of a row of `split`; as `shard_meta.Meta.row_bytes`."""
        self._split_starts(split)
        return self._meta.row_bytes(split)

    def label_counts(self) -> npt.NDArray[np.int64] | None:
        """In how many train rows each label occurs, int64 [outputs]; None if not stored.

        The first call checks the file's size, SHA-256 and content. Raises InputError.
        """
        file = self._meta.label_counts
        if file is not None and self._label_counts is None:
            self._label_counts = read_label_counts(self.path, file, self.outputs, self._fix())
        return self._label_counts

    def shard_range(self, split: str, index: int) -> tuple[int, int]:
        """The rows of the split, start to stop, in shard number `index`."""
        starts = self._split_starts(split)
        return int(starts[index]), int(starts[index + 1])

    def check_shard(self, split: str, index: int, checksum: bool = True) -> None:
        """Check one shard against `meta.json`; raises InputError that names the file.

        Checks its presence and size; with `checksum` its SHA-256, which reads all of it and covers
        HDF5's own metadata; then names, shapes, dtypes, rows and fletcher32 of the datasets.
        Their content is checked when it is read.
        """
        self._split_starts(split)
        shard = self.shards[split][index]
        path = self.path / shard.file
        check_whole(path, shard, checksum, self._fix())
        self._open_shard(split, index).file.close()

    def read(self, split: str, start: int, stop: int) -> StoredRows:
        """Rows `start` to `stop` of `split`, as they are stored.

        Dense: (features [n, *feature_shape] of the stored dtype, labels int64 [n]); both are new
        and C-contiguous. Sparse: (`Csr` with values, `Csr` without). Raises IndexError for rows
        that do not exist, InputError for a file that is missing or damaged.
        """
        if not 0 <= start <= stop <= self.rows(split):
            raise IndexError(f"rows {start} to {stop} of {self.rows(split)} {split} rows")
        window = self.window(split, stop - start)
        self.read_into(window, split, start, stop)
        return window.rows()

    def window(self, split: str, rows: int) -> Window:
        """Memory for the given number of rows of `split`, to be filled by `read_into`."""
        return Window(self.store, rows, self.row_bytes(split))

    def read_into(self, window: Window, split: str, start: int, stop: int) -> None:
        """Append existing rows of `split` to those in the window. Raises InputError.

        If they lie in several shards, those of one shard are in memory twice for a moment.
        """
        for index, first, last in self._pieces(split, start, stop):
            begin = int(self._starts[split][index])
            window.add(self._opened(split, index).read(first - begin, last - begin))

    def take(self, split: str, rows: npt.NDArray[np.int64]) -> StoredRows:
        """The given rows of `split`, as `read` returns them; `rows` is int64 [n], ascending.

        Reads every run of neighbouring chunks that holds wanted rows once, instead of row by row.
        Repeated rows are allowed. Raises as `read` does, and ValueError if `rows` is not ascending.
        """
        rows = np.asarray(rows, dtype=np.int64)
        window = self.window(split, len(rows))
        if len(rows) == 0:
            return window.rows()
        if (np.diff(rows) < 0).any():
            raise ValueError("rows must be in ascending order; sort them and undo it afterwards")
        if rows[0] < 0 or rows[-1] >= self.rows(split):
            raise IndexError(f"rows {rows[0]} to {rows[-1]} of {self.rows(split)} {split} rows")
        cuts = np.searchsorted(rows, self._starts[split])
        for index in np.flatnonzero(np.diff(cuts)):
            local = rows[int(cuts[index]) : int(cuts[index + 1])] - self._starts[split][index]
            for block in self._take(split, int(index), local):
                window.add(block)
        return window.rows()

    def _take(self, split: str, index: int, rows: npt.NDArray[np.int64]) -> Iterator[StoredRows]:
        """The given rows of one shard, counted from its own start, in blocks."""
        shard = self._opened(split, index)
        most_blocks = max(1, _MOST_RUN_BYTES // shard.block_bytes)
        for first, last in _runs(shard.blocks(rows), most_blocks):
            wanted = rows[first:last]
            start = int(wanted[0])
            between = shard.read(start, int(wanted[-1]) + 1)
            whole = (np.diff(wanted) == 1).all()
            yield between if whole else self.store.choose(between, wanted - start)

    def _split_starts(self, split: str) -> npt.NDArray[np.int64]:
        if split not in self._starts:
            has = ", ".join(self._starts)
            raise InputError(f"{self.path} has no {split} rows (it has: {has})")
        return self._starts[split]

    def _pieces(self, split: str, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(shard, first row, end row) for each shard with rows between start and stop."""
        starts = self._starts[split]
        index = int(np.searchsorted(starts, start, side="right")) - 1
        while start < stop:
            end = min(stop, int(starts[index + 1]))
            yield index, start, end
            start, index = end, index + 1

    def _opened(self, split: str, index: int) -> StoredShard:
        key = split, index
        if key not in self._open_files:
            if len(self._open_files) >= _MOST_OPEN_FILES:
                self._open_files.popitem(last=False)[1].file.close()
            self._open_files[key] = self._open_shard(split, index)
        self._open_files.move_to_end(key)
        return self._open_files[key]

    def _open_shard(self, split: str, index: int) -> StoredShard:
        shard = self.shards[split][index]
        file = StoredFile(self.path / shard.file, self._fix())
        try:
            file.must_be_of(split)
            return self.store.open(file, shard.rows)
        except BaseException:
            file.close()
            raise

    def _fix(self) -> str:
        return f"copy the data again, or make it again (it was made by: {self.made_by['command']})"


def _runs(chunk_of_row: npt.NDArray[np.int64], most_chunks: int) -> Iterator[tuple[int, int]]:
    """Cut ascending chunk numbers into runs of at most `most_chunks` neighbouring chunks.

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

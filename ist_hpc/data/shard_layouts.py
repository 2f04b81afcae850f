"""Both kinds of shards behind one interface: what the writer and the reader of a data set use."""

from typing import Any, Protocol

import h5py
import numpy as np
import numpy.typing as npt

from ist_hpc.data.shard_dense import DenseLayout
from ist_hpc.data.shard_files import StoredFile
from ist_hpc.data.shard_meta import Schema
from ist_hpc.data.shard_sparse import SparseLayout

StoredRows = tuple[Any, Any]
"""(features, labels). Dense: arrays [n, *feature_shape] and int64 [n]. Sparse: both `csr.Csr`."""


class Writing(Protocol):
    """A shard that is being written."""

    @property
    def full(self) -> bool:
        """Whether the next row begins another shard."""

    def room(self, features: Any, labels: Any, start: int) -> int:
        """Before which row of a block the shard is full, if its rows from `start` on are added."""

    def append(self, features: Any, labels: Any, start: int, stop: int) -> None:
        """Add the rows `start` to `stop` of a checked block; raises OSError."""

    def finish(self) -> None:
        """Write what is still in memory; raises OSError."""


class Stored(Protocol):
    """A shard that is open for reading, whose objects are what `meta.json` says.

    block_bytes  about what a block of `blocks` takes in memory
    """

    block_bytes: int

    def blocks(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Of ascending rows the number of the block on disk that each begins in; InputError."""


class Collected(Protocol):
    """Rows that are being read, from one shard after another; the methods raise InputError."""

    def add(self, stored: Any, start: int, stop: int) -> None:
        """Read the rows `start` to `stop` of a shard."""

    def add_some(self, stored: Any, rows: npt.NDArray[np.int64]) -> None:
        """Read the given rows, ascending, and in passing all those between."""

    def result(self) -> StoredRows:
        """All rows that were added."""


class Layout(Protocol):
    """How rows of one schema stand in a shard."""

    schema: Schema

    def check(self, where: str, features: Any, labels: Any) -> StoredRows:
        """The rows if they may be written; otherwise InputError, which begins with `where`."""

    def begin(self, file: h5py.File, shard_rows: int | None) -> Writing:
        """Make the datasets of a shard of so many rows (None: of about 256 MiB); OSError."""

    def open(self, file: StoredFile, rows: int) -> Stored:
        """The shard, of so many rows; raises InputError."""

    def collect(self, rows: int) -> Collected:
        """For so many rows, none read yet."""


def layout_of(schema: Schema) -> Layout:
    """The layout of the schema's kind."""
    return SparseLayout(schema) if schema.kind == "sparse" else DenseLayout(schema)

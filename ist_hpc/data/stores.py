"""The two row stores: all that differs between dense and sparse rows, in shards and in memory.

`store_of` chooses one by the kind in `meta.json`. Code that reads, writes, chooses or gathers rows
calls the store and need not know the kind.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from ist_hpc.data.dense import DenseStore
from ist_hpc.data.shard_files import ShardOutput, StoredFile
from ist_hpc.data.shard_meta import Schema
from ist_hpc.data.sparse import SparseStore

if TYPE_CHECKING:
    from ist_hpc.data.sparse_rows import Batch

Array = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]

StoredRows = tuple[Any, Any]
"""(features, labels). Dense: arrays [n, *feature_shape] and int64 [n]. Sparse: both `csr.Csr`."""

Gather = Callable[[Array, Integers, str], Array]
"""(own, counts, what) -> the arrays of all ranks one after another; rank r has `counts[r]` rows.

`what` describes them all, for the `InputError` if MPI cannot count them. Collective.
"""


class StoredShard(Protocol):
    """A shard that is open for reading, whose objects match `meta.json`.

    block_bytes  approximate bytes in memory of a block of `blocks`
    """

    file: StoredFile
    block_bytes: int

    def blocks(self, rows: Integers) -> Integers:
        """For ascending rows, the block on disk in which each begins; raises InputError."""

    def read(self, start: int, stop: int) -> StoredRows:
        """The rows `start` to `stop`, in new arrays; raises InputError."""


class Column(Protocol):
    """Features or labels of a number of rows in memory, filled from first to last."""

    def add(self, rows: Any) -> None:
        """Append rows; if these are all, keep them without a copy."""

    def rows(self) -> Any:
        """All rows, as views; all must have been added."""


class Store(Protocol):
    """What can be done with rows of one schema."""

    schema: Schema

    def check(self, where: str, features: Any, labels: Any) -> StoredRows:
        """The rows, if they may be written; else raises InputError, which begins with `where`."""

    def begin(self, path: Path, name: str, split: str, shard_rows: int | None) -> ShardOutput:
        """A new shard for `shard_rows` rows (None: about 256 MiB) to write; raises OSError."""

    def open(self, file: StoredFile, rows: int) -> StoredShard:
        """The shard in the file, with this number of rows; raises InputError."""

    def columns(self, rows: int, row_bytes: int) -> tuple[Column, Column]:
        """Empty columns for features and labels of rows with about `row_bytes` each."""

    def choose(self, stored: StoredRows, rows: Integers) -> StoredRows:
        """A copy of the given rows, in that order."""

    def gather(self, own: StoredRows, row_counts: Integers, gather: Gather) -> StoredRows:
        """The rows of all ranks, by rank; each rank has its number in `row_counts`.

        Collective, as `gather` is; raises InputError if `gather` does.
        """

    def batch(self, parts: Sequence[StoredRows]) -> "Batch":
        """The rows of all parts as the networks take them; at least one part. Imports torch."""


class Window:
    """A number of rows in memory, filled from first to last."""

    def __init__(self, store: Store, rows: int, row_bytes: int) -> None:
        self._features, self._labels = store.columns(rows, row_bytes)

    def add(self, stored: StoredRows) -> None:
        """Append a block of rows."""
        features, labels = stored
        self._features.add(features)
        self._labels.add(labels)

    def rows(self) -> StoredRows:
        """All rows, as views; the window must be full."""
        return self._features.rows(), self._labels.rows()


def store_of(schema: Schema) -> Store:
    """The store of the schema's kind."""
    return SparseStore(schema) if schema.sparse else DenseStore(schema)

"""A rank's rows, the endless stream of its batches, and rows that all ranks need together."""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ist_hpc.common import random_streams
from ist_hpc.common.blocks import block_bounds
from ist_hpc.common.errors import InputError
from ist_hpc.data.images import Augmentation, Scaling, as_batch
from ist_hpc.data.shards import Dataset
from ist_hpc.data.sparse_rows import Batch

if TYPE_CHECKING:
    from mpi4py import MPI

_BLOCK_BYTES = 1 << 20  # rows read at a time; kept together if the data exceed the window
_MOST_MPI_ELEMENTS = 2**31 - 1  # counts and displacements are C ints


def refuse_uncountable(rows: int, width: int) -> None:
    """Raise `InputError` if MPI cannot count the numbers of this many dense rows in a gather.

    The count for sparse rows is known, and checked, only when they are gathered.
    """
    _refuse_uncountable(rows, rows * width, f"{rows} rows of {width} numbers")


def _refuse_uncountable(rows: int, numbers: int, what: str) -> None:
    if numbers > _MOST_MPI_ELEMENTS:
        raise InputError(
            f"{what} are more than MPI gathers at a time, 2^31 - 1 numbers; set "
            "`evaluate.batch_rows` and `evaluate.calibration_rows` to at most "
            f"{rows * _MOST_MPI_ELEMENTS // numbers}"
        )


def rank_segments(
    dataset: Dataset, split: str, assign: str, rank: int, ranks: int
) -> list[tuple[int, int]]:
    """The global rows of a rank, as (start, stop) segments; local.

    `assign` is `rows` (all rows divided evenly) or `files` (shards whose number modulo `ranks` is
    the rank). Raises `InputError` if a rank gets no row.
    """
    if assign == "rows":
        bounds = block_bounds(dataset.rows(split), ranks)
        segments = [(int(bounds[rank]), int(bounds[rank + 1]))]
    else:
        count = len(dataset.shards[split])
        segments = [dataset.shard_range(split, index) for index in range(rank, count, ranks)]
    if sum(stop - start for start, stop in segments) == 0:
        have = (
            f"{dataset.rows(split)} rows"
            if assign == "rows"
            else f"{len(dataset.shards[split])} "
            "shards (`data.assign: files` gives each rank its own)"
        )
        raise InputError(
            f"{dataset.path}: {have} of {split} are too few for {ranks} ranks, rank {rank} gets "
            "none; start fewer ranks or make more shards"
        )
    return segments


class BatchStream:
    """The batches of one rank: its rows, reshuffled each pass, without end. Local.

    The order depends on (seed, rank, pass), so the position in rows is the only state. Rows that
    fit in the window are read once, kept and shuffled as a whole; else blocks of rows are
    shuffled, read a window at a time, and the rows of a window shuffled. Dense rows are kept as
    they are stored; a batch of them is augmented and scaled when it is drawn.
    """

    def __init__(
        self,
        dataset: Dataset,
        segments: list[tuple[int, int]],
        batch_size: int,
        seed: int,
        rank: int,
        window_bytes: int,
        position_rows: int = 0,
        scaling: Scaling | None = None,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.batch_size = batch_size
        self.position_rows = position_rows
        self._dataset, self._segments = dataset, segments
        self._seed, self._purpose = seed, f"order/rank{rank}"
        self._scaling, self._augmentation = scaling, augmentation
        lengths = [stop - start for start, stop in segments]
        self._starts = np.cumsum([0, *lengths])
        self.rows = int(self._starts[-1])
        row_bytes = dataset.row_bytes("train")
        window_rows = max(1, window_bytes // row_bytes)
        self._piece_rows = max(1, _BLOCK_BYTES // row_bytes)
        block_rows = min(self._piece_rows, window_rows)
        if self.rows <= window_rows:
            block_rows = self.rows
        self._block_bounds = np.append(np.arange(0, self.rows, block_rows), self.rows)
        self._blocks_per_window = max(1, window_rows // block_rows)
        self._pass: int | None = None  # of the order of the blocks
        self._block_order = self._window_bounds = np.empty(0, dtype=np.int64)
        self._words = np.empty(0, dtype=np.uint64)  # for the augmentation, one per row of the pass
        self._loaded: tuple[int, int] | None = None  # (pass, window) of the order of the rows
        self._rows_of: tuple[int, ...] = ()  # the blocks whose rows are in memory
        self._window = dataset.window("train", 0)
        self._order = np.empty(0, dtype=np.int64)

    def next_batch(self) -> Batch:
        """The next batch, as `as_batch` makes it; InputError for a damaged shard."""
        parts = []
        wanted = self.batch_size
        while wanted:
            offset = self._load()
            chosen = self._order[offset : offset + wanted]
            features, labels = self._dataset.store.choose(self._window.rows(), chosen)
            if self._augmentation is not None:
                first = self.position_rows % self.rows
                words = self._words[first : first + len(chosen)]
                features = self._augmentation.apply(features, words)
            parts.append((features, labels))
            wanted -= len(chosen)
            self.position_rows += len(chosen)
        return as_batch(self._dataset, parts, self._scaling)

    def _load(self) -> int:
        """Load the window of the position; return the offset of the position in it."""
        pass_index, offset = divmod(self.position_rows, self.rows)
        if self._pass != pass_index:
            self._begin_pass(pass_index)
        bounds = self._window_bounds
        window = int(np.searchsorted(bounds, offset, side="right")) - 1
        if self._loaded != (pass_index, window):
            first = window * self._blocks_per_window
            blocks = self._block_order[first : first + self._blocks_per_window]
            size = int(bounds[window + 1] - bounds[window])
            self._read(tuple(blocks.tolist()), size)
            index = pass_index * (len(bounds) - 1) + window
            self._order = random_streams.permutation(self._purpose, self._seed, index, size)
            self._loaded = (pass_index, window)
        return offset - int(bounds[window])

    def _begin_pass(self, pass_index: int) -> None:
        """Shuffle the blocks, and find the offset of each window in the pass."""
        sizes = np.diff(self._block_bounds)
        purpose = f"{self._purpose}/blocks"
        self._block_order = random_streams.permutation(purpose, self._seed, pass_index, len(sizes))
        firsts = np.arange(0, len(sizes), self._blocks_per_window)
        of_windows = np.add.reduceat(sizes[self._block_order], firsts)
        self._window_bounds = np.cumsum([0, *of_windows])
        if self._augmentation is not None:
            self._words = self._augmentation.words(pass_index, self.rows)
        self._pass = pass_index

    def _read(self, blocks: tuple[int, ...], rows: int) -> None:
        if self._rows_of == blocks:
            return
        # Never two windows in memory, and only a piece of the new one twice.
        self._window, self._rows_of = self._dataset.window("train", 0), ()
        self._window = self._dataset.window("train", rows)
        for start, stop in self._pieces(blocks):
            self._dataset.read_into(self._window, "train", start, stop)
        self._rows_of = blocks

    def _pieces(self, blocks: tuple[int, ...]) -> Iterator[tuple[int, int]]:
        """The global rows of the blocks, in their order, as ranges of at most `_BLOCK_BYTES`."""
        for block in blocks:
            first, last = int(self._block_bounds[block]), int(self._block_bounds[block + 1])
            for start, stop in self._global(first, last):
                for begin in range(start, stop, self._piece_rows):
                    yield begin, min(begin + self._piece_rows, stop)

    def _global(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """The global rows of the local rows first to last."""
        for (start, stop), begin in zip(self._segments, self._starts, strict=False):
            low, high = max(first, int(begin)), min(last, int(begin) + stop - start)
            if low < high:
                yield start + low - int(begin), start + high - int(begin)


class CommonRows:
    """Rows that every rank needs, for calibration and evaluation of the sharded network.

    One rank reads each row (under `files` the one that has its shard). Rows are gathered as they
    are stored, and scaled, but not augmented.
    """

    def __init__(
        self,
        comm: "MPI.Comm",
        dataset: Dataset,
        split: str,
        assign: str,
        scaling: Scaling | None = None,
    ) -> None:
        self.comm, self.dataset, self.split, self.assign = comm, dataset, split, assign
        self.scaling = scaling
        self.rows = dataset.rows(split)
        self._shard_starts = [
            dataset.shard_range(split, i)[0] for i in range(len(dataset.shards[split]))
        ]

    def fetch(self, rows: npt.NDArray[np.int64]) -> Batch:
        """(features, labels) of ascending global rows, as `BatchStream` gives them. Collective.

        `rows` must be the same on all ranks. Raises `InputError` if MPI cannot gather as many
        at a time, or a shard is damaged.
        """
        ranks = self.comm.Get_size()
        if self.assign == "rows":
            reader = np.repeat(np.arange(ranks), np.diff(block_bounds(len(rows), ranks)))
        else:
            reader = (np.searchsorted(self._shard_starts, rows, side="right") - 1) % ranks
        own = self.dataset.take(self.split, rows[reader == self.comm.Get_rank()])
        counts = np.bincount(reader, minlength=ranks)
        store = self.dataset.store
        whole = store.gather(own, counts, partial(self._gather, len(rows))) if ranks > 1 else own
        back = np.argsort(np.argsort(reader, kind="stable"), kind="stable")
        if not np.array_equal(back, np.arange(len(rows))):
            whole = store.choose(whole, back)
        return as_batch(self.dataset, [whole], self.scaling)

    def batches(
        self, batch_rows: int, chosen: npt.NDArray[np.int64] | None = None
    ) -> Iterator[tuple[npt.NDArray[np.int64], Batch]]:
        """Rows in order: (rows, (features, labels)) of at most `batch_rows`. Collective.

        chosen  ascending; by default all
        """
        rows = np.arange(self.rows, dtype=np.int64) if chosen is None else chosen
        for start in range(0, len(rows), batch_rows):
            part = rows[start : start + batch_rows]
            yield part, self.fetch(part)

    def sample(self, count: int, seed: int, purpose: str = "calibration") -> npt.NDArray[np.int64]:
        """`count` rows (all, if fewer) that depend only on purpose and seed, ascending. Local."""
        order = random_streams.permutation(purpose, seed, 0, self.rows)
        return np.sort(order[:count])

    def _gather(
        self, rows: int, own: npt.NDArray[Any], counts: npt.NDArray[np.int64], what: str
    ) -> npt.NDArray[Any]:
        """See `stores.Gather`; for the given number of rows."""
        shape = int(counts.sum()), *own.shape[1:]
        _refuse_uncountable(rows, int(np.prod(shape, dtype=np.int64)), what)
        whole = np.empty(shape, dtype=own.dtype)
        self.comm.Allgatherv(own, [whole, counts * int(np.prod(shape[1:], dtype=np.int64))])
        return whole

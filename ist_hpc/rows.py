"""Which rows a rank has, the endless stream of its batches, and rows that all ranks need alike."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ist_hpc import streams
from ist_hpc.errors import InputError
from ist_hpc.placement import block_bounds
from ist_hpc.shards import Dataset

if TYPE_CHECKING:
    from mpi4py import MPI

_BLOCK_BYTES = 1 << 20  # rows read at a time; kept together if the data exceed the window
_MOST_MPI_ELEMENTS = 2**31 - 1  # counts and displacements are C ints


def refuse_uncountable(rows: int, width: int) -> None:
    """Raise `InputError` if MPI cannot count the numbers of so many rows, which are gathered."""
    if rows * width > _MOST_MPI_ELEMENTS:
        raise InputError(
            f"{rows} rows of {width} numbers are more than MPI gathers at a time, 2^31 - 1 "
            "numbers; set `evaluate.batch_rows` and `evaluate.calibration_rows` to at most "
            f"{_MOST_MPI_ELEMENTS // width}"
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


def as_features(features: npt.NDArray[Any]) -> Tensor:
    """Stored features as the networks take them: float32 [rows, width]; uint8 scaled to [0, 1]."""
    flat = torch.from_numpy(features).flatten(start_dim=1)
    return flat.float().div_(255) if flat.dtype == torch.uint8 else flat


class BatchStream:
    """The batches of one rank: its rows, reshuffled each pass, without end. Local.

    The order is a function of (seed, rank, pass), so the position in rows is all the state there
    is. Rows that fit in the window are read once, kept and shuffled whole; else blocks of rows are
    shuffled, read a window at a time, and the rows of a window shuffled.
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
    ) -> None:
        self.batch_size = batch_size
        self.position_rows = position_rows
        self._dataset, self._segments = dataset, segments
        self._seed, self._purpose = seed, f"order/rank{rank}"
        lengths = [stop - start for start, stop in segments]
        self._starts = np.cumsum([0, *lengths])
        self.rows = int(self._starts[-1])
        row_bytes = 4 * int(np.prod(dataset.feature_shape)) + 8
        window_rows = max(1, window_bytes // row_bytes)
        self._piece_rows = max(1, _BLOCK_BYTES // row_bytes)
        block_rows = min(self._piece_rows, window_rows)
        if self.rows <= window_rows:
            block_rows = self.rows
        self._block_bounds = np.append(np.arange(0, self.rows, block_rows), self.rows)
        self._blocks_per_window = max(1, window_rows // block_rows)
        self._pass: int | None = None  # of the order of the blocks
        self._block_order = self._window_bounds = np.empty(0, dtype=np.int64)
        self._loaded: tuple[int, int] | None = None  # (pass, window) of the order of the rows
        self._rows_of: tuple[int, ...] = ()  # the blocks whose rows are in memory
        self._features, self._labels = torch.empty(0), torch.empty(0)
        self._order = torch.empty(0, dtype=torch.int64)

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """The next batch: features float32 [batch_size, width], labels int64 [batch_size]."""
        parts = []
        wanted = self.batch_size
        while wanted:
            offset = self._load()
            chosen = self._order[offset : offset + wanted]
            parts.append((self._features[chosen], self._labels[chosen]))
            wanted -= len(chosen)
            self.position_rows += len(chosen)
        if len(parts) == 1:
            return parts[0]
        features, labels = zip(*parts, strict=True)
        return torch.cat(features), torch.cat(labels)

    def _load(self) -> int:
        """Bring the window of the position into memory; the offset of the position in it."""
        pass_index, offset = divmod(self.position_rows, self.rows)
        if self._pass != pass_index:
            self._begin_pass(pass_index)
        bounds = self._window_bounds
        window = int(np.searchsorted(bounds, offset, side="right")) - 1
        if self._loaded != (pass_index, window):
            first = window * self._blocks_per_window
            blocks = self._block_order[first : first + self._blocks_per_window]
            self._read(tuple(blocks.tolist()))
            index = pass_index * (len(bounds) - 1) + window
            order = streams.permutation(self._purpose, self._seed, index, len(self._labels))
            self._order = torch.from_numpy(order)
            self._loaded = (pass_index, window)
        return offset - int(bounds[window])

    def _begin_pass(self, pass_index: int) -> None:
        """Shuffle the blocks, and find the offset in the pass at which each window begins."""
        sizes = np.diff(self._block_bounds)
        purpose = f"{self._purpose}/blocks"
        self._block_order = streams.permutation(purpose, self._seed, pass_index, len(sizes))
        firsts = np.arange(0, len(sizes), self._blocks_per_window)
        of_windows = np.add.reduceat(sizes[self._block_order], firsts)
        self._window_bounds = np.cumsum([0, *of_windows])
        self._pass = pass_index

    def _read(self, blocks: tuple[int, ...]) -> None:
        if self._rows_of == blocks:
            return
        # Never two windows in memory, and of the one that is read only a piece twice.
        self._features = self._labels = torch.empty(0)
        self._rows_of = ()
        size = int(np.diff(self._block_bounds)[list(blocks)].sum())
        features = torch.empty(size, self._dataset.features)
        labels = torch.empty(size, dtype=torch.int64)
        filled = 0
        for start, stop in self._pieces(blocks):
            place = slice(filled, filled + stop - start)
            part, labels_of_part = self._dataset.read("train", start, stop)
            features[place] = as_features(part)
            labels[place] = torch.from_numpy(labels_of_part)
            filled = place.stop
        self._features, self._labels, self._rows_of = features, labels, blocks

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
    """Rows that every rank needs alike, for calibration and evaluation of the sharded network.

    Each row is read by one rank (under `files` by the one that has its shard) and gathered.
    """

    def __init__(self, comm: "MPI.Comm", dataset: Dataset, split: str, assign: str) -> None:
        self.comm, self.dataset, self.split, self.assign = comm, dataset, split, assign
        self.rows = dataset.rows(split)
        self._shard_starts = [
            dataset.shard_range(split, i)[0] for i in range(len(dataset.shards[split]))
        ]

    def fetch(self, rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Features float32 [n, width] and labels int64 [n] of ascending global rows. Collective.

        `rows` must be the same on all ranks. Raises `InputError` if MPI cannot gather as many
        at a time.
        """
        ranks = self.comm.Get_size()
        if self.assign == "rows":
            reader = np.repeat(np.arange(ranks), np.diff(block_bounds(len(rows), ranks)))
        else:
            reader = (np.searchsorted(self._shard_starts, rows, side="right") - 1) % ranks
        mine = rows[reader == self.comm.Get_rank()]
        features, labels = self.dataset.take(self.split, mine)
        counts = np.bincount(reader, minlength=ranks)
        all_features = self._gather(features, counts)
        all_labels = self._gather(labels, counts)
        back = np.argsort(np.argsort(reader, kind="stable"), kind="stable")
        if not np.array_equal(back, np.arange(len(rows))):
            all_features, all_labels = all_features[back], all_labels[back]
        return as_features(all_features), torch.from_numpy(all_labels)

    def batches(
        self, batch_rows: int
    ) -> Iterator[tuple[npt.NDArray[np.int64], tuple[Tensor, Tensor]]]:
        """All rows in order: (rows, (features, labels)) of at most `batch_rows`. Collective."""
        for start in range(0, self.rows, batch_rows):
            rows = np.arange(start, min(start + batch_rows, self.rows), dtype=np.int64)
            yield rows, self.fetch(rows)

    def sample(self, count: int, seed: int) -> npt.NDArray[np.int64]:
        """`count` rows (all, if fewer) that depend on the seed alone, ascending. Local."""
        order = streams.permutation("calibration", seed, 0, self.rows)
        return np.sort(order[:count])

    def _gather(self, part: npt.NDArray[Any], counts: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        if len(counts) == 1:
            return part
        rows, width = int(counts.sum()), int(np.prod(part.shape[1:], dtype=np.int64))
        refuse_uncountable(rows, width)
        whole = np.empty((rows, *part.shape[1:]), dtype=part.dtype)
        self.comm.Allgatherv(part, [whole, counts * width])
        return whole

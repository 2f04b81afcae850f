"""Rows that a rank holds in a round because it asked for them.

Of some tensors a local step uses few rows: of the output weights over many labels, those of the
labels that are trained in it. Their elements stay in home blocks through the whole run. A rank
knows before a round which rows its batches will use; it asks for them, holds these rows of its own
units in the round, and gives them back at its end. A row that several ranks ask for has other
units on each of them, so an element has one writer, as ever.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ist_hpc.common.blocks import Units, block_bounds


@dataclass(frozen=True, eq=False)
class Demand:
    """Which rows the ranks hold in a round, as far as one rank knows it.

    rank    whose demand it is
    size    rows of the tensors
    rows    what it asked for: global, ascending; int64 [rows]
    asked   by rank, what that one asked of the rows at home here: global, ascending; int64 each
    counts  of all ranks: rows that rank r asked of the home q; int64 [ranks, ranks]
    """

    rank: int
    size: int
    rows: Units
    asked: tuple[Units, ...]
    counts: npt.NDArray[np.int64]

    @property
    def ranks(self) -> int:
        """Ranks that ask, and that are asked."""
        return len(self.asked)

    @property
    def by_home(self) -> list[Units]:
        """`rows` by the rank that they are asked of."""
        return split_by_home(self.rows, self.size, self.ranks)


def split_by_home(rows: Units, size: int, ranks: int) -> list[Units]:
    """Ascending global rows by the rank that has them at home."""
    return np.split(rows, np.searchsorted(rows, block_bounds(size, ranks)[1:-1]))


def evenly(rank: int, size: int, ranks: int, rows: int) -> Demand:
    """A demand like those of a run in which each rank asks for so many rows, for costs. Local."""
    spread = np.linspace(0, size, min(max(rows, 0), size), endpoint=False).astype(np.int64)
    by_home = split_by_home(spread, size, ranks)
    counts = np.array([[len(part) for part in by_home]] * ranks, dtype=np.int64)
    return Demand(rank, size, spread, (by_home[rank],) * ranks, counts)

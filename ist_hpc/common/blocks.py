"""How units, rows or elements are divided over the ranks in contiguous blocks."""

import numpy as np
import numpy.typing as npt

Units = npt.NDArray[np.int64]


def block_bounds(size: int, ranks: int) -> Units:
    """Bounds of the balanced contiguous blocks of range(size); int64, shape [ranks + 1].

    Block r is bounds[r] to bounds[r + 1]; the first size % ranks blocks hold one unit more.
    """
    rank = np.arange(ranks + 1, dtype=np.int64)
    return rank * (size // ranks) + np.minimum(rank, size % ranks)


def block_of(size: int, ranks: int) -> Units:
    """The rank of the block of each unit in range(size); int64, shape [size]."""
    bounds = block_bounds(size, ranks)
    return np.repeat(np.arange(ranks, dtype=np.int64), bounds[1:] - bounds[:-1])

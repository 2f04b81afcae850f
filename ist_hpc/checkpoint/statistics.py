"""The values of a checkpoint's tensors, read a block of rows at a time."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ist_hpc.checkpoint.read import OpenCheckpoint

GROUPS = ("parameters", "statistics", "optimizer")
_BLOCK_BYTES = 8 << 20  # read at a time


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation and range of the finite values, and the number of others."""

    mean: float
    std: float
    low: float
    high: float
    unusable: int


def summarise(blocks: Iterator[npt.NDArray[Any]]) -> Summary:
    """Statistics of values in blocks, in float64, merged from those of the blocks."""
    count, mean, squares = 0, 0.0, 0.0
    low, high, unusable = math.inf, -math.inf, 0
    for block in blocks:
        finite = block[np.isfinite(block)] if not np.isfinite(block).all() else block
        unusable += block.size - finite.size
        if not finite.size:
            continue
        block_mean = float(finite.mean(dtype=np.float64))
        difference = block_mean - mean
        total = count + finite.size
        squares += float(finite.var(dtype=np.float64)) * finite.size
        squares += difference**2 * count * finite.size / total
        mean += difference * finite.size / total
        count = total
        low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if not count:
        return Summary(math.nan, math.nan, math.nan, math.nan, unusable)
    return Summary(mean, math.sqrt(squares / count), low, high, unusable)


def statistics_of(opened: OpenCheckpoint, group: str, key: str, shape: tuple[int, ...]) -> Summary:
    """Statistics of a tensor, read block by block. Local; `InputError` if it is damaged."""
    return summarise(_blocks(opened, group, key, shape))


def _blocks(
    opened: OpenCheckpoint, group: str, key: str, shape: tuple[int, ...]
) -> Iterator[npt.NDArray[Any]]:
    """The rows of a tensor, about `_BLOCK_BYTES` at a time."""
    step = max(1, _BLOCK_BYTES // (4 * max(1, math.prod(shape[1:]))))
    for start in range(0, shape[0], step):
        yield opened.rows(group, key, shape, (start, min(start + step, shape[0])))

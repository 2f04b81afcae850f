"""Random numbers that depend on their purpose, and on nothing else.

Every stream is keyed by (purpose, seed, index) and consists of the raw 64-bit words of Philox-4x64,
a counter-based generator. NumPy's compatibility promise fixes raw words for ever, but not the
distributions built on them, so deals, initial weights and data order survive library upgrades.
Any part of a stream can be drawn without the part before it, so no rank needs another rank's
numbers.
"""

import hashlib

import numpy as np
import numpy.typing as npt

SEED_LIMIT = 2**64
_WORDS_PER_COUNT = 4  # Philox-4x64 makes four words at each value of its counter
_HALVES_PER_COUNT = 2 * _WORDS_PER_COUNT
_ROWS_AT_ONCE_ELEMENTS = 1 << 20  # bounds the temporary words of `uniform` to 8 MiB


def _generator(purpose: str, seed: int, index: int, first_count: int) -> np.random.Philox:
    digest = hashlib.sha256(purpose.encode()).digest()
    key = np.array([seed, int.from_bytes(digest[:8], "little")], dtype=np.uint64)
    counter = np.array([first_count, index, 0, 0], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter)


def words(purpose: str, seed: int, index: int, count: int) -> npt.NDArray[np.uint64]:
    """The first `count` words of the stream (purpose, seed, index); uint64, shape [count]."""
    return np.asarray(_generator(purpose, seed, index, 0).random_raw(count), dtype=np.uint64)


def permutation(purpose: str, seed: int, index: int, size: int) -> npt.NDArray[np.int64]:
    """A uniformly random permutation of range(size); int64, shape [size].

    Sorting 64-bit keys is uniform up to ties, whose probability for a million units is 3e-8; a
    stable sort makes even ties the same everywhere.
    """
    return np.argsort(words(purpose, seed, index, size), kind="stable").astype(np.int64)


def uniform(
    purpose: str, seed: int, rows: tuple[int, int], columns: int, bound: float
) -> npt.NDArray[np.float32]:
    """Rows `rows[0]` to `rows[1]` of a matrix of numbers uniform in [-bound, bound).

    An element depends only on its row and column, so any division of the rows over ranks gives the
    same matrix. Returns float32, shape [rows[1] - rows[0], columns].
    """
    start, stop = rows
    counts_per_row = -(-columns // _HALVES_PER_COUNT)
    result = np.empty((stop - start, columns), dtype=np.float32)
    step = max(1, _ROWS_AT_ONCE_ELEMENTS // max(1, columns))
    generator = _generator(purpose, seed, 0, start * counts_per_row)
    for first in range(start, stop, step):
        last = min(first + step, stop)
        raw = generator.random_raw((last - first) * counts_per_row * _WORDS_PER_COUNT)
        halves = raw.astype("<u8", copy=False).view("<u4").reshape(last - first, -1)[:, :columns]
        # 24 bits fill a float32 exactly; scaling by a power of two and one multiplication by the
        # bound are each rounded once, so that every IEEE machine draws the same bits.
        unit = (halves >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1.0)
        result[first - start : last - start] = unit * np.float32(bound)
    return result

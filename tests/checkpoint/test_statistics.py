"""Statistics of a checkpoint's tensors."""

import numpy as np
import pytest

from ist_hpc.checkpoint import statistics
from ist_hpc.checkpoint.statistics import summarise


def test_statistics_in_blocks_are_those_of_the_whole():
    values = np.random.default_rng(0).normal(1000, 1e-2, size=(1000, 7)).astype(np.float32)
    values[3, 4], values[700, 1] = np.nan, -np.inf
    found = summarise(iter(np.array_split(values, [1, 10, 11, 600])))
    finite = values[np.isfinite(values)].astype(np.float64)
    assert found.unusable == 2
    assert found.mean == pytest.approx(finite.mean(), rel=1e-12)
    assert found.std == pytest.approx(finite.std(), rel=1e-6)
    assert (found.low, found.high) == (finite.min(), finite.max())


@pytest.mark.parametrize("rows_at_once", [1, 3, 100])
def test_every_row_of_a_tensor_counts(monkeypatch, rows_at_once):
    """The least is in the first row, and the greatest in the last."""
    values = np.arange(35, dtype=np.float32).reshape(7, 5)

    class Opened:
        @staticmethod
        def rows(group, key, shape, part):
            assert (group, key, shape) == ("parameters", "w", values.shape)
            return values[slice(*part)]

    monkeypatch.setattr(statistics, "_BLOCK_BYTES", rows_at_once * 4 * 5)
    found = statistics.statistics_of(Opened(), "parameters", "w", values.shape)
    assert (found.low, found.high, found.mean) == (0, 34, 17)

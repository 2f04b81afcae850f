"""Statistics of a checkpoint's tensors."""

import numpy as np
import pytest

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

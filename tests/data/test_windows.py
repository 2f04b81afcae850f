"""Rows in memory, from which batches are cut, against lists of their entries."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ist_hpc.data.windows import DenseWindow, SparseWindow, as_batch
from tests.helpers.sparse_rows import csr_of, row_lists, rows_of

WIDTH, LABELS = 9, 7


def positions(rows: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, rows - 1), min_size=1, max_size=12)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(row_lists(WIDTH, True, most_rows=12), min_size=1, max_size=5).filter(any),
    st.sampled_from([0, 1, 10, 1000]),
    st.data(),
)
def test_sparse_rows_of_any_lengths(blocks, most_features, data):
    """However many entries were expected, few or more than there are."""
    features = [row for block in blocks for row in block]
    labels = [[(number % LABELS, 1.0)] * (number % 3 > 0) for number in range(len(features))]
    window = SparseWindow(WIDTH, LABELS, len(features), most_features)
    filled = 0
    for block in blocks:
        stop = filled + len(block)
        window.add(csr_of(block, WIDTH, True), csr_of(labels[filled:stop], LABELS, False))
        filled = stop
    parts = data.draw(st.lists(positions(len(features)), min_size=1, max_size=3))
    chosen = [window.choose(np.array(part)) for part in parts]
    got_features, got_labels = window.batch(chosen)
    wanted = [row for part in parts for row in part]
    assert rows_of(got_features) == [features[row] for row in wanted]
    assert rows_of(got_labels) == [labels[row] for row in wanted]
    assert (got_features.width, got_labels.width, got_labels.values) == (WIDTH, LABELS, None)


def test_dense_rows_are_put_behind_each_other():
    values = np.arange(24, dtype=np.uint8).reshape(6, 2, 2)
    window = DenseWindow((2, 2), "uint8", 6)
    window.add(values[:4], np.arange(4))
    window.add(values[4:], np.array([9, 8]))
    features, labels = window.batch([window.choose(np.array(rows)) for rows in ([5, 0], [3])])
    assert labels.tolist() == [8, 0, 3]
    assert torch.equal(features, torch.from_numpy(values[[5, 0, 3]]).view(3, 4) / 255)


def test_stored_rows_as_the_networks_take_them():
    row, label = [(2, 0.5)], [(1, 1.0)]
    features, labels = as_batch((csr_of([row, []], 4, True), csr_of([[], label], 3, False)))
    assert (rows_of(features), rows_of(labels)) == ([row, []], [[], label])
    assert features.columns.dtype == features.offsets.dtype == torch.int64
    dense, classes = as_batch((np.ones((2, 3), dtype=np.float32), np.array([1, 0])))
    assert (dense.tolist(), classes.tolist()) == ([[1.0] * 3] * 2, [1, 0])

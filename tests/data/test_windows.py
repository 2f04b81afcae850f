"""Rows in memory, from which batches are cut, against lists of their entries."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ist_hpc.data.shard_meta import Schema
from ist_hpc.data.stores import Store, Window, store_of
from tests.helpers.sparse_rows import csr_of, row_lists, rows_of

WIDTH, LABELS = 9, 7


def store(
    kind: str, shape: tuple[int, ...], dtype: str = "float32", outputs: int = LABELS
) -> Store:
    return store_of(
        Schema(
            kind=kind,
            feature_shape=shape,
            feature_dtype=dtype,
            feature_description="",
            classes=(),
            outputs=outputs,
        )
    )


def positions(rows: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, rows - 1), min_size=1, max_size=12)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(row_lists(WIDTH, True, most_rows=12), min_size=1, max_size=5).filter(any),
    st.sampled_from([0, 1, 8, 80, 1000]),
    st.data(),
)
def test_sparse_rows_of_any_lengths(blocks, row_bytes, data):
    """However many entries were expected, few or more than there are."""
    features = [row for block in blocks for row in block]
    labels = [[(number % LABELS, 1.0)] * (number % 3 > 0) for number in range(len(features))]
    sparse = store("sparse", (WIDTH,))
    window = Window(sparse, len(features), row_bytes)
    filled = 0
    for block in blocks:
        stop = filled + len(block)
        window.add((csr_of(block, WIDTH, True), csr_of(labels[filled:stop], LABELS, False)))
        filled = stop
    parts = data.draw(st.lists(positions(len(features)), min_size=1, max_size=3))
    chosen = [sparse.choose(window.rows(), np.array(part)) for part in parts]
    got_features, got_labels = sparse.batch(chosen)
    wanted = [row for part in parts for row in part]
    assert rows_of(got_features) == [features[row] for row in wanted]
    assert rows_of(got_labels) == [labels[row] for row in wanted]
    assert (got_features.width, got_labels.width, got_labels.values) == (WIDTH, LABELS, None)


def test_dense_rows_are_put_behind_each_other():
    values = np.arange(24, dtype=np.uint8).reshape(6, 2, 2)
    dense = store("dense", (2, 2), "uint8", outputs=10)
    window = Window(dense, 6, 12)
    window.add((values[:4], np.arange(4)))
    window.add((values[4:], np.array([9, 8])))
    parts = [dense.choose(window.rows(), np.array(rows)) for rows in ([5, 0], [3])]
    features, labels = dense.batch(parts)
    assert labels.tolist() == [8, 0, 3]
    assert torch.equal(features, torch.from_numpy(values[[5, 0, 3]]).view(3, 4) / 255)


def test_stored_rows_as_the_networks_take_them():
    row, label = [(2, 0.5)], [(1, 1.0)]
    features, labels = store("sparse", (4,), outputs=3).batch(
        [(csr_of([row, []], 4, True), csr_of([[], label], 3, False))]
    )
    assert (rows_of(features), rows_of(labels)) == ([row, []], [[], label])
    assert features.columns.dtype == features.offsets.dtype == torch.int64
    dense, classes = store("dense", (3,)).batch(
        [(np.ones((2, 3), dtype=np.float32), np.array([1, 0]))]
    )
    assert (dense.tolist(), classes.tolist()) == ([[1.0] * 3] * 2, [1, 0])

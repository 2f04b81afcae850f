"""The first layer on sparse rows against the same product with dense rows."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ist_hpc.models import sparse_input
from ist_hpc.sparse import SparseRows

INPUTS, UNITS = 11, 3
ROWS = st.lists(
    st.dictionaries(st.integers(0, INPUTS - 1), st.floats(-4, 4, width=32), max_size=6),
    min_size=1,
    max_size=8,
)


def as_rows(rows: list[dict[int, float]]) -> SparseRows:
    entries = [item for row in rows for item in sorted(row.items())]
    offsets = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)
    columns = torch.tensor([column for column, _ in entries], dtype=torch.int64)
    values = torch.tensor([value for _, value in entries], dtype=torch.float32)
    return SparseRows(offsets, columns, values, INPUTS)


def as_dense(rows: list[dict[int, float]]) -> torch.Tensor:
    dense = torch.zeros(len(rows), INPUTS, dtype=torch.float64)
    for index, row in enumerate(rows):
        for column, value in row.items():
            dense[index, column] = value
    return dense


@settings(deadline=None)
@given(rows=ROWS)
def test_product_and_gradient_are_those_of_dense_rows(rows: list[dict[int, float]]) -> None:
    features, dense = as_rows(rows), as_dense(rows)
    generator = torch.Generator().manual_seed(len(rows))
    weight = torch.randn(INPUTS, UNITS, generator=generator, dtype=torch.float64)
    arriving = torch.randn(len(rows), UNITS, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(sparse_input.product(features, weight), dense @ weight)
    found = sparse_input.gradient(features, arriving)
    occurring = sorted({column for row in rows for column in row})
    assert found.rows.tolist() == occurring
    whole = torch.zeros(INPUTS, UNITS, dtype=torch.float64)
    whole[found.rows] = found.values
    torch.testing.assert_close(whole, dense.t() @ arriving)


@settings(deadline=None)
@given(rows=ROWS, most=st.integers(1, 20))
def test_product_from_a_home_block_is_the_same(rows: list[dict[int, float]], most: int) -> None:
    features, dense = as_rows(rows), as_dense(rows)
    weight = torch.randn(UNITS, INPUTS, dtype=torch.float64)
    before = sparse_input.HOME_ENTRIES_AT_ONCE
    sparse_input.HOME_ENTRIES_AT_ONCE = most
    try:
        found = sparse_input.product_at_home(features, weight)
    finally:
        sparse_input.HOME_ENTRIES_AT_ONCE = before
    torch.testing.assert_close(found, dense @ weight.t())


def test_rows_without_values_count_one_each() -> None:
    sets = SparseRows(torch.tensor([0, 2, 2]), torch.tensor([1, 4]), None, INPUTS)
    weight = torch.randn(INPUTS, UNITS)
    expected = torch.stack([weight[1] + weight[4], torch.zeros(UNITS)])
    torch.testing.assert_close(sparse_input.product(sets, weight), expected)

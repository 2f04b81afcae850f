"""Sparse rows, against lists of their entries."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ist_hpc.data.csr import Csr, concatenate
from tests.helpers.sparse_rows import csr_of, row_lists, rows_of

COLUMNS = 9
matrices = st.booleans().flatmap(
    lambda with_values: st.tuples(row_lists(COLUMNS, with_values), st.just(with_values))
)


@settings(max_examples=200, deadline=None)
@given(matrices, st.data())
def test_parts_and_chosen_rows(matrix, data):
    rows, with_values = matrix
    csr = csr_of(rows, COLUMNS, with_values)
    assert (len(csr), csr.entries) == (len(rows), sum(len(row) for row in rows))
    assert rows_of(csr) == rows
    start = data.draw(st.integers(0, len(rows)))
    stop = data.draw(st.integers(start, len(rows)))
    assert rows_of(csr.part(start, stop)) == rows[start:stop]
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=20)) if rows else []
    taken = csr.take(np.array(chosen, dtype=np.int64))
    assert rows_of(taken) == [rows[row] for row in chosen]
    assert (taken.indptr.dtype, taken.indices.dtype) == (np.int64, np.int32)
    assert (taken.values is not None) == with_values


@settings(max_examples=100, deadline=None)
@given(st.lists(row_lists(COLUMNS, True, most_rows=5), min_size=1, max_size=5))
def test_concatenate(parts):
    joined = concatenate([csr_of(rows, COLUMNS, True) for rows in parts])
    assert rows_of(joined) == [row for rows in parts for row in rows]
    assert joined.indptr.dtype == np.int64
    assert joined.columns == COLUMNS


@settings(max_examples=100, deadline=None)
@given(matrices)
def test_the_row_of_an_entry(matrix):
    rows, with_values = matrix
    csr = csr_of(rows, COLUMNS, with_values)
    expected = [number for number, row in enumerate(rows) for _ in row]
    assert [csr.row_of(entry) for entry in range(csr.entries)] == expected
    assert csr.first_fault() is None


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.integers(-2, COLUMNS + 1), max_size=4), max_size=8),
)
def test_a_fault_is_found_if_there_is_one(rows):
    csr = csr_of([[(column, 1.0) for column in row] for row in rows], COLUMNS, False)
    outside = [any(not 0 <= column < COLUMNS for column in row) for row in rows]
    unordered = [any(a >= b for a, b in pairwise(row)) for row in rows]
    fault = csr.first_fault()
    if True in outside:
        assert fault is not None
        assert fault[0] == outside.index(True)
        assert "must be 0 to 8" in fault[1]
    elif True in unordered:
        assert fault is not None
        assert fault[0] == unordered.index(True)
        assert "must ascend strictly" in fault[1]
    else:
        assert fault is None


@pytest.mark.parametrize("with_values", [True, False])
def test_no_rows(with_values):
    csr = Csr.empty(4, with_values)
    assert (len(csr), csr.entries, csr.columns, csr.nbytes) == (0, 0, 4, 8)
    assert (csr.values is not None) == with_values
    assert rows_of(csr.part(0, 0)) == rows_of(csr.take(np.arange(0))) == []

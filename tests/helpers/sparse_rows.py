"""Sparse rows as plain lists, beside which `Csr` and what is stored are checked."""

from itertools import pairwise

import numpy as np
from hypothesis import strategies as st

from ist_hpc.data.csr import Csr
from ist_hpc.data.shards import DatasetWriter
from ist_hpc.data.sparse_rows import SparseRows

Row = list[tuple[int, float]]
"""The columns of a row, ascending, each with its value; labels have the value 1."""


def csr_of(rows: list[Row], columns: int, with_values: bool) -> Csr:
    """The rows, put together one entry after the other."""
    indptr, indices, values = [0], [], []
    for row in rows:
        for column, value in row:
            indices.append(column)
            values.append(value)
        indptr.append(len(indices))
    return Csr(
        np.array(indptr, dtype=np.int64),
        np.array(indices, dtype=np.int32),
        np.array(values, dtype=np.float32) if with_values else None,
        columns,
    )


def rows_of(rows: Csr | SparseRows) -> list[Row]:
    """The rows again, taken apart one entry after the other."""
    if isinstance(rows, Csr):
        offsets, columns = rows.indptr.tolist(), rows.indices.tolist()
    else:
        offsets, columns = rows.offsets.tolist(), rows.columns.tolist()
    values = [1.0] * len(columns) if rows.values is None else rows.values.tolist()
    entries = list(zip(columns, values, strict=True))
    return [entries[first:last] for first, last in pairwise(offsets)]


def row_lists(columns: int, with_values: bool, most_rows: int = 40) -> st.SearchStrategy[list[Row]]:
    """Lists of rows, many without an entry; the values are those of float32."""
    value = st.floats(width=32, allow_nan=False, allow_infinity=False)
    row = st.dictionaries(
        st.integers(0, columns - 1), value if with_values else st.just(1.0), max_size=6
    )
    return st.lists(row.map(lambda entries: sorted(entries.items())), max_size=most_rows)


def numbered_features(row: int, width: int) -> Row:
    """Features of row number `row` that no other has; some rows have none."""
    if row % 5 == 2:
        return []
    return [(column, row + column / 4) for column in range(row % 3, width, 3)]


def numbered_labels(row: int, labels: int) -> Row:
    """Labels that, of 64 and rows below 64, no other row has; some rows have none."""
    if row % 7 == 3:
        return []
    return [(label, 1.0) for label in sorted({row % labels, row * row % labels})]


def write_numbered(path, splits: dict[str, int], width: int, labels: int, **options) -> None:
    """A sparse data set whose rows are `numbered_features` and `numbered_labels`."""
    given = {"name": "numbered", "classes": labels, "made_by": {"command": "test"}} | options
    with DatasetWriter(path, kind="sparse", feature_shape=[width], **given) as writer:
        for split, rows in splits.items():
            features = [numbered_features(row, width) for row in range(rows)]
            of_rows = [numbered_labels(row, labels) for row in range(rows)]
            writer.append(split, csr_of(features, width, True), csr_of(of_rows, labels, False))

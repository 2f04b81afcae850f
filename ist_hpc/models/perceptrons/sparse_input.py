"""A linear layer on sparse rows: its cost depends on their entries, not on the input width.

A thin network stores its weight with features first, [inputs, units], so that a feature is one
contiguous row. Forward is a bag of weight rows for each sample; the gradient is a bag of samples
for each feature that occurs. Both use `embedding_bag`, which adds in the order of the entries, so
results do not depend on threads.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ist_hpc.common.sizes import ELEMENT_BYTES
from ist_hpc.data.sparse_rows import SparseRows
from ist_hpc.models.gradients import RowGradient

HOME_ENTRIES_AT_ONCE = 1 << 15
"""Entries of sparse rows for which the columns of a home block are gathered at a time."""

STEP_NUMBERS = 14
"""Estimated numbers of 4 bytes that a step holds per entry: the batch, its order by feature, and
temporary indices."""


def product(features: SparseRows, weight: Tensor) -> Tensor:
    """`features @ weight`; weight float32 [inputs, units], result [rows, units]."""
    return _bags(features.columns, weight, features.offsets, features.values)


def gradient(features: SparseRows, outputs_gradient: Tensor) -> RowGradient:
    """The gradient of `weight` in `product`, for the features that occur.

    outputs_gradient  [rows, units]
    """
    order = torch.argsort(features.columns, stable=True)
    occurring, counts = torch.unique_consecutive(features.columns[order], return_counts=True)
    offsets = torch.zeros(len(counts) + 1, dtype=torch.int64, device=counts.device)
    torch.cumsum(counts, 0, out=offsets[1:])
    values = None if features.values is None else features.values[order]
    bags = _bags(features.row_of_entry[order], outputs_gradient, offsets, values)
    return RowGradient(occurring, bags)


def product_at_home(features: SparseRows, weight: Tensor) -> Tensor:
    """`features @ weight.T` for a home block; weight float32 [units, inputs], result [rows, units].

    Gathers the columns that occur, for some rows at a time.
    """
    result = weight.new_empty(len(features), len(weight))
    for start, stop in _runs(features.offsets, HOME_ENTRIES_AT_ONCE):
        first, last = int(features.offsets[start]), int(features.offsets[stop])
        columns, places = torch.unique(features.columns[first:last], return_inverse=True)
        occurring = weight.index_select(1, columns).t().contiguous()
        values = None if features.values is None else features.values[first:last]
        offsets = features.offsets[start : stop + 1] - first
        result[start:stop] = _bags(places, occurring, offsets, values)
        del occurring  # before the next ones are gathered
    return result


def occurring(rows: int, entries: float, inputs: int) -> int:
    """Maximum of features that occur in rows with `entries` on average: the rows of `gradient`."""
    return min(inputs, round(rows * entries))


def home_bytes(rows: int, entries: float, weight_shape: tuple[int, int]) -> int:
    """Bytes of the columns that `product_at_home` gathers and transposes; weight [units, inputs].

    entries  average number per row
    """
    units, inputs = weight_shape
    columns = min(occurring(rows, entries, inputs), HOME_ENTRIES_AT_ONCE)
    return 2 * columns * units * ELEMENT_BYTES


def _runs(offsets: Tensor, most_entries: int) -> Iterator[tuple[int, int]]:
    """Runs of rows with at most the given number of entries, or of one row."""
    bounds = offsets.tolist()
    start = 0
    for stop in range(1, len(bounds)):
        if stop == len(bounds) - 1 or bounds[stop + 1] - bounds[start] > most_entries:
            yield start, stop
            start = stop


def _bags(rows: Tensor, table: Tensor, offsets: Tensor, values: Tensor | None) -> Tensor:
    """For each bag the sum of rows of the table, each multiplied by its value."""
    if not len(rows) or not table.shape[1]:
        return table.new_zeros(len(offsets) - 1, table.shape[1])
    weights = table.new_ones(len(rows)) if values is None else values.to(table.dtype)
    return F.embedding_bag(
        rows, table, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
    )

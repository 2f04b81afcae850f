"""What a step with sampled labels has to do: products, and gathers of the rows that it uses.

For the first layer a bag of weight rows a sample and a bag of samples a feature, and the features'
rows there and back; for the last one its three products, and the labels' rows there and back. No
softmax, no norm, no update.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ist_hpc.data.sparse_rows import SparseRows


class SampledProducts:
    """Those of one batch, on weights of a rank's shapes, rows first.

    features  the batch
    labels    how many labels the step trains
    """

    def __init__(
        self, features: SparseRows, first: tuple[int, ...], last: tuple[int, ...], labels: int
    ) -> None:
        rows, units = len(features), first[1]
        self._features = features
        self._first, self._last = torch.rand(first), torch.rand(last)
        self._hidden = torch.rand(rows, units)
        order = torch.argsort(features.columns, stable=True)
        self._used, counts = torch.unique_consecutive(features.columns[order], return_counts=True)
        self._offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        self._samples = features.row_of_entry[order]
        values = features.values
        self._values = torch.ones(len(order)) if values is None else values
        self._values_by_feature = self._values[order]
        count = min(labels, last[0])
        self._labels = torch.linspace(0, last[0] - 1, count).long().unique()

    def compute(self) -> None:
        """All of it, once."""
        features = self._features
        _bags(features.columns, self._first, features.offsets, self._values)
        _bags(self._samples, self._hidden, self._offsets, self._values_by_feature)
        self._first.index_copy_(0, self._used, self._first.index_select(0, self._used))
        weight = self._last.index_select(0, self._labels)
        logits = self._hidden @ weight.t()
        torch.mm(logits, weight)
        torch.mm(logits.t(), self._hidden)
        self._last.index_copy_(0, self._labels, weight)


def _bags(rows: Tensor, table: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    return F.embedding_bag(
        rows, table, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
    )

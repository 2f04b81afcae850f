"""The full network, evaluated without any rank holding it.

Each rank computes its home block of every layer's outputs for the same rows, and the ranks gather
the activations (rows x width, small beside the weights). Batch-norm statistics come from
calibration rows of the training data with the full network, layer by layer (paper, section 5), and
never from the rows that are evaluated.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ist_hpc.metrics import ClassificationMetrics
from ist_hpc.models.base import Model, Statistics
from ist_hpc.placement import block_bounds
from ist_hpc.rows import CommonRows

if TYPE_CHECKING:
    from mpi4py import MPI

_GATHER_BYTES = 1 << 23


class HomeNetwork:
    """The full network, of which each rank has its home blocks.

    weights     home blocks and shared weights of this rank, by key
    statistics  of a checkpoint, or empty until `calibrate`
    """

    def __init__(
        self,
        comm: "MPI.Comm",
        model: Model,
        weights: Mapping[str, Tensor],
        statistics: Statistics | None = None,
    ) -> None:
        self.comm, self.model, self.weights = comm, model, weights
        self.statistics: Statistics = dict(statistics or {})

    @torch.no_grad()
    def calibrate(self, features: Tensor) -> None:
        """Compute the statistics from rows that are the same on all ranks. Collective."""
        self.model.full_outputs(self.weights, self.statistics, features, self._gather, True)

    @torch.no_grad()
    def outputs(self, features: Tensor) -> Tensor:
        """Outputs for rows that are the same on all ranks; float32 [rows, outputs]. Collective."""
        return self.model.full_outputs(self.weights, self.statistics, features, self._gather, False)

    def predict(
        self, rows: CommonRows, batch_rows: int
    ) -> Iterator[tuple[npt.NDArray[np.int64], Tensor, Tensor]]:
        """(rows, outputs, labels) of a whole split, a batch at a time. Collective."""
        for indices, (features, labels) in rows.batches(batch_rows):
            yield indices, self.outputs(features), labels

    def evaluate(self, rows: CommonRows, batch_rows: int) -> dict[str, float]:
        """The metrics of a whole split; the same on all ranks. Collective."""
        metrics = ClassificationMetrics()
        for _, outputs, labels in self.predict(rows, batch_rows):
            metrics.add(outputs, labels)
        return metrics.result()

    def _gather(self, own: Tensor, width: int) -> Tensor:
        """All columns from each rank's block of columns; [rows, width]. Collective."""
        ranks = self.comm.Get_size()
        if ranks == 1:
            return own
        # Ranks' blocks lie side by side in a row but one behind the other in what MPI gathers, so
        # some rows at a time are put right: all at once would hold every activation twice, and MPI
        # counts no more than 2^31 - 1 of them.
        widths = np.diff(block_bounds(width, ranks))
        whole = torch.empty(len(own), width)
        rows_at_once = max(1, _GATHER_BYTES // whole.element_size() // width)
        gathered = torch.empty(min(rows_at_once, len(own)) * width)
        for part, target in zip(own.split(rows_at_once), whole.split(rows_at_once), strict=True):
            counts, received = widths * len(part), gathered[: target.numel()]
            self.comm.Allgatherv(part.contiguous().numpy(), [received.numpy(), counts])
            blocks = received.split(counts.tolist())
            for columns, block in zip(target.split(widths.tolist(), dim=1), blocks, strict=True):
                columns.copy_(block.view(columns.shape))
        return whole

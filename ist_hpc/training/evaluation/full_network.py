"""The full network, evaluated without any rank holding it.

Each rank computes its home block of every layer's outputs for the same rows, and the ranks gather
the activations (rows x width, small compared with the weights). If whole layers are dealt out, the
rows go through them from rank to rank. With many labels each rank keeps the best of its own, and
only those are gathered. The full network computes batch-norm statistics layer by layer from
calibration rows of the training data (paper, section 5), never from the rows that are evaluated.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ist_hpc.common.blocks import block_bounds
from ist_hpc.config.keys import EvaluateConfig
from ist_hpc.data.rows import CommonRows
from ist_hpc.data.shards import Dataset
from ist_hpc.data.sparse_rows import Rows, SparseRows, to_device
from ist_hpc.models.base import Model, Statistics
from ist_hpc.models.layers import GATHER_BYTES
from ist_hpc.training.evaluation.metrics import ClassificationMetrics
from ist_hpc.training.evaluation.ranking import (
    RankingMetrics,
    TopLabels,
    inverse_propensities,
    merge_top,
)

if TYPE_CHECKING:
    from mpi4py import MPI

Metrics = ClassificationMetrics | RankingMetrics


def main_metric(sparse: bool, config: EvaluateConfig) -> str:
    """The metric that is shown and whose best value is kept."""
    return (RankingMetrics(config.top) if sparse else ClassificationMetrics()).main


def metrics_for(dataset: Dataset, config: EvaluateConfig) -> Metrics:
    """Empty metrics for the labels of the data: accuracy, or rankings of label sets.

    They are also propensity-scored if the data say how often each label occurs in training rows.
    Raises `InputError` for impossible propensities.
    """
    if not dataset.sparse:
        return ClassificationMetrics()
    counts, inverse = dataset.label_counts(), None
    if counts is not None and "train" in dataset.shards:
        inverse = inverse_propensities(counts, dataset.rows("train"), *config.propensity)
    return RankingMetrics(config.top, inverse)


class HomeNetwork:
    """The full network, of which each rank has its home blocks.

    weights     home blocks and shared weights of this rank, by key; their device computes
    statistics  from a checkpoint, or empty until `calibrate`

    Rows and results are on the CPU. Activations pass through it: MPI gathers them there.
    """

    def __init__(
        self,
        comm: "MPI.Comm",
        model: Model,
        weights: Mapping[str, Tensor],
        statistics: Statistics | None = None,
    ) -> None:
        self.comm, self.model, self.weights = comm, model, weights
        self.device = next(iter(weights.values())).device
        self.statistics: Statistics = {
            key: (mean.to(self.device), variance.to(self.device))
            for key, (mean, variance) in (statistics or {}).items()
        }
        bounds = block_bounds(model.outputs, comm.Get_size())
        rank = comm.Get_rank()
        self._home_start, self._home_stop = int(bounds[rank]), int(bounds[rank + 1])
        self._peers = _Peers(comm, self.device)

    @torch.no_grad()
    def calibrate(self, features: Rows) -> None:
        """Compute the statistics from rows that are the same on all ranks. Collective."""
        hidden = self._hidden(features, calibrate=True)
        if self.model.norms_outputs:
            self._own_outputs(hidden, self._all_own(), calibrate=True)

    @torch.no_grad()
    def outputs(self, features: Rows) -> Tensor:
        """Outputs for rows that are the same on all ranks; float32 [rows, outputs]. Collective."""
        own = self._own_outputs(self._hidden(features), self._all_own())
        return self._peers.gather_to_cpu(own, self.model.outputs)

    @torch.no_grad()
    def top(self, features: Rows, k: int) -> tuple[Tensor, Tensor]:
        """The `k` largest outputs of each row, best first; of equal ones the smaller index first.

        Returns (values float32, indices int64), each [rows, k]. Collective.
        """
        hidden = self._hidden(features)
        best, own = TopLabels(len(hidden), k, hidden.device), self._all_own()
        step = self.model.label_block or max(1, self.model.outputs)
        for start in range(own.start, own.stop, step):
            part = slice(start, min(start + step, own.stop))
            best.add(self._own_outputs(hidden, part), self._home_start + start)
        values, indices = (found.cpu() for found in best.result())
        if self.comm.Get_size() == 1:
            return values, indices
        return merge_top(self._side_by_side(values), self._side_by_side(indices), k)

    def predict(
        self,
        rows: CommonRows,
        batch_rows: int,
        metrics: Metrics,
        chosen: npt.NDArray[np.int64] | None = None,
    ) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Yield (first row, predictions) of a split, a batch at a time. Collective.

        Predictions are `logits`, `predicted` and, for classes, `labels`, on the CPU; they are added
        to `metrics`. For sets of labels the first two are [rows, k], with the largest k of the
        metrics. `chosen` rows, ascending; by default all.
        """
        for indices, (features, labels) in rows.batches(batch_rows, chosen):
            if isinstance(metrics, RankingMetrics):
                assert isinstance(labels, SparseRows)
                values, predicted = self.top(features, max(metrics.top))
                metrics.add(predicted, labels)
                yield int(indices[0]), {"logits": values, "predicted": predicted}
            else:
                assert isinstance(labels, Tensor)
                logits = self.outputs(features)
                metrics.add(logits, labels)
                predicted = logits.argmax(dim=1)
                yield (
                    int(indices[0]),
                    {"logits": logits, "labels": labels, "predicted": predicted},
                )

    def evaluate(
        self,
        rows: CommonRows,
        batch_rows: int,
        metrics: Metrics,
        given_up: Callable[[], bool] = lambda: False,
        chosen: npt.NDArray[np.int64] | None = None,
    ) -> dict[str, float]:
        """The metrics of a split, or of its `chosen` rows; the same on all ranks. Collective.

        Empty if `given_up`, called after each batch, says so on all ranks.
        """
        for _ in self.predict(rows, batch_rows, metrics, chosen):
            if given_up():
                return {}
        return metrics.result()

    def _all_own(self) -> slice:
        """This rank's whole home block of the outputs."""
        return slice(0, self._home_stop - self._home_start)

    def _hidden(self, features: Rows, calibrate: bool = False) -> Tensor:
        return self.model.full_hidden(
            self.weights,
            self.statistics,
            to_device(features, self.device),
            self._peers,
            calibrate,
        )

    def _own_outputs(self, hidden: Tensor, outputs: slice, calibrate: bool = False) -> Tensor:
        return self.model.own_outputs(
            self.weights, self.statistics, hidden, outputs, self._home_start, calibrate
        )

    def _side_by_side(self, own: Tensor) -> Tensor:
        """[rows, k] of every rank, on the CPU, as [rows, ranks x k]. Collective."""
        ranks = self.comm.Get_size()
        gathered = torch.empty(ranks, *own.shape, dtype=own.dtype)
        self.comm.Allgather(own.contiguous().numpy(), gathered.numpy())
        return gathered.transpose(0, 1).reshape(len(own), -1)


class _Peers:
    """`models.base.Peers` over a communicator; activations pass through the CPU."""

    def __init__(self, comm: "MPI.Comm", device: torch.device) -> None:
        self._comm, self._device = comm, device

    def share(self, units: int) -> slice:
        """This rank's part of the given number of units. Local."""
        bounds, rank = block_bounds(units, self._comm.Get_size()), self._comm.Get_rank()
        return slice(int(bounds[rank]), int(bounds[rank + 1]))

    def relay(self, values: Tensor, stage: Callable[[Tensor], Tensor], rows_at_once: int) -> Tensor:
        """Pass rows through the ranks' stages, one after the other. Collective."""
        rank, ranks = self._comm.Get_rank(), self._comm.Get_size()
        parts = values.split(max(1, rows_at_once))
        if ranks == 1:
            return stage(values) if len(parts) == 1 else torch.cat([stage(part) for part in parts])
        arrived = torch.empty(values.shape)
        sending = None
        for part, into in zip(parts, arrived.split(max(1, rows_at_once)), strict=True):
            if rank:
                self._comm.Recv(into.numpy(), source=rank - 1)
                part = into.to(self._device)
            going = stage(part).contiguous().cpu()
            if sending is not None:
                sending.Wait()
            if rank < ranks - 1:
                sent = going  # kept until it is on its way
                sending = self._comm.Isend(sent.numpy(), dest=rank + 1)
            else:
                into.copy_(going)
        if sending is not None:
            sending.Wait()
        for into in arrived.split(max(1, rows_at_once)):
            self._comm.Bcast(into.numpy(), root=ranks - 1)
        return arrived.to(self._device)

    def gather_rows(self, own: Tensor, rows: int) -> Tensor:
        """[own rows, ...] of each rank to [rows, ...] on all. Collective."""
        if self._comm.Get_size() == 1:
            return own
        whole = torch.empty(rows, *own.shape[1:])
        counts = np.diff(block_bounds(rows, self._comm.Get_size())) * math.prod(own.shape[1:])
        self._comm.Allgatherv(own.contiguous().cpu().numpy(), [whole.numpy(), counts])
        return whole.to(self._device)

    def gather(self, own: Tensor, units: int) -> Tensor:
        """[rows, local_units, ...] of each rank to [rows, units, ...] on all. Collective."""
        alone = self._comm.Get_size() == 1
        return own if alone else self.gather_to_cpu(own, units).to(self._device)

    def gather_to_cpu(self, own: Tensor, units: int) -> Tensor:
        """The same, on the CPU. Collective."""
        ranks = self._comm.Get_size()
        if ranks == 1:
            return own.cpu()
        # In a row the ranks' blocks are side by side, but MPI gathers them one after the other. So
        # some rows at a time are rearranged: all at once would hold every activation twice, and MPI
        # counts no more than 2^31 - 1 of them.
        numbers = math.prod(own.shape[2:])  # per unit: one, or a whole plane of an image
        widths = np.diff(block_bounds(units, ranks)) * numbers
        whole = torch.empty(len(own), units * numbers)
        rows_at_once = max(1, GATHER_BYTES // (whole.element_size() * units * numbers))
        gathered = torch.empty(min(rows_at_once, len(own)) * units * numbers)
        for part, target in zip(own.split(rows_at_once), whole.split(rows_at_once), strict=True):
            counts, received = widths * len(part), gathered[: target.numel()]
            self._comm.Allgatherv(part.contiguous().cpu().numpy(), [received.numpy(), counts])
            blocks = received.split(counts.tolist())
            for columns, block in zip(target.split(widths.tolist(), dim=1), blocks, strict=True):
                columns.copy_(block.view(columns.shape))
        return whole.view(len(own), units, *own.shape[2:])

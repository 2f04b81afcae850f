"""Local SGD: every rank trains the whole model alone for a round, then the ranks average."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ist_hpc.data.sparse_rows import Batch, Rows
from ist_hpc.models.base import Model
from ist_hpc.models.gradients import Gradients, RowGradient
from ist_hpc.models.optimizer import Optimizer
from ist_hpc.runtime.meters import ExchangeReport
from ist_hpc.training.algorithms.data_parallel import DataParallel
from ist_hpc.training.averaging import Averages

if TYPE_CHECKING:
    from mpi4py import MPI


class LocalSgd(DataParallel):
    """Averages weights, and carried slots, in one grouped allreduce per round.

    Where labels are sampled, of weights that are updated row by row those rows which some rank
    updated in the round: all others are equal on the ranks.

    warmup_steps  number of first steps of the run that are data parallel
    """

    def __init__(
        self,
        comm: "MPI.Comm",
        model: Model,
        optimizer: Optimizer,
        device: torch.device,
        seed: int,
        carry: bool,
        averages: Averages,
        warmup_steps: int = 0,
    ) -> None:
        super().__init__(comm, model, optimizer, device, seed, carry, averages)
        self._wraps = warmup_steps > 0
        self._warmup_steps = warmup_steps
        self._differ = False
        self._updated: dict[str, list[Tensor]] = {}

    def begin_round(
        self, round_index: int, batches: Sequence[Batch] = (), trained: int = 0
    ) -> ExchangeReport:
        """See the base class. Local."""
        self._updated = {key: [] for key in self.model.averaged_by_row}
        return super().begin_round(round_index, batches, trained)

    def _own_gradients(
        self, features: Rows, labels: Rows, trained: int
    ) -> tuple[Tensor, Gradients]:
        """Those of a step, of whose rows note is taken. Local."""
        loss, gradients = super()._own_gradients(features, labels, trained)
        for key, updated in self._updated.items():
            gradient = gradients[key]
            assert isinstance(gradient, RowGradient)
            updated.append(gradient.rows)
        return loss, gradients

    def _step(self, features: Rows, labels: Rows, lr: float, trained: int) -> Tensor:
        """A local step. Collective during the warm-up, else local."""
        if trained < self._warmup_steps:
            return super()._step(features, labels, lr, trained)
        self._differ = True
        return self._step_alone(features, labels, lr, trained)

    def _average(self) -> None:
        """Average weights and carried slots, unless the round was all warm-up. Collective."""
        if not self._differ:
            super()._average()
            return
        self._differ = False
        whole = [
            spec.key for spec in self.model.specs if spec.key not in self.model.averaged_by_row
        ]
        tensors = [self._weights[key] for key in whole]
        tensors += [self.shared[spec.key] for spec in self.model.shared if spec.changes]
        of_rows = [(self._weights[key], key) for key in sorted(self.model.averaged_by_row)]
        # counts of updates are the same on all ranks
        names = self.optimizer.slot_names(has_two_axes=False) if self.carry else ()
        for key, slots in self._slots.items():
            for slot in (slots[name] for name in names):
                if key in self.model.averaged_by_row and len(slot) == len(self._weights[key]):
                    of_rows.append((slot, key))
                else:
                    tensors.append(slot)
        rows = {
            key: self._rows_of_all(torch.cat(updated).unique())
            for key, updated in sorted(self._updated.items())
        }
        gathered = [tensor.index_select(0, rows[key]) for tensor, key in of_rows]
        self._average_tensors([*tensors, *gathered], "weights")
        for (tensor, key), mean in zip(of_rows, gathered, strict=True):
            tensor.index_copy_(0, rows[key], mean)

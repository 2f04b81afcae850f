"""Local SGD: every rank trains the whole model alone for a round, then the ranks average."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ist_hpc.data.sparse_rows import Rows
from ist_hpc.models.base import Model
from ist_hpc.models.optimizer import Optimizer
from ist_hpc.training.algorithms.data_parallel import DataParallel
from ist_hpc.training.averaging import Averages

if TYPE_CHECKING:
    from mpi4py import MPI


class LocalSgd(DataParallel):
    """Averages weights, and carried slots, in one grouped allreduce per round.

    warmup_steps  number of first steps of the run that are data parallel
    """

    def __init__(
        self,
        comm: "MPI.Comm",
        model: Model,
        optimizer: Optimizer,
        device: torch.device,
        carry: bool,
        averages: Averages,
        warmup_steps: int = 0,
    ) -> None:
        super().__init__(comm, model, optimizer, device, carry, averages)
        self._wraps = warmup_steps > 0
        self._warmup_steps = warmup_steps
        self._differ = False

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
        weights = [self._weights[spec.key] for spec in self.model.specs]
        weights += [self.shared[spec.key] for spec in self.model.shared if spec.changes]
        slots = []
        if self.carry:  # counts of updates are the same on all ranks
            names = self.optimizer.slot_names(has_two_axes=False)
            slots = [of_one[name] for of_one in self._slots.values() for name in names]
        self._average_tensors([*weights, *slots], "weights")

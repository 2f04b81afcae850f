"""What the round loop needs of an algorithm."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ist_hpc.data.sparse_rows import Batch, Rows
from ist_hpc.exchange.tensors import State, all_finite
from ist_hpc.models.base import Model
from ist_hpc.models.gradients import GradientBuffers, Gradients
from ist_hpc.models.local_step import LocalStep
from ist_hpc.models.optimizer import Optimizer, Slots
from ist_hpc.models.shapes import SharedSpec
from ist_hpc.runtime.meters import ExchangeReport, Meter

if TYPE_CHECKING:
    from mpi4py import MPI


class Algorithm(ABC):
    """How the ranks train one model together, round by round.

    Between rounds the model can be visited at home: then `state` has the home blocks, from which it
    is evaluated and saved, and the next round continues as if there had been no visit.

    carry         whether optimiser state lasts from round to round, else each round resets it
    device        where the weights are, and batches must be
    state         partitioned weights and slots of this rank, by key
    shared        weights without an axis, the same on all ranks at the end of a round
    shared_slots  their slots
    slot_specs    the slots that a checkpoint holds
    meter         counts averaged bytes, and time apart from what the caller is timing
    averaged_by   what averages over the ranks, such as Horovod; None: nothing is averaged
    looks_ahead   whether `begin_round` wants the round's batches
    """

    averaged_by: str | None = None
    looks_ahead = False
    _kept: Sequence[Tensor] = ()

    def __init__(
        self,
        comm: "MPI.Comm",
        model: Model,
        optimizer: Optimizer,
        device: torch.device,
        seed: int,
        carry: bool,
    ) -> None:
        self.comm, self.rank, self.ranks = comm, comm.Get_rank(), comm.Get_size()
        self.seed = seed
        self.model, self.optimizer, self.device, self.carry = model, optimizer, device, carry
        self.meter = Meter(device)
        self.slot_specs = optimizer.slot_specs(model.specs) if carry else ()
        self.shared_slot_specs = optimizer.shared_slot_specs(model.shared) if carry else ()
        self.state: State = {}
        self.shared: dict[str, Tensor] = {}
        self.shared_slots: dict[str, Tensor] = {}
        # What this rank's steps change: partitioned and shared weights as stored, and the slots
        # of trained weights, in shapes that broadcast.
        self._weights: dict[str, Tensor] = {}
        self._slots: dict[str, Slots] = {}
        self._updates: dict[str, int] = {}  # for weights whose updates are counted separately
        self._steps_in_round = 0
        self._held: dict[str, Tensor] = {}  # rows of demanded tensors, by name of the demand
        self._room: GradientBuffers = {}

    @abstractmethod
    def start_new(self, given: Mapping[str, Tensor] | None = None) -> None:
        """Draw the initial weights, at home; use shared ones that are `given`. Collective."""

    @abstractmethod
    def start_from(
        self, state: State, shared: dict[str, Tensor], shared_slots: dict[str, Tensor]
    ) -> None:
        """Take home blocks and shared tensors, on the CPU, from a checkpoint. Collective."""

    @abstractmethod
    def begin_round(
        self, round_index: int, batches: Sequence[Batch] = (), trained: int = 0
    ) -> ExchangeReport:
        """Bring the weights to where the round trains them. Collective.

        batches  of all steps of the round, on the CPU; if it `looks_ahead`
        trained  steps of the run before them
        """

    @abstractmethod
    def step(self, features: Rows, labels: Rows, lr: float, trained: int) -> Tensor:
        """One local step; return the batch's mean loss, a scalar on the device. Local for IST.

        `trained` is the number of steps of the run before this one.
        """

    @abstractmethod
    def end_round(self) -> None:
        """Bring together what the ranks share, and bring home what lies there. Collective."""

    def _step_alone(self, features: Rows, labels: Rows, lr: float, trained: int) -> Tensor:
        """A step on this rank's own gradients. Local."""
        loss, gradients = self._own_gradients(features, labels, trained)
        self._update(gradients, lr, trained)
        return loss

    def _own_gradients(
        self, features: Rows, labels: Rows, trained: int
    ) -> tuple[Tensor, Gradients]:
        """Loss and gradients of this rank's batch. Local."""
        weights = {key: weight.detach() for key, weight in self._weights.items()}
        return self.model.loss_and_gradients(weights, features, labels, self._local_step(trained))

    def _local_step(self, trained: int) -> LocalStep:
        """The step that comes after so many of the run."""
        return LocalStep(self.seed, self.rank, trained, self._held, self._room)

    @torch.no_grad()
    def _update(self, gradients: Gradients, lr: float, trained: int) -> None:
        """The optimiser's step for every trained weight; empties `gradients`. Local."""
        of_all = trained if self.carry else self._steps_in_round
        for key, slots in self._slots.items():
            count = self._updates.get(key, of_all)
            self.optimizer.step(self._weights[key], gradients.pop(key), slots, lr, count)
            if key in self._updates:
                self._updates[key] += 1

    def changing(self) -> Iterator[Tensor]:
        """The tensors that this rank's steps and `end_round` change. Local."""
        yield from self._weights.values()
        if self.carry:
            for slots in self._slots.values():
                yield from slots.values()

    def keep_round(self) -> None:
        """Copy what the current round will change, so that it can be undone. Local.

        `undo_round` or `forget_kept` frees the copy.
        """
        self._kept = [tensor.detach().clone() for tensor in self.changing()]

    def is_finite(self) -> bool:
        """Whether everything that a round changes is finite on this rank. Local."""
        return all(map(all_finite, self.changing()))

    @torch.no_grad()
    def undo_round(self) -> None:
        """Undo the training since `keep_round`. Local; all ranks must do it."""
        for tensor, kept in zip(self.changing(), self._kept, strict=True):
            tensor.copy_(kept)
        self._updates = {key: n - self._steps_in_round for key, n in self._updates.items()}
        self._steps_in_round = 0
        self.forget_kept()

    def forget_kept(self) -> None:
        """Free the copy that `keep_round` made. Local."""
        self._kept = ()

    @abstractmethod
    def visit_home(self, with_slots: bool) -> ExchangeReport:
        """Fill the home blocks of the weights, and of the slots on request. Collective."""

    @abstractmethod
    def leave_home(self) -> None:
        """Free what only the visit needed. Local."""


def initial_shared(
    model: Model, spec: SharedSpec, seed: int, given: Mapping[str, Tensor] | None
) -> Tensor:
    """The initial value of a shared weight, on the CPU: the given one, else drawn. Local."""
    if given and spec.key in given:
        return given[spec.key].clone()
    return torch.from_numpy(model.initial_shared(spec, seed))

"""Every rank holds the whole model: the common part of data parallel training and local SGD.

A tensor is held like the subnet of a job of one rank, which is what models expect. At home a rank
has its rows of it, as under independent subnets, so evaluation and checkpoints are the same.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ist_hpc.data.sparse_rows import Batch, Rows
from ist_hpc.exchange.placement import TensorSpec
from ist_hpc.exchange.tensors import Held, State
from ist_hpc.models.gradients import Gradients
from ist_hpc.models.optimizer import as_broadcast, slot_key
from ist_hpc.models.shapes import SharedSpec
from ist_hpc.runtime.meters import ExchangeReport
from ist_hpc.training.algorithms.base import Algorithm, initial_shared

if TYPE_CHECKING:
    pass

_PIECE_ELEMENTS = 1 << 22

RowsOf = Callable[[int, int], Tensor]
"""Global rows [first, last) of a tensor, float32, in logical order, on the CPU."""


class Replicas(Algorithm):
    """One rank of several that hold the same model between rounds.

    A subclass defines a step and the end of a round. Nothing moves when a round begins.
    """

    _whole_slots: dict[str, Tensor]  # those of `_slots` by slot key, as stored

    # The start.

    def start_new(self, given: Mapping[str, Tensor] | None = None) -> None:
        """Draw the weights, each block by one rank; slots begin at zero. Collective."""
        self._whole_slots = {}
        for spec in self.model.specs:
            self._weights[spec.key] = self._assembled(
                spec,
                lambda first, last, spec=spec: torch.from_numpy(  # type: ignore[misc]
                    self.model.initial_rows(spec, self.seed, (first, last))
                ),
            )
        for shared in self.model.shared:
            values = initial_shared(self.model, shared, self.seed, given)
            self.shared[shared.key] = values.to(self.device)
        self._bind_tensors()
        self._wrap()

    def start_from(
        self, state: State, shared: dict[str, Tensor], shared_slots: dict[str, Tensor]
    ) -> None:
        """Assemble whole tensors from the ranks' home blocks. Collective."""
        self._whole_slots = {}
        for spec in self.model.specs:
            self._weights[spec.key] = self._assembled(spec, self._rows_of(state, spec))
        for spec in self.slot_specs:
            self._whole_slots[spec.key] = self._assembled(spec, self._rows_of(state, spec))
        self.shared = {key: tensor.to(self.device) for key, tensor in shared.items()}
        self.shared_slots = {key: tensor.to(self.device) for key, tensor in shared_slots.items()}
        self._bind_tensors()
        self._wrap()

    @abstractmethod
    def _wrap(self) -> None:
        """Register the weights with what averages them, for the whole run. Collective."""

    def _rows_of(self, state: State, spec: TensorSpec) -> RowsOf:
        """The rows of a home block, removed from `state` so that it is freed afterwards."""
        block = state.pop(spec.key).place("home")
        start = spec.home_rows(self.rank, self.ranks)[0]
        return lambda first, last: block[first - start : last - start]

    def _assembled(self, spec: TensorSpec, own_rows: RowsOf) -> Tensor:
        """A whole tensor as stored, from the rows that are at home on each rank. Collective."""
        whole = torch.empty(spec.subnet_shape(0, 1), device=self.device)
        logical = whole.transpose(0, 1) if spec.transposed else whole
        step = max(1, _PIECE_ELEMENTS * spec.rows // max(1, whole.numel()))
        for root in range(self.ranks):
            start, stop = spec.home_rows(root, self.ranks)
            for first in range(start, stop, step):
                last = min(first + step, stop)
                if root == self.rank:
                    piece = own_rows(first, last).contiguous()
                else:
                    piece = torch.empty(last - first, *spec.shape[1:])
                self.comm.Bcast(piece.numpy(), root=root)
                logical[first:last].copy_(piece)
        return whole

    def _bind_tensors(self) -> None:
        """Let `step` train the tensors that were drawn or read."""
        self._weights |= self.shared
        names = self.optimizer.slot_names(has_two_axes=False)
        counting = set(self.optimizer.slot_names(has_two_axes=True)) - set(names)
        for spec in self.model.specs:
            self._slots[spec.key] = {slot: self._take_slot(slot, spec) for slot in names}
            # In a middle layer Adam counts updates per element. Here the counts are equal, and one
            # number stands for the tensor, unless a checkpoint of dealt subnets says otherwise.
            for slot in counting if spec.has_two_axes else ():
                key = slot_key(slot, spec.key)
                counts = self._whole_slots.pop(key, None)
                lowest, highest = (0, 0) if counts is None else map(int, torch.aminmax(counts))
                if counts is None or lowest == highest:
                    self._updates[spec.key] = lowest
                else:
                    self._whole_slots[key] = self._slots[spec.key][slot] = counts
        for shared in self.model.shared:
            if shared.trained:
                own = {slot: self._take_shared_slot(slot, shared) for slot in names}
                self._slots[shared.key] = own

    def _take_slot(self, slot: str, spec: TensorSpec) -> Tensor:
        """A slot of a weight, zero unless it was read."""
        slot_spec = self.optimizer.slot_spec(slot, spec)
        if slot_spec.key not in self._whole_slots:
            shape = slot_spec.subnet_shape(0, 1)
            self._whole_slots[slot_spec.key] = torch.zeros(shape, device=self.device)
        return as_broadcast(self._whole_slots[slot_spec.key], slot_spec, spec)

    def _take_shared_slot(self, slot: str, shared: SharedSpec) -> Tensor:
        """A slot of a shared weight, zero unless it was read."""
        key = slot_key(slot, shared.key)
        if key in self.shared_slots:
            return self.shared_slots[key]
        zeros = torch.zeros(shared.shape, device=self.device)
        if self.carry:
            self.shared_slots[key] = zeros
        return zeros

    # A round.

    def begin_round(
        self, round_index: int, batches: Sequence[Batch] = (), trained: int = 0
    ) -> ExchangeReport:
        """Reset the optimiser state if it is not carried; nothing moves. Local."""
        self._steps_in_round = 0
        if not self.carry:
            for slots in self._slots.values():
                for slot in slots.values():
                    slot.zero_()
            self._updates = dict.fromkeys(self._updates, 0)
        return ExchangeReport()

    def step(self, features: Rows, labels: Rows, lr: float, trained: int) -> Tensor:
        """One step; return the loss of this rank's batch. Collective if gradients are averaged.

        `trained` is the number of steps of the run before this one.
        """
        if self.ranks > 1:
            loss = self._step(features, labels, lr, trained)
        else:  # nothing to average, and sparse rows are updated lazily
            loss = self._step_alone(features, labels, lr, trained)
        self._steps_in_round += 1
        return loss

    @abstractmethod
    def _step(self, features: Rows, labels: Rows, lr: float, trained: int) -> Tensor:
        """See `step`; there are several ranks."""

    def end_round(self) -> None:
        """Average what the steps left different on the ranks. Collective."""
        self._room = {}
        if self.ranks > 1:
            self._average()

    @abstractmethod
    def _average(self) -> None:
        """Average what differs between the ranks, and count its bytes. Collective."""

    def _running_statistics(self) -> list[Tensor]:
        """Shared tensors that a step changes without a gradient."""
        specs = [spec for spec in self.model.shared if spec.changes and not spec.trained]
        return [self.shared[spec.key] for spec in specs]

    # Visits home.

    def visit_home(self, with_slots: bool) -> ExchangeReport:
        """Show this rank's rows of the weights, and of the slots, as home blocks. Local.

        They are views, but copies if the tensor is stored transposed.
        """
        for spec in self.model.specs:
            self.state[spec.key] = Held(home=self._home_rows(spec, self._weights[spec.key]))
        for spec in self.slot_specs if with_slots else ():
            if spec.key in self._whole_slots:
                block = self._home_rows(spec, self._whole_slots[spec.key])
            else:
                weight = spec.key.partition("/")[2]
                shape = spec.home_shape(self.rank, self.ranks)
                block = torch.full(shape, float(self._updates[weight]), device=self.device)
            self.state[spec.key] = Held(home=block)
        return ExchangeReport()

    def _home_rows(self, spec: TensorSpec, whole: Tensor) -> Tensor:
        first, last = spec.home_rows(self.rank, self.ranks)
        logical = whole.detach().transpose(0, 1) if spec.transposed else whole.detach()
        return logical[first:last].contiguous()

    def leave_home(self) -> None:
        """Free the home blocks. Local."""
        self.state = {}


def gradients_of(weights: Mapping[str, Tensor]) -> Gradients:
    """The gradients of weights, by key."""
    gradients: Gradients = {}
    for key, weight in weights.items():
        assert weight.grad is not None, key
        gradients[key] = weight.grad
    return gradients

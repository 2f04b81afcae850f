"""Independent subnet training: deal, train alone, deal again (paper, sections 3 and 4)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ist_hpc.data.sparse_rows import Batch, Rows
from ist_hpc.exchange.exchanger import Exchanger, allocate_home, drop_home_copies
from ist_hpc.exchange.placement import Placement, TensorSpec, at_round, home
from ist_hpc.exchange.tensors import State, zeros_at
from ist_hpc.models.base import Model
from ist_hpc.models.optimizer import Optimizer, as_broadcast, slot_key
from ist_hpc.runtime.meters import ExchangeReport
from ist_hpc.training.algorithms.base import Algorithm, initial_shared
from ist_hpc.training.averaging import Averages

if TYPE_CHECKING:
    from mpi4py import MPI

_DRAWN_ELEMENTS = 1 << 22


class IndependentSubnets(Algorithm):
    """One rank of independent subnet training.

    carry     whether optimiser state travels with its weights, else each round resets it
    averages  averages shared weights over the ranks; None if the model has none
    """

    def __init__(
        self,
        comm: "MPI.Comm",
        model: Model,
        optimizer: Optimizer,
        exchanger: Exchanger,
        seed: int,
        carry: bool,
        averages: Averages | None,
    ) -> None:
        assert averages is not None or not model.shared
        super().__init__(comm, model, optimizer, exchanger.device, seed, carry)
        self.exchanger, self._averages = exchanger, averages
        self.averaged_by = None if averages is None else averages.by
        self.placement = home(self.ranks)
        self._demanded = {spec.demanded: spec.rows for spec in model.specs if spec.demanded}
        self.looks_ahead = bool(self._demanded) and self.ranks > 1

    def start_new(self, given: Mapping[str, Tensor] | None = None) -> None:
        """Draw the home blocks of the weights block by block; slots begin at zero. Collective."""
        at_home = home(self.ranks)
        self.state = allocate_home(self.model.specs, self.rank, self.ranks, self.device)
        for spec in self.model.specs:
            self._draw(spec)
        self.state |= zeros_at(self.slot_specs, at_home, self.rank, self.device)
        self.shared = {
            spec.key: initial_shared(self.model, spec, self.seed, given).to(self.device)
            for spec in self.model.shared
        }
        self.shared_slots = {
            spec.key: torch.zeros(spec.shape, device=self.device) for spec in self.shared_slot_specs
        }
        self._start()

    def _draw(self, spec: TensorSpec) -> None:
        """Fill a home block, some rows at a time: the CPU draws them, beside the block."""
        block = self.state[spec.key].place("home")
        first, last = spec.home_rows(self.rank, self.ranks)
        step = max(1, _DRAWN_ELEMENTS * len(block) // max(1, block.numel()))
        for start in range(first, last, step):
            stop = min(start + step, last)
            values = self.model.initial_rows(spec, self.seed, (start, stop))
            block[start - first : stop - first].copy_(torch.from_numpy(values))

    def start_from(
        self, state: State, shared: dict[str, Tensor], shared_slots: dict[str, Tensor]
    ) -> None:
        """Take home blocks and shared tensors, on the CPU, from a checkpoint. Collective."""
        for held in state.values():  # one by one: each is freed once copied
            held.home = held.place("home").to(self.device)
        self.state = state
        self.shared = {key: tensor.to(self.device) for key, tensor in shared.items()}
        self.shared_slots = {key: tensor.to(self.device) for key, tensor in shared_slots.items()}
        self._start()

    def _start(self) -> None:
        """Begin at home, with rank 0's shared weights on all ranks (all drew or read the same)."""
        self.placement = home(self.ranks)
        if self._averages is not None:
            self._averages.broadcast(self.shared | self.shared_slots)

    def begin_round(
        self, round_index: int, batches: Sequence[Batch] = (), trained: int = 0
    ) -> ExchangeReport:
        """Exchange the weights, and carried slots, to the subnets of the round. Collective.

        Of demanded tensors come the rows that `batches` will use; see the base class.
        """
        target = at_round(self.model.axes, self.ranks, self.seed, round_index)
        asking = ExchangeReport()
        self._let_go_of_demanded()  # of a round that was given up
        if self.looks_ahead:
            target, asking = self._with_demands(target, batches, trained)
        self._weights, self._slots = {}, {}  # so that the exchange can free the old subnets
        specs = (*self.model.specs, *self.slot_specs)
        report = self.exchanger.exchange(specs, self.placement, target, self.state)
        self.placement = target
        self._bind_tensors()
        return asking + report

    def _let_go_of_demanded(self) -> None:
        """Free the rows that a round held by demand. Local."""
        for spec in (*self.model.specs, *self.slot_specs) if self.looks_ahead else ():
            if spec.demanded is not None:
                self.state[spec.key].subnet = None
                self._weights.pop(spec.key, None)
                self._slots.pop(spec.key, None)

    def _with_demands(
        self, placement: Placement, batches: Sequence[Batch], trained: int
    ) -> tuple[Placement, ExchangeReport]:
        """The placement of a round in which these batches are trained. Collective."""
        demands, report = {}, ExchangeReport()
        wanted = self.model.demanded_rows(batches, self.seed, trained)
        for name, size in self._demanded.items():
            demands[name], asking = self.exchanger.ask(size, wanted[name])
            report += asking
            self._held[name] = torch.from_numpy(demands[name].rows).to(self.device)
        return replace(placement, demands=demands), report

    def _bind_tensors(self) -> None:
        """Let `step` train the subnet's tensors and the shared ones."""
        self._steps_in_round = 0
        for spec in self.model.specs:
            self._weights[spec.key] = self._trained(spec)
            self._slots[spec.key] = {
                slot: self._slot(slot, spec)
                for slot in self.optimizer.slot_names(spec.has_two_axes)
            }
        for shared in self.model.shared:
            weight = self._weights[shared.key] = self.shared[shared.key]
            if not shared.trained:
                continue
            self._slots[shared.key] = {
                slot: self.shared_slots[slot_key(slot, shared.key)]
                if self.carry
                else torch.zeros_like(weight)
                for slot in self.optimizer.slot_names(has_two_axes=False)
            }

    def _slot(self, slot: str, spec: TensorSpec) -> Tensor:
        """A slot of a weight in the shape for the optimiser."""
        slot_spec = self.optimizer.slot_spec(slot, spec)
        if self.carry:
            stored = self._trained(slot_spec)
        else:
            stored = torch.zeros(
                self.placement.trained_shape(slot_spec, self.rank), device=self.device
            )
        return as_broadcast(stored, slot_spec, spec)

    def _trained(self, spec: TensorSpec) -> Tensor:
        """What the round trains of a tensor: the subnet, or one rank's home block."""
        at_home = self.placement.trains_at_home(spec)
        return self.state[spec.key].place("home" if at_home else "subnet")

    def step(self, features: Rows, labels: Rows, lr: float, trained: int) -> Tensor:
        """One step of the thin network. Local."""
        loss = self._step_alone(features, labels, lr, trained)
        self._steps_in_round += 1
        return loss

    def end_round(self) -> None:
        """Average the shared weights and the copies of shared units; give demanded rows back.

        With carried slots. Collective if there are any.
        """
        self._room = {}
        if self._averages is not None:
            changed = [self.shared[spec.key] for spec in self.model.shared if spec.changes]
            averaged = [*changed, *self.shared_slots.values()]
            self._averages.average(averaged)
            self.meter.count_average(sum(tensor.numel() for tensor in averaged), self.ranks)
        specs = (*self.model.specs, *self.slot_specs)
        self.meter.count_exchange(self.exchanger.settle(specs, self.placement, self.state))
        if self.looks_ahead:
            with self.meter.timing("exchange"):
                report = self.exchanger.give_back(specs, self.placement, self.state)
            self.meter.count_exchange(report)
            self._let_go_of_demanded()

    def visit_home(self, with_slots: bool) -> ExchangeReport:
        """Exchange home, keeping the subnets. Collective."""
        specs = (*self.model.specs, *(self.slot_specs if with_slots else ()))
        target = home(self.ranks)
        return self.exchanger.exchange(specs, self.placement, target, self.state, keep_source=True)

    def leave_home(self) -> None:
        """Free the home blocks that the round does not use. Local."""
        drop_home_copies((*self.model.specs, *self.slot_specs), self.placement, self.state)

"""The cost of a run, computed before it starts: bytes of a round, operations of a step.

Everything is counted from shapes and deals: no MPI, no data but how often labels occur. Bytes are
what the exchange passes to Alltoallv, exactly but for rows that ranks ask for, which are counted as
many as they are on average; operations are those of the matrix products. The same is counted for
data parallel training and for local SGD, where every rank holds the whole model and averages by a
ring allreduce. memory.py counts what a rank holds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ist_hpc.common.sizes import ELEMENT_BYTES, allreduce_bytes
from ist_hpc.exchange.demand import Demand, evenly
from ist_hpc.exchange.giving_back import giving_back_counts
from ist_hpc.exchange.placement import Axis, Placement, TensorSpec, at_round, elements, home
from ist_hpc.exchange.plan import pair_counts
from ist_hpc.exchange.settling import settling_counts
from ist_hpc.models.layers import Layer

if TYPE_CHECKING:
    from ist_hpc.models.base import Model
    from ist_hpc.models.optimizer import Optimizer


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained, and on how many ranks: all that the cost depends on.

    model, rule      the network and the optimiser, which state their own needs
    carry            whether slots travel with their weights, else each round resets them
    keeps_rounds     whether a round's weights and carried slots are kept, to give the round up
    batch_size       rows that a rank trains on in one step
    row_entries      average non-zeros in a sparse row; None for dense rows
    calibration_rows, evaluation_rows
                     rows through the full network at a time, on every rank
    window_bytes     bound of the rows that are kept for shuffling
    buffer_bytes     bound of the exchange's send and receive buffer together
    product_bytes    bytes per number that enters or leaves a product: 2 under bf16
    """

    model: "Model"
    rule: "Optimizer"
    ranks: int
    seed: int = 0
    carry: bool = True
    keeps_rounds: bool = False
    batch_size: int = 128
    row_entries: float | None = None
    local_steps: int = 20
    calibration_rows: int = 2048
    evaluation_rows: int = 1024
    window_bytes: int = 256 << 20
    buffer_bytes: int = 256 << 20
    product_bytes: int = ELEMENT_BYTES

    @property
    def weights(self) -> tuple[TensorSpec, ...]:
        """The partitioned weights, in the order of the forward pass."""
        return self.model.specs

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers, first to last."""
        return self.model.layers

    @cached_property
    def slots(self) -> tuple[TensorSpec, ...]:
        """The slots of the partitioned weights."""
        return self.rule.slot_specs(self.model.specs)

    @property
    def exchanged(self) -> tuple[TensorSpec, ...]:
        """The tensors that every round exchanges: the weights, and the slots if carried."""
        return (*self.weights, *(self.slots if self.carry else ()))

    @property
    def shared_elements(self) -> int:
        """Elements of the weights without an axis."""
        return sum(spec.elements for spec in self.model.shared)

    @property
    def untrained_elements(self) -> int:
        """Elements of the shared weights without a gradient."""
        return sum(spec.elements for spec in self.model.shared if not spec.trained)

    @property
    def frozen_elements(self) -> int:
        """Elements of the shared weights that do not change."""
        return sum(spec.elements for spec in self.model.shared if not spec.changes)

    @property
    def shared_slot_elements(self) -> int:
        """Elements of the slots of shared weights."""
        return sum(spec.elements for spec in self.rule.shared_slot_specs(self.model.shared))

    @property
    def replica_slot_elements(self) -> int:
        """Elements of the other slots if weights are not dealt out.

        Under data parallel training and local SGD no element has its own count of updates.
        """
        return sum(
            elements(self.rule.slot_spec(slot, spec))
            for spec in self.weights
            for slot in self.rule.slot_names(has_two_axes=False)
        )

    @property
    def weight_elements(self) -> int:
        """Weights of the whole model, shared ones included."""
        return sum(elements(spec) for spec in self.weights) + self.shared_elements

    @cached_property
    def demands(self) -> dict[str, Demand]:
        """Of rank 0, which asks in each round for as many rows as ranks do on average."""
        expected = self.model.expected_demands(self.batch_size, self.local_steps)
        return {
            name: evenly(0, size, self.ranks, round(rows))
            for name, (size, rows) in expected.items()
            if self.ranks > 1
        }

    @property
    def rows_asked_for(self) -> dict[str, float]:
        """Rows that a rank asks for in a round, on average, by name of the demand."""
        return {name: float(len(demand.rows)) for name, demand in self.demands.items()}

    def placement(self, round_index: int) -> Placement:
        """The placement of a round; raises `InputError` if there are more ranks than units."""
        placement = at_round(self.model.axes, self.ranks, self.seed, round_index)
        return replace(placement, demands=self.demands)


# Bytes.


def expected_received(spec: TensorSpec, ranks: int, asked: float = 0.0) -> float:
    """Elements of a tensor that a rank receives in an exchange between rounds, on average.

    One dealt axis: S/N (1 - 1/N). Two: S/N^2 (1 - 1/N)(2 - 1/N). Averaged over deals and ranks.
    Of units that ranks share, what a rank trains instead of 1/N, and copies to settle. Of rows
    that a rank asks for, `asked` of them, what comes and what other ranks give back.
    """
    share, moving = 1 / ranks, 1 - 1 / ranks
    if spec.demanded is not None:
        return 2 * asked * moving * spec.columns * (1 if spec.column_axis is None else share)
    if spec.has_two_axes:
        return elements(spec) * share**2 * moving * (1 + moving)
    if spec.least == 1:
        return elements(spec) * share * moving
    axis = Axis(spec.rows, spec.least)
    trained = sum(axis.count(rank, ranks) for rank in range(ranks)) / (ranks * axis.size)
    return elements(spec) * (trained * moving + trained - share)


def expected_received_at_home(spec: TensorSpec, ranks: int) -> float:
    """Elements of a tensor that a rank receives in a visit home, on average.

    The size of its subnet, S/N with one dealt axis and S/N^2 with two; times 1 - 1/N.
    Demanded tensors are at home.
    """
    if spec.demanded is not None:
        return 0.0
    share = 1 / ranks ** (2 if spec.has_two_axes else 1)
    return elements(spec) * share * (1 - 1 / ranks)


def expected_bytes(
    specs: Sequence[TensorSpec],
    ranks: int,
    at_home: bool = False,
    asked: Mapping[str, float] | None = None,
) -> float:
    """Bytes that a rank receives, on average, in an exchange between rounds or in a visit home.

    asked  rows that a rank asks for in a round, by name of the demand
    """
    if at_home:
        return sum(expected_received_at_home(spec, ranks) for spec in specs) * ELEMENT_BYTES
    asked = asked or {}
    elements = sum(
        expected_received(spec, ranks, asked.get(spec.demanded or "", 0.0)) for spec in specs
    )
    requests = sum(asked.values()) * (1 - 1 / ranks)
    return (elements + requests) * ELEMENT_BYTES


@dataclass(frozen=True, eq=False)
class ExchangeBytes:
    """The bytes of one exchange per rank, int64 [ranks]; sent and received totals are equal.

    round_index  the round that the exchange leads to
    """

    round_index: int
    sent: npt.NDArray[np.int64]
    received: npt.NDArray[np.int64]

    @property
    def total(self) -> int:
        """Bytes received by all ranks together."""
        return int(self.received.sum())


def exact_bytes(job: Job, rounds: int) -> list[ExchangeBytes]:
    """The exchanges from home to round 0, from 0 to 1, ... to `rounds`: `rounds` + 1 of them.

    Each with what settles the units that are shared in the round that it leads to, and gives
    demanded rows back.

    Exactly what a run of this seed measures (`bytes_received` of its rows), whether or not it
    visits home between rounds; but demanded rows are as many as they are on average. Raises
    `InputError` if there are more ranks than units.
    """
    source, exchanges = home(job.ranks), []
    for round_index in range(rounds + 1):
        target = job.placement(round_index)
        counts = pair_counts(job.exchanged, source, target)
        counts += settling_counts(job.exchanged, target)
        counts += giving_back_counts(job.exchanged, target) + _requested(target)
        counts *= ELEMENT_BYTES
        exchanges.append(ExchangeBytes(round_index, counts.sum(axis=1), counts.sum(axis=0)))
        source = target
    return exchanges


def _requested(placement: Placement) -> npt.NDArray[np.int64]:
    """Numbers of rows that s asks of q, an element each; int64 [ranks, ranks]."""
    total = np.zeros((placement.ranks, placement.ranks), dtype=np.int64)
    total = sum((demand.counts for demand in placement.demands.values()), total)
    return total - np.diag(np.diag(total))


def averaging_bytes(job: Job) -> float:
    """Bytes that a rank receives in a round to average the shared weights and carried slots."""
    slots = job.shared_slot_elements if job.carry else 0
    return allreduce_bytes(job.shared_elements - job.frozen_elements + slots, job.ranks)


def data_parallel_bytes(job: Job) -> float:
    """Bytes that a rank receives in `local_steps` steps of data parallel training.

    One allreduce of the gradient per step, and one of running statistics at the end.
    """
    weights = sum(averaged_elements(job, steps=1, with_slots=False))
    gradient = allreduce_bytes(weights - job.untrained_elements, job.ranks)
    statistics = allreduce_bytes(job.untrained_elements - job.frozen_elements, job.ranks)
    return job.local_steps * gradient + statistics


def local_sgd_bytes(job: Job) -> float:
    """Bytes that a rank receives in a round of local SGD: an allreduce of weights and slots.

    Slots only if they are carried. Where labels are sampled, at most the rows that ranks train.
    """
    averaged = sum(averaged_elements(job, job.local_steps, with_slots=job.carry))
    slots = job.shared_slot_elements if job.carry else 0
    return allreduce_bytes(averaged - job.frozen_elements + slots, job.ranks)


def averaged_elements(job: Job, steps: int, with_slots: bool) -> tuple[float, float]:
    """Elements that ranks with whole models average after so many steps: (whole tensors, rows).

    Where labels are sampled, of weights that are updated row by row, and their slots, at most the
    rows that steps of all ranks use; else all are whole tensors. Slots of shared weights are left
    out.
    """
    rows, whole, of_rows = job.ranks * job.batch_size, float(job.shared_elements), 0.0
    names = job.rule.slot_names(has_two_axes=False) if with_slots else ()
    for spec in job.weights:
        part = job.model.updated_part(spec, rows, steps, job.row_entries)
        for tensor in (spec, *(job.rule.slot_spec(name, spec) for name in names)):
            is_alike = tensor.shape == spec.shape or tensor.is_number_a_row
            if spec.key in job.model.averaged_by_row and is_alike:
                of_rows += part * elements(tensor)
            else:
                whole += elements(tensor)
    return whole, of_rows


def subnets_through_server_bytes(job: Job) -> int:
    """Bytes per round of all ranks together, if every subnet went to a server and back.

    ResIST (table 3) counts in this way: float32, weights alone, without running statistics.
    """
    own = sum(
        math.prod(spec.subnet_shape(rank, job.ranks))
        for spec in job.weights
        for rank in range(job.ranks)
    )
    shared = job.ranks * (job.shared_elements - job.untrained_elements)
    return 2 * (own + shared) * ELEMENT_BYTES


def wholes_through_server_bytes(job: Job) -> int:
    """The same if every rank had the whole model, as under local SGD."""
    return 2 * job.ranks * (job.weight_elements - job.untrained_elements) * ELEMENT_BYTES


# Operations.


def step_flops(
    layers: Sequence[Layer],
    batch_size: int,
    ranks: int,
    rank: int = 0,
    row_entries: float | None = None,
    outputs: float | None = None,
) -> int:
    """Floating-point operations of one step of one rank: those of its products.

    Two a multiply-add, for the output, the gradient of the weight and the gradient of the input;
    the first layer that is trained has no use for the last one, one that is not for the output
    only. Element-wise work,
    such as batch norm and the optimiser's, is not counted. With `row_entries` non-zeros a row, on
    average, the first layer is multiplied with these only, and with `outputs` the last one has so
    many. `ranks` is 1 for a whole model.
    """
    total, trained = 0.0, False
    for index, layer in enumerate(layers):
        products = 1 + layer.trained + trained
        trained |= layer.trained
        size: float = layer.own_outputs(ranks, rank) * layer.own_inputs(ranks, rank) * layer.kernel
        size *= layer.own_copies(ranks, rank)
        if index == 0 and row_entries is not None:
            size *= row_entries / layer.inputs
        if index == len(layers) - 1 and outputs is not None:
            size *= outputs / layer.outputs
        total += 2 * products * batch_size * size * layer.positions
    return round(total)

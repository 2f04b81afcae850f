"""The cost of a run, computed before it starts: bytes of a round, operations of a step.

Everything is counted from shapes and deals: no MPI, no torch, no data. Bytes are what the exchange
passes to Alltoallv, exactly; operations are those of the matrix products. The same is counted for
data parallel training and for local SGD, where every rank holds the whole model and averages by a
ring allreduce. memory.py counts what a rank holds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ist_hpc.common.sizes import ELEMENT_BYTES, allreduce_bytes
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

    def placement(self, round_index: int) -> Placement:
        """The placement of a round; raises `InputError` if there are more ranks than units."""
        return at_round(self.model.axes, self.ranks, self.seed, round_index)


# Bytes.


def expected_received(spec: TensorSpec, ranks: int) -> float:
    """Elements of a tensor that a rank receives in an exchange between rounds, on average.

    One dealt axis: S/N (1 - 1/N). Two: S/N^2 (1 - 1/N)(2 - 1/N). Averaged over deals and ranks.
    If ranks share units, their share replaces 1/N, and copies to settle are added.
    """
    share, moving = 1 / ranks, 1 - 1 / ranks
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
    """
    share = 1 / ranks ** (2 if spec.has_two_axes else 1)
    return elements(spec) * share * (1 - 1 / ranks)


def expected_bytes(specs: Sequence[TensorSpec], ranks: int, at_home: bool = False) -> float:
    """Average bytes that a rank receives in an exchange between rounds or in a visit home."""
    count = expected_received_at_home if at_home else expected_received
    return sum(count(spec, ranks) for spec in specs) * ELEMENT_BYTES


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

    Each includes settling the shared units of the round that it leads to.

    These are exactly the bytes that a run with this seed measures (`bytes_received` in its rows),
    whether or not it visits home between rounds. Raises `InputError` if there are more ranks than
    units.
    """
    source, exchanges = home(job.ranks), []
    for round_index in range(rounds + 1):
        target = job.placement(round_index)
        counts = pair_counts(job.exchanged, source, target)
        counts = (counts + settling_counts(job.exchanged, target)) * ELEMENT_BYTES
        exchanges.append(ExchangeBytes(round_index, counts.sum(axis=1), counts.sum(axis=0)))
        source = target
    return exchanges


def averaging_bytes(job: Job) -> float:
    """Bytes that a rank receives in a round to average the shared weights and carried slots."""
    slots = job.shared_slot_elements if job.carry else 0
    return allreduce_bytes(job.shared_elements - job.frozen_elements + slots, job.ranks)


def data_parallel_bytes(job: Job) -> float:
    """Bytes that a rank receives in `local_steps` steps of data parallel training.

    One allreduce of the gradient per step, and one of running statistics at the end.
    """
    gradient = allreduce_bytes(job.weight_elements - job.untrained_elements, job.ranks)
    statistics = allreduce_bytes(job.untrained_elements - job.frozen_elements, job.ranks)
    return job.local_steps * gradient + statistics


def local_sgd_bytes(job: Job) -> float:
    """Bytes that a rank receives in a round of local SGD: an allreduce of weights and slots.

    Slots count only if they are carried.
    """
    slots = job.replica_slot_elements + job.shared_slot_elements if job.carry else 0
    return allreduce_bytes(job.weight_elements - job.frozen_elements + slots, job.ranks)


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
) -> int:
    """Floating-point operations of one step of one rank: those of its products.

    Two per multiply-add, for the output, the gradient of the weight and the gradient of the input.
    The first trained layer does not need the last of these; a layer that is not trained needs only
    the output. Element-wise work, such as batch norm and the optimiser's, is not counted. With an
    average of `row_entries` non-zeros per row, the first layer multiplies only these. `ranks` is 1
    for a whole model.
    """
    total, trained = 0.0, False
    for index, layer in enumerate(layers):
        products = 1 + layer.trained + trained
        trained |= layer.trained
        size: float = layer.own_outputs(ranks, rank) * layer.own_inputs(ranks, rank) * layer.kernel
        size *= layer.own_copies(ranks, rank)
        if index == 0 and row_entries is not None:
            size *= row_entries / layer.inputs
        total += 2 * products * batch_size * size * layer.positions
    return round(total)

"""What the cost of a layer depends on, and the activations that it holds: counted from shapes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ist_hpc.common.blocks import block_bounds
from ist_hpc.common.sizes import ELEMENT_BYTES
from ist_hpc.exchange.placement import Axis, TensorSpec

IMAGES_AT_ONCE = 64
"""Rows that go through the convolutions of the full network at a time."""

GATHER_BYTES = 8 << 20
"""Of the activations that the full network's ranks gather, at a time, beside what was gathered."""


@dataclass(frozen=True)
class Layer:
    """A linear map, or a convolution, as far as its cost depends on it.

    outputs, inputs              units on either side: neurons or channels
    dealt_outputs, dealt_inputs  whether these are dealt out, else every rank has all
    kernel                       weights between two units: 9 of a 3 x 3 convolution
    positions, positions_in      values of a unit for one row, on either side: height x width
    trained                      whether it has a gradient; those that have none come first
    copies                       of a layer that is dealt out as a whole: of how many alike
    calibrated                   of a shared one: its norm takes all calibration rows at once
    beside                       values as many as its outputs that are held at a time in the full
                                 network, with them: two, before and after a norm
    """

    outputs: int
    inputs: int
    dealt_outputs: bool
    dealt_inputs: bool
    kernel: int = 1
    positions: int = 1
    positions_in: int = 1
    trained: bool = True
    copies: Axis | None = None
    calibrated: bool = False
    beside: int = 2

    def own_copies(self, ranks: int, rank: int = 0) -> int:
        """How many such layers, one after the other, a rank has in a round."""
        return 1 if self.copies is None else self.copies.count(rank, ranks)

    @property
    def shared(self) -> bool:
        """Whether every rank has all outputs and inputs."""
        return not (self.dealt_outputs or self.dealt_inputs)

    def own_outputs(self, ranks: int, rank: int = 0) -> int:
        """Outputs that a rank has in a round."""
        return _own(self.outputs, ranks, rank) if self.dealt_outputs else self.outputs

    def own_inputs(self, ranks: int, rank: int = 0) -> int:
        """Inputs that a rank has in a round."""
        return _own(self.inputs, ranks, rank) if self.dealt_inputs else self.inputs

    def home_outputs(self, ranks: int) -> int:
        """Outputs that are at home on rank 0, of a layer whose outputs are dealt out or divided."""
        return _own(self.outputs, ranks, 0)

    def step_width(self, ranks: int) -> int:
        """Numbers that come out for one row in a step of rank 0."""
        return self.own_outputs(ranks) * self.positions

    def full_rows(self, rows: int, ranks: int, calibrate: bool) -> int:
        """Of so many rows through the full network those that a rank computes at a time.

        Of convolutions some, but for the calibration of those that are dealt out.
        """
        if self.positions == 1 or (calibrate and (self.calibrated or not self.shared)):
            return rows
        divided = self.shared and self.copies is None
        return min(-(-rows // ranks) if divided else rows, IMAGES_AT_ONCE)

    def full_bytes(self, rows: int, ranks: int) -> int:
        """Bytes of rows that are computed at a time in the full network, beside what came in.

        Either rank 0's outputs before and after their norm, or its outputs and those of all ranks,
        with the rows that are being gathered.
        """
        whole = self.outputs * self.positions
        if self.shared:  # every rank computes all of it, for rows of its own
            return rows * self.beside * whole * ELEMENT_BYTES
        own = self.home_outputs(ranks) * self.positions
        norming = rows * 2 * own * ELEMENT_BYTES
        gathering = rows * (own + whole) * ELEMENT_BYTES
        gathering += min(rows * whole * ELEMENT_BYTES, GATHER_BYTES)
        return max(norming, gathering if ranks > 1 else 0)

    def relayed_bytes(self, rows: int, ranks: int, calibrate: bool) -> int:
        """Bytes of all rows where these go from rank to rank: before and after the layers.

        What arrives; in an evaluation also what is sent, and with one rank put together.
        """
        if self.copies is None:
            return 0
        times = 1 if calibrate else 3 if ranks == 1 else 2
        return times * rows * self.outputs * self.positions * ELEMENT_BYTES


def _own(units: int, ranks: int, rank: int) -> int:
    return int(np.diff(block_bounds(units, ranks))[rank])


def kept_numbers(layers: Sequence[Layer], ranks: int) -> int:
    """Numbers of a row that trained layers hold in a step of rank 0: an estimate.

    Two of every layer's width, before and after its norm; and two of the widest while gradients
    pass through it.
    """
    widths = [
        layer.step_width(ranks)
        for layer in layers
        if layer.trained
        for _ in range(layer.own_copies(ranks))
    ]
    return 2 * sum(widths) + 2 * max(widths, default=0)


def passing_numbers(layers: Sequence[Layer], ranks: int) -> int:
    """Numbers of a row in layers that are not trained, of which nothing stays.

    Before and after a norm, and what came in, one layer at a time.
    """
    return max(
        (
            2 * layer.step_width(ranks) + layer.own_inputs(ranks) * layer.positions_in
            for layer in layers
            if not layer.trained
        ),
        default=0,
    )


def layers_of(specs: Iterable[TensorSpec]) -> tuple[Layer, ...]:
    """The layers of a network whose every matrix is one, in the order of the forward pass."""
    return tuple(
        Layer(
            spec.rows,
            spec.columns,
            spec.row_axis is not None,
            spec.column_axis is not None,
            spec.element_width,
        )
        for spec in matrices(specs)
    )


def matrices(specs: Iterable[TensorSpec]) -> list[TensorSpec]:
    """The weights that are multiplied with activations: those of two and more dimensions."""
    return [spec for spec in specs if len(spec.shape) > 1]

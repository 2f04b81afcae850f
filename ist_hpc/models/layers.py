"""The cost of a layer and the activations that it holds, counted from shapes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ist_hpc.common.blocks import block_bounds
from ist_hpc.common.sizes import ELEMENT_BYTES
from ist_hpc.exchange.placement import Axis, TensorSpec

IMAGES_AT_ONCE = 64
"""Rows that pass through the convolutions of the full network at a time."""

GATHER_BYTES = 8 << 20
"""Bytes of activations that ranks of the full network gather at a time, beside those gathered."""


@dataclass(frozen=True)
class Layer:
    """The properties of a linear map or a convolution on which its cost depends.

    outputs, inputs              units on either side: neurons or channels
    dealt_outputs, dealt_inputs  whether these are dealt out, else every rank has all
    kernel                       weights between two units: 9 for a 3 x 3 convolution
    positions, positions_in      values per unit and row, on either side: height x width
    trained                      whether it has a gradient; layers without come first
    copies                       if whole layers are dealt out: the number of equal layers
    calibrated                   if shared: whether its norm takes all calibration rows at once
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
        """The number of such layers, one after the other, that a rank has in a round."""
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
        """Outputs at home on rank 0, for a layer whose outputs are dealt out or divided."""
        return _own(self.outputs, ranks, 0)

    def step_width(self, ranks: int) -> int:
        """Output numbers per row in a step of rank 0."""
        return self.own_outputs(ranks) * self.positions

    def full_rows(self, rows: int, ranks: int, calibrate: bool) -> int:
        """How many of `rows` rows in the full network a rank computes at a time.

        For convolutions only some, except in the calibration of those that are dealt out.
        """
        if self.positions == 1 or (calibrate and (self.calibrated or not self.shared)):
            return rows
        divided = self.shared and self.copies is None
        return min(-(-rows // ranks) if divided else rows, IMAGES_AT_ONCE)

    def full_bytes(self, rows: int, ranks: int) -> int:
        """Bytes of the rows computed at a time in the full network, without the layer's input.

        Either rank 0's outputs before and after their norm, or its outputs and those of all ranks,
        with the rows being gathered.
        """
        whole = self.outputs * self.positions
        if self.shared:  # every rank computes the whole layer, for its own rows
            return rows * self.beside * whole * ELEMENT_BYTES
        own = self.home_outputs(ranks) * self.positions
        norming = rows * 2 * own * ELEMENT_BYTES
        gathering = rows * (own + whole) * ELEMENT_BYTES
        gathering += min(rows * whole * ELEMENT_BYTES, GATHER_BYTES)
        return max(norming, gathering if ranks > 1 else 0)

    def relayed_bytes(self, rows: int, ranks: int, calibrate: bool) -> int:
        """Bytes of all rows if these go from rank to rank: before and after the layers.

        Received rows; in an evaluation also sent rows, and on one rank rows put together.
        """
        if self.copies is None:
            return 0
        times = 1 if calibrate else 3 if ranks == 1 else 2
        return times * rows * self.outputs * self.positions * ELEMENT_BYTES


def _own(units: int, ranks: int, rank: int) -> int:
    return int(np.diff(block_bounds(units, ranks))[rank])


def kept_numbers(layers: Sequence[Layer], ranks: int) -> int:
    """Estimated numbers per row that trained layers hold in a step of rank 0.

    Twice the width of every layer, before and after its norm; and twice the widest while gradients
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
    """Numbers per row in layers that are not trained, which keep nothing.

    Before and after a norm, and the input, one layer at a time.
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
    """The layers of a network with one layer per matrix, in the order of the forward pass."""
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
    """The weights that are multiplied with activations: those with two or more dimensions."""
    return [spec for spec in specs if len(spec.shape) > 1]

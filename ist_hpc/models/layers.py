"""What the cost of a layer depends on, and how much of it is computed at a time."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ist_hpc.common.blocks import block_bounds
from ist_hpc.exchange.placement import Axis, TensorSpec

UPDATE_SLAB_ELEMENTS = 1 << 20
"""Elements of a weight that the optimiser updates at a time, at least a row."""

HOME_ENTRIES_AT_ONCE = 1 << 15
"""Entries of sparse rows that enter a home block at a time: its columns are gathered for them."""


IMAGES_AT_ONCE = 64
"""Rows that go through the convolutions of the full network at a time."""


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


def _own(units: int, ranks: int, rank: int) -> int:
    return int(np.diff(block_bounds(units, ranks))[rank])


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

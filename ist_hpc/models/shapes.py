"""What is known of a network before it has any weights: its tensors, and the bytes it will need."""

import math
from dataclasses import dataclass

from ist_hpc.common.sizes import ELEMENT_BYTES
from ist_hpc.data.sparse_rows import rows_bytes
from ist_hpc.exchange.held_bytes import subnet_bytes
from ist_hpc.exchange.placement import Axis, TensorSpec
from ist_hpc.models.layers import Layer, kept_numbers, layers_of, matrices, passing_numbers


@dataclass(frozen=True)
class SharedSpec:
    """A tensor without axes: every rank has it; broadcast at the start, averaged each round.

    trained  whether it has a gradient; running statistics of a norm have none
    changes  whether a step changes it; a frozen tensor needs no averaging
    """

    key: str
    shape: tuple[int, ...]
    trained: bool = True
    changes: bool = True

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class StatisticSpec:
    """Mean and variance of one normalisation layer of the full network, each of shape `shape`.

    They are computed over calibration rows, in home blocks of `size`, never in thin networks.

    size    number of units or channels; for a stack of norms, of norms
    across  the other dimensions: channels of each norm of a stack
    """

    key: str
    size: int
    across: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Global."""
        return (self.size, *self.across)


class Shapes:
    """The tensors of a network, thin or full, and what follows from their shapes."""

    axes: dict[str, Axis]
    """The axes that are dealt out, by name."""
    specs: tuple[TensorSpec, ...]
    """The partitioned weights."""
    shared: tuple[SharedSpec, ...]
    """The weights without an axis."""
    statistics: tuple[StatisticSpec, ...]
    """The normalisation layers, in the order of the forward pass."""
    outputs: int
    """Width of the output."""
    label_block: int | None
    """Outputs computed at a time; None: all, since they are few or normalised."""
    feature_shape: tuple[int, ...] | None = None
    """The shape that a row's stored features must have, if only one is allowed."""
    relayed_numbers: int = 0
    """Numbers per row that pass from rank to rank at a time in an evaluation."""

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The linear maps and convolutions, first to last, from which costs are counted."""
        return layers_of(self.specs)

    # Bytes on rank 0 of `ranks`, before any are allocated; `ranks` is 1 for the whole model.
    # `entries` is the average number in a sparse row, and None for dense rows.

    @property
    def dense_specs(self) -> tuple[TensorSpec, ...]:
        """The partitioned weights whose gradient is a whole tensor."""
        return self.specs

    @property
    def row_gradient_keys(self) -> tuple[str, ...]:
        """The weights of which a step updates few rows, those of a `RowGradient`."""
        return ()

    @property
    def averaged_by_row(self) -> tuple[str, ...]:
        """The weights of which ranks with whole models average only the rows that some rank used.

        Where rows are demanded, all that have a `RowGradient`: other rows are equal on the ranks.
        """
        return self.row_gradient_keys if any(spec.demanded for spec in self.specs) else ()

    def row_gradients(
        self, rows: int, ranks: int, entries: float | None
    ) -> list[tuple[TensorSpec, int]]:
        """The weights that have a `RowGradient`, and how many elements it has, about."""
        return []

    def expected_demands(self, rows: int, steps: int) -> dict[str, tuple[int, float]]:
        """(rows of all, rows that a rank asks for in so many steps), by name of a demand."""
        return {}

    def updated_part(self, spec: TensorSpec, rows: int, steps: int, entries: float | None) -> float:
        """The part of a weight that so many steps update, each with `rows`, at most.

        1 where no labels are sampled: then all of it is averaged.
        """
        return 1.0

    def step_outputs(self, rows: int) -> float:
        """Outputs that a step of a whole model computes, on average."""
        return self.outputs

    def gradient_bytes(self, rows: int, ranks: int, entries: float | None) -> int:
        """Bytes of the gradients of a step with a batch of `rows` rows.

        Running statistics have no gradient but are few, and are counted as if they had one.
        """
        shared = sum(spec.elements for spec in self.shared if spec.changes)
        of_rows = sum(elements for _, elements in self.row_gradients(rows, ranks, entries))
        return subnet_bytes(self.dense_specs, ranks) + (of_rows + shared) * ELEMENT_BYTES

    def cast_bytes(self, ranks: int, product_bytes: int) -> int:
        """Bytes of the copies of weights that autocast keeps in a step, of `product_bytes` each."""
        dealt = subnet_bytes(self._cast_specs(), ranks) // ELEMENT_BYTES
        shared = sum(spec.elements for spec in self.shared if spec.trained)
        return product_bytes * (dealt + shared)

    def _cast_specs(self) -> list[TensorSpec]:
        return matrices(self.specs)

    def rows_bytes(self, rows: int, entries: float | None) -> int:
        """Bytes of the features of `rows` rows."""
        first = self.layers[0]
        return rows_bytes(rows, first.inputs * first.positions_in, entries)

    def step_activations(
        self, rows: int, ranks: int, entries: float | None, product_bytes: int = ELEMENT_BYTES
    ) -> int:
        """Estimated bytes of the activations of a step, and of its batch of `rows` rows.

        Under bf16 activations take half; dense rows and the outputs exist in both types.
        """
        share = product_bytes / ELEMENT_BYTES
        across = self._entering_numbers(entries, share) + self._trained_numbers(ranks, share)
        passing = self._entering_numbers(entries, 1.0) + passing_numbers(self.layers, ranks)
        return round(rows * max(across, passing) * ELEMENT_BYTES)

    def _entering_numbers(self, entries: float | None, share: float) -> float:
        """Numbers of a row that enters a step; `share` of their bytes are those of a product's."""
        first = self.layers[0]
        return first.inputs * first.positions_in * (1.0 if share == 1 else 1 + share)

    def _trained_numbers(self, ranks: int, share: float) -> float:
        """Numbers per row in trained layers, and the outputs once more for the softmax."""
        outputs = self.layers[-1].step_width(ranks)
        return share * kept_numbers(self.layers, ranks) + outputs * (1 if share == 1 else 2)

    def full_activations(
        self, rows: int, ranks: int, entries: float | None, calibrate: bool
    ) -> int:
        """Estimated bytes of the activations of the full network, for rows that all ranks have.

        For each layer, its input and what a rank computes and gathers. The rows themselves are
        counted only in an evaluation: those of a calibration are kept.
        """
        peak, given = 0, 0 if calibrate else self.rows_bytes(rows, entries)
        for index, layer in enumerate(self.layers):
            at_once = layer.full_rows(rows, ranks, calibrate)
            held = given + layer.relayed_bytes(rows, ranks, calibrate)
            if index:
                held += at_once * layer.inputs * layer.positions_in * ELEMENT_BYTES
            held += self._full_layer_bytes(index, at_once, ranks, entries, calibrate)
            peak = max(peak, held)
        return peak

    def _full_layer_bytes(
        self, index: int, rows: int, ranks: int, entries: float | None, calibrate: bool
    ) -> int:
        """Bytes of a layer of the full network for the rows computed at a time."""
        return self.layers[index].full_bytes(rows, ranks)

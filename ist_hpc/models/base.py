"""What the rest of the package needs to know about a network.

A model names its axes, its partitioned and its shared tensors, draws initial values, and computes
loss and gradients of a thin network (on one rank this is the full one), and the outputs of the full
network from home blocks, of which each rank has its own. Models know nothing of MPI; they receive
the ranks that gather activations together as `Peers`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ist_hpc.common.sizes import ELEMENT_BYTES
from ist_hpc.data.sparse_rows import Rows, rows_bytes
from ist_hpc.exchange.held_bytes import subnet_bytes
from ist_hpc.exchange.placement import Axis, TensorSpec
from ist_hpc.models.export import ExportEntry, Plain
from ist_hpc.models.layers import Layer, kept_numbers, layers_of, matrices, passing_numbers

Tensors = Mapping[str, Tensor]
Statistics = dict[str, tuple[Tensor, Tensor]]
"""(mean, variance) of the units of a rank's home blocks, by normalisation layer."""


class Peers(Protocol):
    """The ranks that evaluate the full network together, each with its home blocks."""

    def gather(self, own: Tensor, units: int) -> Tensor:
        """All units of a layer from this rank's: [rows, local_units, ...] to [rows, units, ...].

        A rank's units are its block of the balanced division of `units` (`blocks.block_bounds`).
        Collective.
        """

    def gather_rows(self, own: Tensor, rows: int) -> Tensor:
        """[own rows, ...] of each rank, its `share` of them, to [rows, ...] on all. Collective."""

    def share(self, units: int) -> slice:
        """This rank's part of the given number of units or rows. Local."""

    def relay(self, values: Tensor, stage: Callable[[Tensor], Tensor], rows_at_once: int) -> Tensor:
        """Pass rows through the ranks' stages, one by one: [rows, ...], all rows on all ranks.

        `stage` belongs to this rank and keeps the shape of [some rows, ...]; while it works on some
        rows, other ranks work on others. Collective.
        """


@dataclass(frozen=True, eq=False)
class RowGradient:
    """The gradient of a stored weight of which a step uses few rows; all other rows are zero.

    rows    ascending; int64 [n]
    values  [n, ...]
    """

    rows: Tensor
    values: Tensor


@dataclass(frozen=True, eq=False)
class ColumnGradient:
    """The gradient of a weight in blocks of its columns, as stored, each block contiguous.

    blocks  (columns, values [rows, columns]), ascending and without gaps
    """

    blocks: tuple[tuple[slice, Tensor], ...]


Gradients = dict[str, Tensor | RowGradient | ColumnGradient]
"""The gradient of every weight, partitioned or shared, by key."""


GradientBuffers = dict[str, Tensor]
"""Memory of large gradients, by key, that a model keeps for the next step: fresh pages cost more
than computing the gradients."""


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
        """The global shape."""
        return (self.size, *self.across)


class Model(ABC):
    """A network, thin or full: shapes and arithmetic, without any weights of its own."""

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
    norms_outputs: bool
    """Whether `own_outputs` has statistics to calibrate."""
    feature_shape: tuple[int, ...] | None = None
    """The shape that a row's stored features must have, if only one is allowed."""
    relayed_numbers: int = 0
    """Numbers per row that pass from rank to rank at a time in an evaluation."""
    differentiable: bool
    """Whether there is a `loss` for autograd: not with sparse rows, nor with labels in blocks."""

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

    def row_gradient_elements(self, rows: int, ranks: int, entries: float | None) -> int:
        """Maximum of elements in the `RowGradient` of a weight; 0 if no weight has one."""
        return 0

    def gradient_bytes(self, rows: int, ranks: int, entries: float | None) -> int:
        """Bytes of the gradients of a step with a batch of `rows` rows.

        Running statistics have no gradient but are few, and are counted as if they had one.
        """
        shared = sum(spec.elements for spec in self.shared if spec.changes)
        of_rows = self.row_gradient_elements(rows, ranks, entries)
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

    @abstractmethod
    def initial_rows(
        self, spec: TensorSpec, seed: int, rows: tuple[int, int]
    ) -> npt.NDArray[np.float32]:
        """Initial values of the global rows [rows[0], rows[1]) of a weight, in logical order.

        They depend only on the seed and the rows, so that any number of ranks draws the same full
        tensor.
        """

    @abstractmethod
    def initial_shared(self, spec: SharedSpec, seed: int) -> npt.NDArray[np.float32]:
        """Initial value of a shared weight."""

    @abstractmethod
    def loss(self, weights: Tensors, features: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of a batch in training mode, with autograd's graph; if `differentiable`."""

    def loss_and_gradients(
        self, weights: Tensors, features: Rows, labels: Rows, room: GradientBuffers
    ) -> tuple[Tensor, Gradients]:
        """Mean loss of a batch in training mode, batch statistics included, and its gradients.

        Autograd computes the gradients if `differentiable`; any other model computes its own.
        Running statistics among the shared weights are updated.
        Gradients may lie in `room`, and are valid until the next call with it.

        weights   partitioned weights as stored in subnets, and shared weights, by key
        features  float32 [batch, ...], or sparse
        labels    one class per row, int64 [batch], or sets of labels
        room      empty at first; each call fills it for the next one
        """
        assert isinstance(features, Tensor), "rows are dense"
        assert isinstance(labels, Tensor), "one class a row"
        fixed = {spec.key for spec in self.shared if not spec.trained}
        leaves = {
            key: weight.detach().requires_grad_(True)
            for key, weight in weights.items()
            if key not in fixed
        }
        loss = self.loss({**weights, **leaves}, features, labels)
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        return loss.detach(), dict(zip(leaves, gradients, strict=True))

    @abstractmethod
    def full_hidden(
        self,
        weights: Tensors,
        statistics: Statistics,
        features: Rows,
        peers: Peers,
        calibrate: bool,
    ) -> Tensor:
        """The input of the full network's output layer, for rows that all ranks have.

        weights     home blocks and shared weights, by key
        statistics  (mean, variance) of the units of this rank's home blocks, by key; with
                    `calibrate` they are computed from `features` and stored here, else read
        Returns [rows, width], the same on all ranks. Collective if `peers` are several.
        """

    @abstractmethod
    def own_outputs(
        self,
        weights: Tensors,
        statistics: Statistics,
        hidden: Tensor,
        outputs: slice,
        home_start: int,
        calibrate: bool,
    ) -> Tensor:
        """Outputs of the full network that are at home here, from `full_hidden`. Local.

        outputs     the outputs to compute, within this rank's home block
        home_start  the global index of the block's first output
        Returns float32 [rows, outputs]; `weights` and `statistics` as in `full_hidden`.
        """

    @abstractmethod
    def exported(self) -> Plain:
        """The full network in plain PyTorch, whose tensors have the names of checkpoints."""

    def export_entries(self) -> tuple[ExportEntry, ...]:
        """The state dict of `exported`, in its order."""
        keys = [spec.key for spec in self.specs] + [spec.key for spec in self.shared]
        sources = {key: ("parameters", key) for key in keys}
        for spec in self.statistics:
            sources[f"{spec.key}.running_mean"] = ("statistics", f"{spec.key}.mean")
            sources[f"{spec.key}.running_var"] = ("statistics", f"{spec.key}.variance")
        return self.exported().entries(sources)

    def module_source(self) -> str:
        """Python source, importing only torch, that leaves `exported` in the variable `model`."""
        return self.exported().source()

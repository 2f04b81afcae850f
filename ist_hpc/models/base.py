"""What the rest of the package needs to know of a network.

A model names its axes, its partitioned tensors and its shared ones, draws initial values, and
computes: loss and gradients of a thin network (which at one rank is the full one), and the outputs
of the full network from home blocks, of which each rank has its own. Models know nothing of MPI;
the ranks with which activations are gathered are handed to them as `Peers`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ist_hpc.common.sizes import ELEMENT_BYTES
from ist_hpc.data.sparse_rows import Batch, Rows, rows_bytes
from ist_hpc.exchange.held_bytes import subnet_bytes
from ist_hpc.exchange.placement import Axis, TensorSpec
from ist_hpc.models.export import ExportEntry, Plain
from ist_hpc.models.layers import Layer, kept_numbers, layers_of, matrices, passing_numbers
from ist_hpc.models.local_step import LocalStep

Tensors = Mapping[str, Tensor]
Statistics = dict[str, tuple[Tensor, Tensor]]
"""(mean, variance) of the units of a rank's home blocks, by normalisation layer."""


class Peers(Protocol):
    """The ranks that evaluate the full network together, each with its home blocks."""

    def gather(self, own: Tensor, units: int) -> Tensor:
        """All units of a layer from this rank's: [rows, local_units, ...] to [rows, units, ...].

        Which are a rank's is the balanced division of `units` (`blocks.block_bounds`).
        Collective.
        """

    def gather_rows(self, own: Tensor, rows: int) -> Tensor:
        """[own rows, ...] of each rank, its `share` of them, to [rows, ...] on all. Collective."""

    def share(self, units: int) -> slice:
        """This rank's part of so many units or rows. Local."""

    def relay(self, values: Tensor, stage: Callable[[Tensor], Tensor], rows_at_once: int) -> Tensor:
        """Rows through the ranks' stages, one after the other: [rows, ...], all on all ranks.

        `stage` is this rank's and keeps the shape of [some rows, ...]; while it has some rows,
        other ranks have others. Collective.
        """


@dataclass(frozen=True, eq=False)
class RowGradient:
    """The gradient of a weight of which a step uses few rows, as stored; all others are zero.

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
"""Of every weight, partitioned or shared, by key."""


@dataclass(frozen=True)
class SharedSpec:
    """A tensor without axes: on every rank, broadcast at the start, averaged each round.

    trained  whether it has a gradient; running statistics of a norm have none
    changes  whether a step changes it; what is frozen needs no averaging
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

    They are computed over calibration rows, in home blocks of `size`, and never in thin networks.

    size    units, or channels, or of a stack of norms how many
    across  the other dimensions: channels of each norm of a stack
    """

    key: str
    size: int
    across: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Global."""
        return (self.size, *self.across)


class Model(ABC):
    """A network, thin or full: shapes and arithmetic, without any weights of its own."""

    axes: dict[str, Axis]
    """What is dealt out, by name."""
    specs: tuple[TensorSpec, ...]
    """The partitioned weights."""
    shared: tuple[SharedSpec, ...]
    """The weights without an axis."""
    statistics: tuple[StatisticSpec, ...]
    """The normalisation layers, in the order of the forward pass."""
    outputs: int
    """Width of the output."""
    label_block: int | None
    """Outputs that are computed at a time; None: all, since they are few or normed."""
    norms_outputs: bool
    """Whether `own_outputs` has statistics to calibrate."""
    feature_shape: tuple[int, ...] | None = None
    """Shape of a row's features as stored, where it must be this one."""
    relayed_numbers: int = 0
    """Numbers of a row that pass from rank to rank at a time, in an evaluation."""
    differentiable: bool
    """Whether there is a `loss` for autograd: not with sparse rows, nor with labels in blocks."""

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The linear maps and convolutions, first to last, from which costs are counted."""
        return layers_of(self.specs)

    # Bytes on rank 0 of `ranks`, before there are any; `ranks` is 1 for the whole model. `entries`
    # are those of a sparse row, on average, and None for dense rows.

    @property
    def dense_specs(self) -> tuple[TensorSpec, ...]:
        """The partitioned weights whose gradient is a whole tensor."""
        return self.specs

    def row_gradient_elements(self, rows: int, ranks: int, entries: float | None) -> int:
        """Elements, at most, of the gradient of the weight that has a `RowGradient`; 0: none."""
        return 0

    def gradient_bytes(self, rows: int, ranks: int, entries: float | None) -> int:
        """Bytes of the gradients of a step with a batch of so many rows.

        Running statistics, which have none but are few, are counted as if they had.
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
        """Bytes of the features of so many rows."""
        first = self.layers[0]
        return rows_bytes(rows, first.inputs * first.positions_in, entries)

    def step_activations(
        self, rows: int, ranks: int, entries: float | None, product_bytes: int = ELEMENT_BYTES
    ) -> int:
        """Estimated bytes of the activations of a step with a batch of so many rows, and of these.

        Under bf16 activations take half, and dense rows and the outputs are there in both types.
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
        """Numbers of a row in layers that are trained, with one more of the outputs: softmax."""
        outputs = self.layers[-1].step_width(ranks)
        return share * kept_numbers(self.layers, ranks) + outputs * (1 if share == 1 else 2)

    def full_activations(
        self, rows: int, ranks: int, entries: float | None, calibrate: bool
    ) -> int:
        """Estimated bytes of the activations of the full network, for rows that all ranks give.

        Layer by layer what came in and what a rank computes and gathers. The rows themselves are
        counted in an evaluation only: those of a calibration are kept.
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
        """Bytes of a layer of the full network for rows that are computed at a time."""
        return self.layers[index].full_bytes(rows, ranks)

    @abstractmethod
    def initial_rows(
        self, spec: TensorSpec, seed: int, rows: tuple[int, int]
    ) -> npt.NDArray[np.float32]:
        """Initial values of the global rows [rows[0], rows[1]) of a weight, in logical order.

        A function of the seed and the rows, so that the ranks' blocks make the same full tensor
        whatever their number.
        """

    @abstractmethod
    def initial_shared(self, spec: SharedSpec, seed: int) -> npt.NDArray[np.float32]:
        """Initial value of a shared weight."""

    @property
    def row_gradient_keys(self) -> tuple[str, ...]:
        """The weights of which a step updates few rows, those of a `RowGradient`."""
        return ()

    def demanded_rows(
        self, batches: Sequence[Batch], seed: int, trained: int
    ) -> dict[str, npt.NDArray[np.int64]]:
        """By name of a demand the rows that steps with these batches use: ascending, each once.

        trained  steps of the run before them
        """
        return {}

    @abstractmethod
    def loss(self, weights: Tensors, features: Tensor, labels: Tensor, step: LocalStep) -> Tensor:
        """Mean loss of a batch in training mode, with autograd's graph. If `differentiable`."""

    def loss_and_gradients(
        self, weights: Tensors, features: Rows, labels: Rows, step: LocalStep
    ) -> tuple[Tensor, Gradients]:
        """Mean loss of a batch in training mode, batch statistics included, and its gradients.

        Those of autograd, if `differentiable`; a model that is not computes its own.
        Running statistics among the shared weights are brought up to date.
        Gradients may lie in `step.room`, and are good until the next call with it.

        weights   partitioned ones as stored in subnets, and shared ones, by key
        features  float32 [batch, ...], or sparse
        labels    a class a row, int64 [batch], or sets of labels
        """
        assert isinstance(features, Tensor), "rows are dense"
        assert isinstance(labels, Tensor), "one class a row"
        fixed = {spec.key for spec in self.shared if not spec.trained}
        leaves = {
            key: weight.detach().requires_grad_(True)
            for key, weight in weights.items()
            if key not in fixed
        }
        loss = self.loss({**weights, **leaves}, features, labels, step)
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
        """What enters the output layer of the full network, for rows that all ranks give.

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

        outputs     which of this rank's home block
        home_start  the global index of the block's first
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

"""What the rest of the package needs to know about a network.

A model names its axes, its partitioned tensors and its shared ones (`Shapes`), draws initial
values, and computes: loss and gradients of a thin network (which at one rank is the full one), and
the outputs of the full network from home blocks, of which each rank has its own. Models know
nothing of MPI; the ranks with which activations are gathered are handed to them as `Peers`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ist_hpc.data.sparse_rows import Batch, Rows
from ist_hpc.exchange.placement import TensorSpec
from ist_hpc.models.export import ExportEntry, Plain
from ist_hpc.models.gradients import Gradients
from ist_hpc.models.local_step import LocalStep
from ist_hpc.models.shapes import Shapes, SharedSpec

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


class Model(Shapes, ABC):
    """A network, thin or full: shapes and arithmetic, without any weights of its own."""

    norms_outputs: bool
    """Whether `own_outputs` has statistics to calibrate."""
    differentiable: bool
    """Whether there is a `loss` for autograd: not with sparse rows, nor with labels in blocks."""

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

    def demanded_rows(
        self, batches: Sequence[Batch], seed: int, trained: int
    ) -> dict[str, npt.NDArray[np.int64]]:
        """By name of a demand the rows that steps with these batches use: ascending, each once.

        trained  steps of the run before them
        """
        return {}

    @abstractmethod
    def loss(self, weights: Tensors, features: Tensor, labels: Tensor, step: LocalStep) -> Tensor:
        """Mean loss of a batch in training mode, with autograd's graph; if `differentiable`."""

    def loss_and_gradients(
        self, weights: Tensors, features: Rows, labels: Rows, step: LocalStep
    ) -> tuple[Tensor, Gradients]:
        """Mean loss of a batch in training mode, batch statistics included, and its gradients.

        Those of autograd, if `differentiable`; a model that is not computes its own.
        Running statistics among the shared weights are brought up to date.
        Gradients may lie in `step.room`, and are good until the next call with it.

        weights   partitioned weights as stored in subnets, and shared weights, by key
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

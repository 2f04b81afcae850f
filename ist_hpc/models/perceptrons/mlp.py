"""Multi-layer perceptrons: linear without bias, batch norm, ReLU; linear output (paper, section 3).

The first layer on sparse rows and the last layer over many labels have their own code
(sparse_input.py, many_labels.py); PyTorch's autograd does everything else.

Tensors (axis of each dimension in brackets, `-` for none):

    fc1.weight (hidden1, -)          bn1.weight (hidden1)    bn1.bias (hidden1)
        stored with the inputs first where these are sparse
    fc2.weight (hidden2, hidden1)    bn2.weight (hidden2)    bn2.bias (hidden2)
    ...
    out.weight (-, hiddenL), stored with hiddenL first       out.bias, shared, only if asked for
        where labels are sampled stored with labels first, which are held by demand
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ist_hpc.data.sparse_rows import Batch, Rows, SparseRows
from ist_hpc.exchange.placement import TensorSpec
from ist_hpc.models import initial
from ist_hpc.models.base import Model, Peers, Statistics, Tensors
from ist_hpc.models.export import Plain
from ist_hpc.models.gradients import GradientBuffers, Gradients
from ist_hpc.models.local_step import LocalStep
from ist_hpc.models.norms import Norm, batch_norm, by_all_units, by_batch, full_norm
from ist_hpc.models.perceptrons import many_labels, sparse_input
from ist_hpc.models.perceptrons.many_labels import LabelLoss
from ist_hpc.models.perceptrons.mlp_shapes import LABELS, PerceptronShapes
from ist_hpc.models.perceptrons.sampled_labels import (
    SampledLoss,
    sampled_softmax,
    trained_labels,
)
from ist_hpc.models.plain.mlp import perceptron
from ist_hpc.models.shapes import SharedSpec


class MultiLayerPerceptron(PerceptronShapes, Model):
    """A perceptron: shapes of `PerceptronShapes`, which has the arguments, and arithmetic."""

    def initial_rows(
        self, spec: TensorSpec, seed: int, rows: tuple[int, int]
    ) -> npt.NDArray[np.float32]:
        """As in `initial.initial_rows`; see the base class."""
        if self._zero_outputs and spec.key == self._layers[-1].weight:
            return np.zeros((rows[1] - rows[0], *spec.shape[1:]), dtype=np.float32)
        return initial.initial_rows(spec.key, spec.shape, seed, rows)

    def initial_shared(self, spec: SharedSpec, seed: int) -> npt.NDArray[np.float32]:
        """Zero: the output bias."""
        return np.zeros(spec.shape, dtype=np.float32)

    def demanded_rows(
        self, batches: Sequence[Batch], seed: int, trained: int
    ) -> dict[str, npt.NDArray[np.int64]]:
        """The labels that the steps train, where they are sampled; see the base class."""
        if self._sampling is None:
            return {}
        drawn = [self._sampling.drawn(seed, trained + index) for index in range(len(batches))]
        own = [self._sets_of(labels).columns.numpy() for _, labels in batches]
        return {LABELS: np.unique(np.concatenate([*drawn, *own]))}

    def loss(self, weights: Tensors, features: Tensor, labels: Tensor, step: LocalStep) -> Tensor:
        """Mean cross entropy of a batch, with autograd's graph; see the base class."""
        entering = F.linear(features, weights[self._layers[0].weight])
        hidden = self._hidden(weights, by_batch(weights), entering, step=step)
        return self._cross_entropy(weights, hidden, labels)

    def loss_and_gradients(
        self, weights: Tensors, features: Rows, labels: Rows, step: LocalStep
    ) -> tuple[Tensor, Gradients]:
        """Loss of a batch and its gradients; see the base class."""
        first, last = self._layers[0], self._layers[-1]
        outer: set[str | None] = {first.weight} if isinstance(features, SparseRows) else set()
        if self._loss != "cross_entropy":
            outer |= {last.weight, last.bias}
        inner = {
            key: weight.detach().requires_grad_(True)
            for key, weight in weights.items()
            if key not in outer
        }
        leaves = list(inner.values())
        if isinstance(features, SparseRows):
            entering = sparse_input.product(features, weights[first.weight].detach())
            leaves.append(entering.requires_grad_(True))
        else:
            entering = F.linear(features, inner[first.weight])
        hidden = self._hidden(inner, by_batch(inner), entering, step=step)
        gradients: Gradients = {}
        if self._loss == "cross_entropy":
            assert isinstance(labels, Tensor), "one class a row"
            loss = self._cross_entropy(inner, hidden, labels)
            found = list(torch.autograd.grad(loss, leaves))
        else:
            leaving, sets = hidden.detach().float(), self._sets_of(labels)
            of_labels: LabelLoss | SampledLoss
            if self._sampling is None:
                of_labels = self._loss_of_labels(weights, leaving, sets, step.room)
                if last.bias and of_labels.bias_gradient is not None:
                    gradients[last.bias] = of_labels.bias_gradient
            else:
                of_labels = self._loss_of_sampled(weights, leaving, sets, step)
            loss, gradients[last.weight] = of_labels.loss, of_labels.weight_gradient
            hidden_gradient = of_labels.hidden_gradient.to(hidden.dtype)  # it may be bfloat16
            found = list(torch.autograd.grad(hidden, leaves, hidden_gradient))
        if isinstance(features, SparseRows):
            gradients[first.weight] = sparse_input.gradient(features, found.pop())
        return loss.detach(), gradients | dict(zip(inner, found, strict=True))

    def _hidden(
        self,
        weights: Tensors,
        norm: Norm,
        hidden: Tensor,
        peers: Peers | None = None,
        step: LocalStep | None = None,
    ) -> Tensor:
        """From the first layer's product to the input of the last layer.

        peers  the ranks that have the other units; with peers collective, else local
        step   of training, in which units are left out under dropout
        """
        for index, layer in enumerate(self._layers[:-1]):
            if index:
                hidden = F.linear(hidden, weights[layer.weight])
            assert layer.norm is not None
            hidden = F.relu(norm(layer.norm, hidden), inplace=True)
            if step is not None and self._dropout:
                shape = (len(hidden), hidden.shape[1])
                kept = step.kept(f"dropout/{layer.norm}", shape, self._dropout)
                hidden = hidden * kept.to(hidden.device, hidden.dtype)
            if peers is not None:
                hidden = peers.gather(hidden, layer.outputs)
        return hidden

    def _cross_entropy(self, weights: Tensors, hidden: Tensor, labels: Tensor) -> Tensor:
        last = self._layers[-1]
        logits = hidden @ weights[last.weight]
        if last.bias:
            logits = logits + weights[last.bias]
        if last.norm:
            logits = batch_norm(logits, None, None)
        return F.cross_entropy(logits.float(), labels)

    def _sets_of(self, labels: Rows) -> SparseRows:
        """Labels as sets: a class is a set of one."""
        if isinstance(labels, SparseRows):
            return labels
        return SparseRows.of_classes(labels, self.outputs)

    @torch.no_grad()
    def _loss_of_sampled(
        self, weights: Tensors, hidden: Tensor, labels: SparseRows, step: LocalStep
    ) -> SampledLoss:
        assert self._sampling is not None
        drawn = torch.from_numpy(self._sampling.drawn(step.seed, step.index)).to(hidden.device)
        trained = trained_labels(labels, drawn)
        held = step.held.get(LABELS)
        places = trained if held is None else torch.searchsorted(held, trained)
        chances = self._sampling.log_chances(trained, len(hidden))
        weight = weights[self._layers[-1].weight].detach()
        return sampled_softmax(hidden, weight, labels, trained, places, chances)

    @torch.no_grad()
    def _loss_of_labels(
        self, weights: Tensors, hidden: Tensor, labels: SparseRows, room: GradientBuffers
    ) -> LabelLoss:
        last = self._layers[-1]
        weight, bias = weights[last.weight].detach(), weights[last.bias] if last.bias else None
        assert self.label_block is not None
        function = many_labels.softmax if self._loss == "softmax" else many_labels.binary
        if last.weight not in room:
            room[last.weight] = weight.new_empty(weight.numel())
        return function(hidden, weight, bias, labels, self.label_block, room[last.weight])

    def full_hidden(
        self,
        weights: Tensors,
        statistics: Statistics,
        features: Rows,
        peers: Peers,
        calibrate: bool,
    ) -> Tensor:
        """Activations of the last hidden layer, layer by layer from home; see the base class."""
        norm = by_all_units(weights, statistics, calibrate)
        # Without a name, which would keep the product until the end.
        return self._hidden(
            weights, norm, _from_home(features, weights[self._layers[0].weight]), peers
        )

    def own_outputs(
        self,
        weights: Tensors,
        statistics: Statistics,
        hidden: Tensor,
        outputs: slice,
        home_start: int,
        calibrate: bool,
    ) -> Tensor:
        """Logits of outputs that are at home here; see the base class."""
        last = self._layers[-1]
        block = weights[last.weight]
        own = F.linear(hidden, block[outputs])
        if last.norm:
            assert len(own.t()) == len(block), "statistics are of whole home blocks"
            own = full_norm(own, last.norm, statistics, None, None, calibrate)
        if last.bias:
            bias = weights[last.bias]
            own += bias[home_start + outputs.start : home_start + outputs.stop]
        return own

    def exported(self) -> Plain:
        """Layers named as in checkpoints; see the base class."""
        first, last = self._layers[0], self._layers[-1]
        sizes = {
            "inputs": first.inputs,
            "hidden": [layer.outputs for layer in self._layers[:-1]],
            "outputs": last.outputs,
            "output_norm": last.norm is not None,
            "output_bias": last.bias is not None,
        }
        return Plain(perceptron, sizes)


def _from_home(features: Rows, weight: Tensor) -> Tensor:
    """The product of rows with a home block of the first layer."""
    if isinstance(features, SparseRows):
        return sparse_input.product_at_home(features, weight)
    return F.linear(features, weight)

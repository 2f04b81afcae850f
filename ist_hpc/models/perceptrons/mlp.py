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
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ist_hpc.common.sizes import ELEMENT_BYTES
from ist_hpc.data.sparse_rows import Batch, Rows, SparseRows
from ist_hpc.exchange.placement import Axis, TensorSpec
from ist_hpc.models import initial
from ist_hpc.models.base import Model, Peers, Statistics, Tensors
from ist_hpc.models.export import Plain
from ist_hpc.models.gradients import GradientBuffers, Gradients
from ist_hpc.models.layers import kept_numbers, matrices
from ist_hpc.models.local_step import LocalStep
from ist_hpc.models.norms import Norm, batch_norm, by_all_units, by_batch, full_norm
from ist_hpc.models.perceptrons import many_labels, sampled_labels, sparse_input
from ist_hpc.models.perceptrons.many_labels import LabelLoss
from ist_hpc.models.perceptrons.sampled_labels import (
    SampledLoss,
    Sampling,
    sampled_softmax,
    trained_labels,
)
from ist_hpc.models.plain.mlp import perceptron
from ist_hpc.models.shapes import SharedSpec, StatisticSpec

_LABELS = "labels"
"""The demand by which rows of the output weights are held where labels are sampled."""


@dataclass(frozen=True)
class _Layer:
    """The keys of a linear map and its norm or bias, None for what it does not have."""

    weight: str
    inputs: int
    outputs: int
    norm: str | None
    bias: str | None


class MultiLayerPerceptron(Model):
    """A perceptron of any depth and width.

    inputs, outputs  widths of the first input and of the output
    hidden           widths of the hidden layers; layer i is the axis `hidden{i}`
    output_norm      batch norm without scale and shift on the outputs, as the paper's authors did
    output_bias      a bias on the outputs, a shared parameter
    loss             as `model.loss` of the configuration, but for auto
    label_block      labels computed at a time, but by cross_entropy
    sampling         of the labels of sampled_softmax
    dropout          part of the hidden units that a step leaves out
    zero_outputs     whether the output weights begin at zero
    sparse           whether rows are sparse
    input_axis       the axis of the inputs, if these are units that are dealt out
    """

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        outputs: int,
        output_norm: bool = True,
        output_bias: bool = False,
        loss: str = "cross_entropy",
        label_block: int = 2048,
        sparse: bool = False,
        input_axis: str | None = None,
        sampling: Sampling | None = None,
        dropout: float = 0.0,
        zero_outputs: bool = False,
    ) -> None:
        assert not (output_norm and output_bias), "batch norm would cancel the bias"
        assert loss == "cross_entropy" or not output_norm, "no batch norm over blocks of labels"
        assert (loss == "sampled_softmax") == (sampling is not None)
        assert not (sampling and output_bias), "its average would need every label"
        self.outputs = outputs
        self.label_block = label_block if loss != "cross_entropy" else None
        self.norms_outputs = output_norm
        self.differentiable = loss == "cross_entropy" and not sparse
        self._loss, self._sparse, self._sampling = loss, sparse, sampling
        self._dropout, self._zero_outputs = dropout, zero_outputs
        self.axes = {f"hidden{i}": Axis(size) for i, size in enumerate(hidden, start=1)}
        specs: list[TensorSpec] = []
        layers: list[_Layer] = []
        width, axis = inputs, input_axis
        for i, size in enumerate(hidden, start=1):
            own = f"hidden{i}"
            specs += [
                TensorSpec(f"fc{i}.weight", (size, width), (own, axis), sparse and i == 1),
                TensorSpec(f"bn{i}.weight", (size,), (own,)),
                TensorSpec(f"bn{i}.bias", (size,), (own,)),
            ]
            layers.append(_Layer(f"fc{i}.weight", width, size, f"bn{i}", None))
            width, axis = size, own
        demanded = None if sampling is None else _LABELS
        specs.append(
            TensorSpec(
                *("out.weight", (outputs, width), (None, axis)),
                transposed=sampling is None,
                demanded=demanded,
            )
        )
        bias = "out.bias" if output_bias else None
        norm = "bn_out" if output_norm else None
        layers.append(_Layer("out.weight", width, outputs, norm, bias))
        self.specs = tuple(specs)
        self.shared = (SharedSpec("out.bias", (outputs,)),) if output_bias else ()
        self.statistics = tuple(
            StatisticSpec(layer.norm, layer.outputs) for layer in layers if layer.norm
        )
        self._layers = tuple(layers)

    # Bytes, before any are allocated.

    @property
    def dense_specs(self) -> tuple[TensorSpec, ...]:
        """All but the first matrix, if rows are sparse, and the last, if labels are sampled."""
        return tuple(spec for spec in self.specs if spec.key not in self.row_gradient_keys)

    def row_gradients(
        self, rows: int, ranks: int, entries: float | None
    ) -> list[tuple[TensorSpec, int]]:
        """Of the first matrix what occurs in sparse rows, of the last the labels of a step."""
        first, last = self.layers[0], self.layers[-1]
        found = []
        if entries is not None:
            features = sparse_input.occurring(rows, entries, first.inputs)
            found.append((self.specs[0], features * first.own_outputs(ranks)))
        if self._sampling is not None:
            labels = round(self.step_outputs(rows))
            found.append((self.specs[-1], labels * last.own_inputs(ranks)))
        return found

    def expected_demands(self, rows: int, steps: int) -> dict[str, tuple[int, float]]:
        """Of labels that are sampled; see the base class."""
        if self._sampling is None:
            return {}
        return {_LABELS: (self.outputs, self._sampling.expected_labels(rows, steps))}

    def updated_part(self, spec: TensorSpec, rows: int, steps: int, entries: float | None) -> float:
        """Of the first and last matrix the rows that steps use; see the base class."""
        if self._sampling is None or spec.key not in self.row_gradient_keys:
            return 1.0
        if spec.demanded is not None:
            return self._sampling.expected_labels(rows, steps) / self.outputs
        assert entries is not None
        return sparse_input.occurring(rows * steps, entries, spec.columns) / spec.columns

    def step_outputs(self, rows: int) -> float:
        """All, or the labels of a step; see the base class."""
        sampling = self._sampling
        return self.outputs if sampling is None else sampling.expected_labels(rows, 1)

    def _cast_specs(self) -> list[TensorSpec]:
        """With labels in blocks only one block is copied at a time."""
        matrices_alone = matrices(self.dense_specs)
        in_blocks = self.label_block is not None and self._sampling is None
        return matrices_alone[:-1] if in_blocks else matrices_alone

    def _entering_numbers(self, entries: float | None, share: float) -> float:
        if entries is None:
            return super()._entering_numbers(entries, share)
        return sparse_input.STEP_NUMBERS * entries

    def _trained_numbers(self, ranks: int, share: float) -> float:
        if self.label_block is None:
            return super()._trained_numbers(ranks, share)
        hidden = share * kept_numbers(self.layers[:-1], ranks)
        if self._sampling is not None:
            return hidden
        return hidden + many_labels.step_numbers(self.outputs, self.label_block)

    def step_activations(
        self, rows: int, ranks: int, entries: float | None, product_bytes: int = ELEMENT_BYTES
    ) -> int:
        """With the labels of a step, if they are sampled; see the base class."""
        held = super().step_activations(rows, ranks, entries, product_bytes)
        if self._sampling is None:
            return held
        units = self.layers[-1].own_inputs(ranks)
        numbers = sampled_labels.step_numbers(self.step_outputs(rows), rows, units)
        return held + round(numbers * ELEMENT_BYTES)

    def _full_layer_bytes(
        self, index: int, rows: int, ranks: int, entries: float | None, calibrate: bool
    ) -> int:
        if entries is None:
            return super()._full_layer_bytes(index, rows, ranks, entries, calibrate)
        layer = self.layers[index]
        own = layer.home_outputs(ranks)
        if index == len(self.layers) - 1:  # for sets of labels only the best logits are kept
            assert self.label_block is not None
            return 0 if calibrate else many_labels.ranked_bytes(rows, own, self.label_block)
        held = layer.full_bytes(rows, ranks)
        if index == 0:
            held += sparse_input.home_bytes(rows, entries, (own, layer.inputs))
        return held

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

    @property
    def row_gradient_keys(self) -> tuple[str, ...]:
        """Of sparse features, and of sampled labels; see the base class."""
        features = (self._layers[0].weight,) if self._sparse else ()
        return features if self._sampling is None else (*features, self._layers[-1].weight)

    def demanded_rows(
        self, batches: Sequence[Batch], seed: int, trained: int
    ) -> dict[str, npt.NDArray[np.int64]]:
        """The labels that the steps train, where they are sampled; see the base class."""
        if self._sampling is None:
            return {}
        drawn = [self._sampling.drawn(seed, trained + index) for index in range(len(batches))]
        own = [self._sets_of(labels).columns.numpy() for _, labels in batches]
        return {_LABELS: np.unique(np.concatenate([*drawn, *own]))}

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
        held = step.held.get(_LABELS)
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

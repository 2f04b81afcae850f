"""Multi-layer perceptrons: linear without bias, batch norm, ReLU; linear output (paper, section 3).

Tensors (axis of each dimension in brackets, `-` for none):

    fc1.weight (hidden1, -)          bn1.weight (hidden1)    bn1.bias (hidden1)
    fc2.weight (hidden2, hidden1)    bn2.weight (hidden2)    bn2.bias (hidden2)
    ...
    out.weight (-, hiddenL), stored with hiddenL first       out.bias, shared, only if asked for
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ist_hpc import streams
from ist_hpc.models.base import (
    ExportEntry,
    GatherColumns,
    Model,
    SharedSpec,
    Statistics,
    StatisticSpec,
    Tensors,
)
from ist_hpc.placement import TensorSpec

NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class _Layer:
    """One linear map and what follows it; keys of its tensors, None where it has none."""

    weight: str
    inputs: int
    outputs: int
    norm: str | None
    affine: bool
    bias: str | None


class MultiLayerPerceptron(Model):
    """A perceptron of any depth and width.

    inputs, outputs  widths of the first input and of the output
    hidden           widths of the hidden layers; layer i is the axis `hidden{i}`
    output_norm      batch norm without scale and shift on the outputs, as the paper's authors did
    output_bias      a bias on the outputs, a shared parameter
    """

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        outputs: int,
        output_norm: bool = True,
        output_bias: bool = False,
    ) -> None:
        assert not (output_norm and output_bias), "batch norm would cancel the bias"
        self.outputs = outputs
        self.axes = {f"hidden{i}": size for i, size in enumerate(hidden, start=1)}
        specs: list[TensorSpec] = []
        layers: list[_Layer] = []
        width, axis = inputs, None  # type: int, str | None
        for i, size in enumerate(hidden, start=1):
            own = f"hidden{i}"
            specs += [
                TensorSpec(f"fc{i}.weight", (size, width), (own, axis)),
                TensorSpec(f"bn{i}.weight", (size,), (own,)),
                TensorSpec(f"bn{i}.bias", (size,), (own,)),
            ]
            layers.append(_Layer(f"fc{i}.weight", width, size, f"bn{i}", True, None))
            width, axis = size, own
        specs.append(TensorSpec("out.weight", (outputs, width), (None, axis), transposed=True))
        bias = "out.bias" if output_bias else None
        norm = "bn_out" if output_norm else None
        layers.append(_Layer("out.weight", width, outputs, norm, False, bias))
        self.specs = tuple(specs)
        self.shared = (SharedSpec("out.bias", (outputs,)),) if output_bias else ()
        self.statistics = tuple(
            StatisticSpec(layer.norm, layer.outputs) for layer in layers if layer.norm
        )
        self._layers = tuple(layers)

    def initial_rows(
        self, spec: TensorSpec, seed: int, rows: tuple[int, int]
    ) -> npt.NDArray[np.float32]:
        """Linear weights uniform in +-1/sqrt(fan-in of the full layer), scale one, shift zero.

        Float32, shape [rows[1] - rows[0], ...]. The bound is the default of PyTorch's Linear.
        """
        count = rows[1] - rows[0]
        if spec.key.endswith(".bias"):
            return np.zeros(count, dtype=np.float32)
        if len(spec.shape) == 1:
            return np.ones(count, dtype=np.float32)
        bound = 1.0 / math.sqrt(spec.columns)
        return streams.uniform(f"initial/{spec.key}", seed, rows, spec.columns, bound)

    def initial_shared(self, spec: SharedSpec, seed: int) -> npt.NDArray[np.float32]:
        """Zero: the output bias."""
        return np.zeros(spec.shape, dtype=np.float32)

    def loss(self, weights: Tensors, features: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of a batch; see the base class."""
        hidden = features
        for layer in self._layers[:-1]:
            hidden = F.linear(hidden, weights[layer.weight])
            scale, shift = weights[f"{layer.norm}.weight"], weights[f"{layer.norm}.bias"]
            hidden = F.relu(_batch_norm(hidden, scale, shift), inplace=True)
        last = self._layers[-1]
        logits = hidden @ weights[last.weight]
        if last.bias:
            logits = logits + weights[last.bias]
        if last.norm:
            logits = _batch_norm(logits, None, None)
        return F.cross_entropy(logits, labels)

    def full_outputs(
        self,
        weights: Tensors,
        statistics: Statistics,
        features: Tensor,
        gather: GatherColumns,
        calibrate: bool,
    ) -> Tensor:
        """Logits of the full network, layer by layer from home blocks; see the base class."""
        hidden = features
        for layer in self._layers:
            own = F.linear(hidden, weights[layer.weight])
            if layer.norm:
                if calibrate:
                    statistics[layer.norm] = _mean_and_variance(own)
                mean, variance = statistics[layer.norm]
                scale = weights[f"{layer.norm}.weight"] if layer.affine else None
                shift = weights[f"{layer.norm}.bias"] if layer.affine else None
                if own.shape[1]:  # a rank may have no unit of a narrow layer
                    own = F.batch_norm(own, mean, variance, scale, shift, False, eps=NORM_EPSILON)
            if layer is not self._layers[-1]:
                own = F.relu(own, inplace=True)
            hidden = gather(own, layer.outputs)
        bias = self._layers[-1].bias
        return hidden + weights[bias] if bias else hidden

    def multiplications(self, batch: int, ranks: int) -> int:
        """Multiply-adds of one forward pass of one rank's thin network (an average over ranks)."""
        total = 0.0
        for index, layer in enumerate(self._layers):
            inputs = layer.inputs / (ranks if index > 0 else 1)
            outputs = layer.outputs / (ranks if index < len(self._layers) - 1 else 1)
            total += batch * inputs * outputs
        return round(total)

    def export_entries(self) -> tuple[ExportEntry, ...]:
        """Entries of an `nn.Sequential` of fc1, bn1, relu1, ..., out, bn_out; see the base class.

        Weights have the logical order of `nn.Linear`, outputs first, as checkpoints have.
        """
        shapes = {spec.key: spec.shape for spec in self.specs}
        shapes |= {spec.key: spec.shape for spec in self.shared}
        entries: list[ExportEntry] = []
        for layer in self._layers:
            weights = [layer.weight, layer.bias]
            if layer.norm and layer.affine:
                weights += [f"{layer.norm}.weight", f"{layer.norm}.bias"]
            entries += [
                ExportEntry(key, shapes[key], ("parameters", key)) for key in weights if key
            ]
            if layer.norm:
                size = (layer.outputs,)
                for name, statistic in (("running_mean", "mean"), ("running_var", "variance")):
                    source = ("statistics", f"{layer.norm}.{statistic}")
                    entries.append(ExportEntry(f"{layer.norm}.{name}", size, source))
                entries.append(ExportEntry(f"{layer.norm}.num_batches_tracked", (), None))
        return tuple(entries)

    def module_source(self) -> str:
        """An `nn.Sequential` whose layers are named as in checkpoints; see the base class."""
        modules = []
        for index, layer in enumerate(self._layers, start=1):
            name = layer.weight.removesuffix(".weight")
            modules.append(
                f"{name}=nn.Linear({layer.inputs}, {layer.outputs}, bias={bool(layer.bias)}),"
            )
            if layer.norm:
                affine = "" if layer.affine else ", affine=False"
                modules.append(
                    f"{layer.norm}=nn.BatchNorm1d({layer.outputs}, eps={NORM_EPSILON}{affine}),"
                )
            if layer is not self._layers[-1]:
                modules.append(f"relu{index}=nn.ReLU(),")
        lines = [
            "from collections import OrderedDict",
            "import torch",
            "from torch import nn",
            "",
            "model = nn.Sequential(OrderedDict(",
            *(f"    {module}" for module in modules),
            "))",
        ]
        return "\n".join(lines)


def _batch_norm(values: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """Batch norm by the statistics of this batch."""
    return F.batch_norm(values, None, None, scale, shift, training=True, eps=NORM_EPSILON)


def _mean_and_variance(values: Tensor) -> tuple[Tensor, Tensor]:
    """Of each column; a rank that has no unit of a narrow layer has no column."""
    if not values.shape[1]:
        return values.new_empty(0), values.new_empty(0)
    variance, mean = torch.var_mean(values, dim=0, correction=0)
    return mean, variance

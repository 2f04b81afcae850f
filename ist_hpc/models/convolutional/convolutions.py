"""The convolutions of VGG11 on images of 32 x 32, each with batch norm and ReLU: the body.

The body is either shared: every rank has all of it, trains it locally, and Horovod averages it each
round (the paper's footnote 2). Or it is dealt out like the layers after it: then the channels are
axes. Tensors of layer i (axis of each dimension in brackets, `-` for none):

    conv{i}.weight (channels{i}, channels{i-1}, 3, 3); the first has (channels1, -, 3, 3)
    conv{i}_norm.weight, conv{i}_norm.bias (channels{i})
    conv{i}_norm.running_mean, conv{i}_norm.running_var, of a shared body only
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ist_hpc.exchange.placement import Axis, TensorSpec
from ist_hpc.models.base import Peers, Statistics, Tensors
from ist_hpc.models.layers import IMAGES_AT_ONCE, Layer
from ist_hpc.models.norms import Norm, by_all_units, by_batch, by_batch_keeping, by_running
from ist_hpc.models.plain.vgg import IMAGE, POOLED
from ist_hpc.models.shapes import SharedSpec, StatisticSpec

BODY_PREFIX = "conv"
"""The prefix of the keys of all its tensors."""
_KERNEL = 3


@dataclass(frozen=True)
class _Convolution:
    """A convolution, its norm, ReLU, and whether a pooling by two follows."""

    name: str
    inputs: int
    outputs: int
    size: int
    pooled: bool

    @property
    def weight(self) -> str:
        return f"{self.name}.weight"

    @property
    def norm(self) -> str:
        return f"{self.name}_norm"


class Convolutions:
    """The body of VGG11: images to `channels[-1]` features.

    channels  output channels of the eight convolutions
    dealt     whether channels are dealt out
    frozen    whether a shared body is neither trained nor averaged, with norms by stored statistics
    """

    def __init__(self, channels: Sequence[int], dealt: bool, frozen: bool) -> None:
        assert len(channels) == len(POOLED)
        assert not (dealt and frozen)
        self._dealt, self._frozen = dealt, frozen
        layers: list[_Convolution] = []
        inputs, size = IMAGE[0], IMAGE[1]
        for i, (outputs, pooled) in enumerate(zip(channels, POOLED, strict=True), start=1):
            layers.append(_Convolution(f"{BODY_PREFIX}{i}", inputs, outputs, size, pooled))
            inputs, size = outputs, size // 2 if pooled else size
        assert size == 1, "one value a channel comes out"
        self._layers = tuple(layers)
        self.features = inputs
        self.axes = (
            {f"channels{i}": Axis(c) for i, c in enumerate(channels, start=1)} if dealt else {}
        )
        self.axis = f"channels{len(channels)}" if dealt else None
        self.specs = self._specs() if dealt else ()
        self.shared = () if dealt else self._shared()
        self.statistics = tuple(
            StatisticSpec(layer.norm, layer.outputs) for layer in layers if dealt
        )

    def _shape(self, layer: _Convolution) -> tuple[int, ...]:
        return (layer.outputs, layer.inputs, _KERNEL, _KERNEL)

    def _specs(self) -> tuple[TensorSpec, ...]:
        specs: list[TensorSpec] = []
        before = None
        for own, layer in zip(self.axes, self._layers, strict=True):
            specs += [
                TensorSpec(layer.weight, self._shape(layer), (own, before, None, None)),
                TensorSpec(f"{layer.norm}.weight", (layer.outputs,), (own,)),
                TensorSpec(f"{layer.norm}.bias", (layer.outputs,), (own,)),
            ]
            before = own
        return tuple(specs)

    def _shared(self) -> tuple[SharedSpec, ...]:
        changes = not self._frozen
        shared: list[SharedSpec] = []
        for layer in self._layers:
            shared.append(SharedSpec(layer.weight, self._shape(layer), changes, changes))
            for name, trained in (
                ("weight", changes),
                ("bias", changes),
                ("running_mean", False),
                ("running_var", False),
            ):
                key = f"{layer.norm}.{name}"
                shared.append(SharedSpec(key, (layer.outputs,), trained, changes))
        return tuple(shared)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers from which costs are counted."""
        return tuple(
            Layer(
                layer.outputs,
                layer.inputs,
                self._dealt,
                self._dealt and index > 0,
                _KERNEL**2,
                layer.size**2,
                layer.size**2,
                trained=not self._frozen,
            )
            for index, layer in enumerate(self._layers)
        )

    def train(self, weights: Tensors, rows: Tensor) -> Tensor:
        """Features of a batch, thin or whole, with autograd's graph unless the body is frozen.

        rows  float32 [rows, 3 x 32 x 32]. Running statistics in `weights` are updated.
        Returns [rows, channels].
        """
        if self._frozen:
            with torch.no_grad():
                return self._by_running_statistics(weights, rows)
        norm = by_batch(weights) if self._dealt else by_batch_keeping(weights)
        return self._through(weights, norm, rows)

    def _through(
        self, weights: Tensors, norm: Norm, rows: Tensor, peers: Peers | None = None
    ) -> Tensor:
        """Features [rows, channels] of images, computed with the channels of `weights`.

        peers  the ranks that have the other channels; with peers collective, else local
        """
        values = rows.view(-1, *IMAGE)
        for layer in self._layers:
            weight = weights[layer.weight]
            if len(weight):
                values = F.conv2d(values, weight, padding=_KERNEL // 2)
            else:  # more ranks than channels
                values = values.new_empty(len(values), 0, layer.size, layer.size)
            values = norm(layer.norm, values)
            values = _after_norm(layer, values)
            if peers is not None:
                values = peers.gather(values, layer.outputs)
        return values.flatten(1)

    def full(
        self,
        weights: Tensors,
        statistics: Statistics,
        rows: Tensor,
        peers: Peers,
        calibrate: bool,
    ) -> Tensor:
        """Features of the full network, [rows, channels]; as `Model.full_hidden`. Collective."""
        if self._dealt:
            norm = by_all_units(weights, statistics, calibrate)
            at_once = len(rows) if calibrate else IMAGES_AT_ONCE
            parts = rows.split(max(1, at_once))
            return torch.cat([self._through(weights, norm, part, peers) for part in parts])
        # Every rank has the whole body, so the rows are divided instead.
        own = [
            self._by_running_statistics(weights, part)
            for part in rows[peers.share(len(rows))].split(IMAGES_AT_ONCE)
        ]
        return peers.gather_rows(torch.cat(own), len(rows))

    def _by_running_statistics(self, weights: Tensors, rows: Tensor) -> Tensor:
        """Features of any rows by a shared body; [rows, channels]. Local."""
        if not len(rows):  # fewer rows than ranks
            return rows.new_empty(0, self.features)
        return self._through(weights, by_running(weights), rows)


def _after_norm(layer: _Convolution, values: Tensor) -> Tensor:
    values = F.relu(values, inplace=True)
    if not layer.pooled:
        return values
    if not values.shape[1]:  # a rank without channels; torch cannot pool fewer than one
        return values[:, :, ::2, ::2]
    return F.max_pool2d(values, 2)

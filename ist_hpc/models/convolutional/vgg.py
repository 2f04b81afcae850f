"""VGG11 with batch norm on images of 32 x 32: convolutions, then three fully connected layers.

The fully connected hidden layers are dealt out as in any perceptron. The convolutions are shared
by default, as in the paper; with `deal_channels`, which goes beyond it, they are dealt out, too.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ist_hpc.config.keys import VGG11_CHANNELS
from ist_hpc.data.sparse_rows import Rows
from ist_hpc.exchange.placement import TensorSpec
from ist_hpc.models.base import Model, Peers, Statistics, Tensors
from ist_hpc.models.convolutional.convolutions import Convolutions
from ist_hpc.models.export import Plain
from ist_hpc.models.initial import initial_rows
from ist_hpc.models.layers import Layer
from ist_hpc.models.local_step import LocalStep
from ist_hpc.models.perceptrons.mlp import MultiLayerPerceptron
from ist_hpc.models.plain.vgg import IMAGE, vgg11
from ist_hpc.models.shapes import SharedSpec


class VGG11(Model):
    """VGG11 of any width.

    hidden         widths of the fully connected hidden layers, the axes `hidden{i}`
    outputs        classes
    channels       output channels of the eight convolutions
    output_norm, output_bias  as in `MultiLayerPerceptron`
    deal_channels  whether channels are dealt out, the axes `channels{i}`
    freeze_body    whether shared convolutions are not trained, with norms by stored statistics
    """

    label_block = None
    differentiable = True
    feature_shape = IMAGE

    def __init__(
        self,
        hidden: Sequence[int],
        outputs: int,
        channels: Sequence[int] = VGG11_CHANNELS,
        output_norm: bool = True,
        output_bias: bool = False,
        deal_channels: bool = False,
        freeze_body: bool = False,
    ) -> None:
        body = self._body = Convolutions(channels, deal_channels, freeze_body)
        head = self._head = MultiLayerPerceptron(
            body.features, hidden, outputs, output_norm, output_bias, input_axis=body.axis
        )
        self.outputs, self.norms_outputs = outputs, head.norms_outputs
        self.axes = body.axes | head.axes
        self.specs = (*body.specs, *head.specs)
        self.shared = (*body.shared, *head.shared)
        self.statistics = (*body.statistics, *head.statistics)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Convolutions and fully connected layers; see the base class."""
        return (*self._body.layers, *self._head.layers)

    def initial_rows(
        self, spec: TensorSpec, seed: int, rows: tuple[int, int]
    ) -> npt.NDArray[np.float32]:
        """As in `initial.initial_rows`; see the base class."""
        return initial_rows(spec.key, spec.shape, seed, rows)

    def initial_shared(self, spec: SharedSpec, seed: int) -> npt.NDArray[np.float32]:
        """The same values as in a dealt body; running mean zero, variance one."""
        return initial_rows(spec.key, spec.shape, seed, (0, spec.shape[0]))

    def loss(self, weights: Tensors, features: Tensor, labels: Tensor, step: LocalStep) -> Tensor:
        """Mean cross entropy of a batch of images [batch, 3 x 32 x 32]; see the base class."""
        return self._head.loss(weights, self._body.train(weights, features), labels, step)

    def full_hidden(
        self,
        weights: Tensors,
        statistics: Statistics,
        features: Rows,
        peers: Peers,
        calibrate: bool,
    ) -> Tensor:
        """Activations of the last hidden layer; see the base class."""
        assert isinstance(features, Tensor), "images are dense"
        entering = self._body.full(weights, statistics, features, peers, calibrate)
        return self._head.full_hidden(weights, statistics, entering, peers, calibrate)

    def own_outputs(
        self,
        weights: Tensors,
        statistics: Statistics,
        hidden: Tensor,
        outputs: slice,
        home_start: int,
        calibrate: bool,
    ) -> Tensor:
        """Logits of classes that are at home here; see the base class."""
        return self._head.own_outputs(weights, statistics, hidden, outputs, home_start, calibrate)

    def exported(self) -> Plain:
        """The body, then the layers of the head; see the base class."""
        channels = [layer.outputs for layer in self._body.layers]
        return Plain(vgg11, {"channels": channels, "head": self._head.exported()})

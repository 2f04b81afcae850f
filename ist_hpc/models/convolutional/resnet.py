"""Pre-activation residual networks on images of 32 x 32, whose blocks are dealt out (ResIST).

Four sections of basic blocks. The blocks of the third section except its first are the units of the
axis `blocks`: a rank trains the blocks it was dealt as a shallow network, where the others are the
identity. Everything else is shared. Tensors (axis of each dimension in brackets, `-` for none):

    blocks.conv1.weight (blocks, -, -, -, -)    blocks.norm1.weight, blocks.norm1.bias (blocks, -)
    blocks.conv2.weight ...                     blocks.norm2.weight, blocks.norm2.bias
    stem.weight, section{s}.{b}.{...}, norm.weight, norm.bias, out.weight, out.bias: shared

In the full network the branches of dealt blocks are multiplied by the share of the blocks that a
rank trains (section 3 of the paper: 1/S), since a rank's network has only that share of them. The
part before these blocks is never thin, so its norms have running statistics, averaged each round.
Statistics of dealt blocks and of the part after them are computed with the full network from
calibration rows.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ist_hpc.data.sparse_rows import Rows
from ist_hpc.exchange.placement import Axis, TensorSpec
from ist_hpc.models.base import Model, Peers, Statistics, Tensors
from ist_hpc.models.convolutional.residual import BlockShape, sections_of
from ist_hpc.models.export import Plain
from ist_hpc.models.initial import initial_rows
from ist_hpc.models.layers import IMAGES_AT_ONCE, Layer
from ist_hpc.models.local_step import LocalStep
from ist_hpc.models.norms import (
    Norm,
    by_batch,
    by_batch_keeping,
    by_running,
    full_norm,
    stored_norm,
)
from ist_hpc.models.plain import resnet as plain
from ist_hpc.models.shapes import SharedSpec, StatisticSpec

AXIS = "blocks"
_DEALT_SECTION = 2  # of 0 to 3
_RUNNING = ("running_mean", "running_var")


class ResNet(Model):
    """A residual network of basic blocks.

    sections   blocks in each of the four sections; all but the first of the third are dealt out
    channels   channels of each section
    outputs    classes
    least      minimum of blocks that a rank trains; if an even deal gives fewer, ranks share blocks
    subnets    how many networks are trained at a time: 1 if every rank has the whole network
    """

    label_block = None
    differentiable = True
    feature_shape = plain.IMAGE
    norms_outputs = False

    def __init__(
        self,
        sections: Sequence[int],
        channels: Sequence[int],
        outputs: int,
        least: int = 1,
        subnets: int = 1,
    ) -> None:
        assert len(sections) == len(channels) == 4
        self.outputs = outputs
        blocks = sections_of(tuple(sections), tuple(channels), plain.IMAGE[1])
        self._stem = (channels[0], plain.IMAGE[0], 3, 3)
        dealt = blocks[_DEALT_SECTION][1:]
        self._block, units = dealt[0], len(dealt)
        before = [*blocks[:_DEALT_SECTION], blocks[_DEALT_SECTION][:1]]
        self._front = _named(before, first=1)
        self._tail = _named(blocks[_DEALT_SECTION + 1 :], first=_DEALT_SECTION + 2)
        self._before = [(name, block.stride) for name, block in self._front.items()]
        self._after = [(name, block.stride) for name, block in self._tail.items()]
        self.relayed_numbers = self._block.inputs * self._block.size**2
        axis = Axis(units, least)
        self.axes = {AXIS: axis}
        self._scale = max(1 / subnets, min(least, units) / units) if subnets > 1 else 1.0
        self._dealt_norms = tuple(f"{AXIS}.{norm}" for norm in self._block.norm_sizes)
        self.specs = tuple(
            TensorSpec(f"{AXIS}.{name}", (units, *shape), (AXIS, *[None] * len(shape)), least=least)
            for name, shape in self._block.shapes.items()
        )
        self.shared = self._shared()
        width = channels[-1]
        self.statistics = (
            *(
                StatisticSpec(f"{AXIS}.{norm}", units, (size,))
                for norm, size in self._block.norm_sizes.items()
            ),
            *(
                StatisticSpec(f"{name}.{norm}", size)
                for name, block in self._tail.items()
                for norm, size in block.norm_sizes.items()
            ),
            StatisticSpec("norm", width),
        )

    def _shared(self) -> tuple[SharedSpec, ...]:
        shared = [SharedSpec("stem.weight", self._stem)]
        for name, block in (self._front | self._tail).items():
            shared += [SharedSpec(f"{name}.{key}", shape) for key, shape in block.shapes.items()]
        for name, block in self._front.items():
            shared += [
                SharedSpec(f"{name}.{norm}.{kind}", (size,), trained=False)
                for norm, size in block.norm_sizes.items()
                for kind in _RUNNING
            ]
        width = list(self._tail.values())[-1].outputs
        return (
            *shared,
            SharedSpec("norm.weight", (width,)),
            SharedSpec("norm.bias", (width,)),
            SharedSpec("out.weight", (self.outputs, width)),
            SharedSpec("out.bias", (self.outputs,)),
        )

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Convolutions and the output layer; the dealt blocks once, with their number."""
        positions = plain.IMAGE[1] ** 2
        stem = Layer(self._stem[0], self._stem[1], False, False, 9, positions, positions)
        width = list(self._tail.values())[-1].outputs
        return (
            stem,
            *(layer for block in self._front.values() for layer in block.layers()),
            *self._block.layers(copies=self.axes[AXIS], calibrated=True),
            *(layer for b in self._tail.values() for layer in b.layers(calibrated=True)),
            Layer(self.outputs, width, False, False),
        )

    def initial_rows(
        self, spec: TensorSpec, seed: int, rows: tuple[int, int]
    ) -> npt.NDArray[np.float32]:
        """Each block's part as `initial.initial_rows` draws it; see the base class."""
        name, shape = spec.key, spec.shape[1:]
        blocks = [
            initial_rows(f"{name}.{unit}" if len(shape) > 1 else name, shape, seed, (0, shape[0]))
            for unit in range(*rows)
        ]
        return np.stack(blocks) if blocks else np.empty((0, *shape), dtype=np.float32)

    def initial_shared(self, spec: SharedSpec, seed: int) -> npt.NDArray[np.float32]:
        """As `initial.initial_rows`; running mean zero, variance one."""
        return initial_rows(spec.key, spec.shape, seed, (0, spec.shape[0]))

    # A step of a thin network, which on one rank is the full one.

    def loss(self, weights: Tensors, features: Tensor, labels: Tensor, step: LocalStep) -> Tensor:
        """Mean cross entropy of a batch of images [batch, 3 x 32 x 32]; see the base class."""
        values = plain.front(weights, by_batch_keeping(weights), features, self._before)
        for own in plain.unstacked(weights):
            values = plain.block(own, by_batch(own), AXIS, values)
        values = plain.tail(weights, by_batch(weights), values, self._after)
        logits = F.linear(values, weights["out.weight"], weights["out.bias"])
        return F.cross_entropy(logits.float(), labels)

    # The full network.

    def full_hidden(
        self,
        weights: Tensors,
        statistics: Statistics,
        features: Rows,
        peers: Peers,
        calibrate: bool,
    ) -> Tensor:
        """Means of the last channels over the image, [rows, channels]; see the base class.

        Ranks divide the rows before and after the dealt blocks; through these blocks the rows go
        from home rank to home rank.
        """
        assert isinstance(features, Tensor), "images are dense"
        rows = len(features)
        values = peers.gather_rows(
            torch.cat(
                [
                    plain.front(weights, by_running(weights), part, self._before)
                    for part in features[peers.share(rows)].split(IMAGES_AT_ONCE)
                ]
            ),
            rows,
        )
        at_once = rows if calibrate else IMAGES_AT_ONCE
        if calibrate:
            for norm in self._dealt_norms:
                like = weights[f"{norm}.weight"]
                statistics[norm] = torch.empty_like(like), torch.empty_like(like)
        stage = partial(self._through_dealt, weights, statistics, calibrate)
        values = peers.relay(values, stage, at_once)
        if calibrate:  # each rank with all rows, for means and variances over them
            calibrating = _calibrating(weights, statistics, peers)
            return plain.tail(weights, calibrating, values, self._after)
        whole = {
            spec.key: _of_all_ranks(statistics[spec.key], spec.size, peers)
            for spec in self.statistics
            if spec.key not in self._dealt_norms
        }

        def stored(key: str, values: Tensor) -> Tensor:
            scale, shift = weights[f"{key}.weight"], weights[f"{key}.bias"]
            return stored_norm(values, *whole[key], scale, shift)

        own = [
            plain.tail(weights, stored, part, self._after)
            for part in values[peers.share(rows)].split(IMAGES_AT_ONCE)
        ]
        return peers.gather_rows(torch.cat(own), rows)

    def _through_dealt(
        self, weights: Tensors, statistics: Statistics, calibrate: bool, values: Tensor
    ) -> Tensor:
        """Pass values through the dealt blocks at home on this rank, one by one. Local.

        values  [rows, channels, height, width], like the result
        """
        for unit, own in enumerate(plain.unstacked(weights)):

            def norm(key: str, values: Tensor, unit: int = unit, own: Tensors = own) -> Tensor:
                found: Statistics = {}
                means, variances = statistics[key]
                if not calibrate:
                    found[key] = means[unit], variances[unit]
                scale, shift = own[f"{key}.weight"], own[f"{key}.bias"]
                normed = full_norm(values, key, found, scale, shift, calibrate)
                if calibrate:
                    means[unit], variances[unit] = found[key]
                return normed

            values = plain.block(own, norm, AXIS, values, scale=self._scale)
        return values

    def own_outputs(
        self,
        weights: Tensors,
        statistics: Statistics,
        hidden: Tensor,
        outputs: slice,
        home_start: int,
        calibrate: bool,
    ) -> Tensor:
        """Logits of some classes; see the base class."""
        own = slice(home_start + outputs.start, home_start + outputs.stop)
        return F.linear(hidden, weights["out.weight"][own], weights["out.bias"][own])

    def exported(self) -> Plain:
        """A module for evaluation, with all tensors as buffers; see the base class."""
        shapes = {spec.key: spec.shape for spec in self.specs}
        shapes |= {spec.key: spec.shape for spec in self.shared}
        for spec in self.statistics:
            shapes |= {f"{spec.key}.{running}": spec.shape for running in _RUNNING}
        sizes = {"shapes": shapes, "before": self._before, "after": self._after}
        return Plain(plain.ResNet, {**sizes, "scale": self._scale})


def _named(sections: Sequence[Sequence[BlockShape]], first: int) -> dict[str, BlockShape]:
    return {
        f"section{section}.{index}": block
        for section, blocks in enumerate(sections, start=first)
        for index, block in enumerate(blocks)
    }


def _calibrating(weights: Tensors, statistics: Statistics, peers: Peers) -> Norm:
    """Norms by the statistics of the values themselves; this rank keeps its part of these."""

    def norm(key: str, values: Tensor) -> Tensor:
        scale, shift, whole = weights[f"{key}.weight"], weights[f"{key}.bias"], Statistics()
        normed = full_norm(values, key, whole, scale, shift, calibrate=True)
        mean, variance = (part[peers.share(len(scale))].clone() for part in whole[key])
        statistics[key] = mean, variance
        return normed

    return norm


def _of_all_ranks(own: tuple[Tensor, Tensor], size: int, peers: Peers) -> tuple[Tensor, Tensor]:
    """The whole mean and variance, gathered from each rank's part. Collective."""
    mean, variance = (peers.gather(part.unsqueeze(0), size)[0] for part in own)
    return mean, variance

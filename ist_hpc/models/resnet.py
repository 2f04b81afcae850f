"""Pre-activation residual networks on images of 32 x 32, whose blocks are dealt out (ResIST).

Four sections of basic blocks. The blocks of the third but its first are the units of the axis
`blocks`: a rank trains those that it was dealt as a shallow network, the others are identity there.
Everything else is shared. Tensors (axis of each dimension in brackets, `-` for none):

    blocks.conv1.weight (blocks, -, -, -, -)    blocks.norm1.weight, blocks.norm1.bias (blocks, -)
    blocks.conv2.weight ...                     blocks.norm2.weight, blocks.norm2.bias
    stem.weight, section{s}.{b}.{...}, norm.weight, norm.bias, out.weight, out.bias: shared

The full network's branches of dealt blocks are multiplied by the part of the blocks that a rank
trains (section 3 of the paper: 1/S), since a rank's network has so many of them only. What comes
before these blocks is never thin, so its norms have running statistics, averaged each round; those
of dealt blocks and of what comes after them are computed with the full network from calibration
rows.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ist_hpc.data.sparse_rows import Rows
from ist_hpc.exchange.placement import Axis, TensorSpec
from ist_hpc.models import resnet_source
from ist_hpc.models.base import (
    ExportEntry,
    Model,
    Peers,
    SharedSpec,
    Statistics,
    StatisticSpec,
    Tensors,
)
from ist_hpc.models.convolutions import IMAGE
from ist_hpc.models.initial import initial_rows
from ist_hpc.models.layers import IMAGES_AT_ONCE, Layer
from ist_hpc.models.norms import NORM_EPSILON, NORM_MOMENTUM, batch_norm, full_norm, stored_norm
from ist_hpc.models.residual import BlockShape, Norm, sections_of

AXIS = "blocks"
_DEALT_SECTION = 2  # of 0 to 3
_RUNNING = ("running_mean", "running_var")


class ResNet(Model):
    """A residual network of basic blocks.

    sections   blocks in each of the four sections; of the third all but the first are dealt out
    channels   of each section
    outputs    classes
    least      blocks that a rank trains; where an even deal gives fewer, ranks share blocks
    subnets    how many networks are trained at a time: 1 where every rank has the whole one
    """

    label_block = None
    differentiable = True
    feature_shape = IMAGE
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
        blocks = sections_of(tuple(sections), tuple(channels), IMAGE[1])
        self._stem = (channels[0], IMAGE[0], 3, 3)
        dealt = blocks[_DEALT_SECTION][1:]
        self._block, units = dealt[0], len(dealt)
        before = [*blocks[:_DEALT_SECTION], blocks[_DEALT_SECTION][:1]]
        self._front = _named(before, first=1)
        self._tail = _named(blocks[_DEALT_SECTION + 1 :], first=_DEALT_SECTION + 2)
        self.relayed_numbers = self._block.inputs * self._block.size**2
        axis = Axis(units, least)
        self.axes = {AXIS: axis}
        self._scale = max(1 / subnets, min(least, units) / units) if subnets > 1 else 1.0
        self._dealt_norms = {f"{AXIS}.{norm}" for norm in self._block.norm_sizes}
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
        """Convolutions and the output layer; the dealt blocks once, with how many there are."""
        positions = IMAGE[1] ** 2
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

    # A step of a thin network, which at one rank is the full one.

    def loss(self, weights: Tensors, features: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy of a batch of images [batch, 3 x 32 x 32]; see the base class."""

        def running(name: str) -> Norm:
            return lambda norm, values: F.batch_norm(
                values,
                weights[f"{name}.{norm}.running_mean"],
                weights[f"{name}.{norm}.running_var"],
                weights[f"{name}.{norm}.weight"],
                weights[f"{name}.{norm}.bias"],
                training=True,
                momentum=NORM_MOMENTUM,
                eps=NORM_EPSILON,
            )

        values = F.conv2d(features.view(-1, *IMAGE), weights["stem.weight"], padding=1)
        for name, block in self._front.items():
            values = block.forward(_of(weights, name), running(name), values)
        # Unbound, so that the gradient of a stack is put together once and not block by block.
        stacks = {key: weights[f"{AXIS}.{key}"].unbind() for key in self._block.shapes}
        for unit in range(len(stacks["conv1.weight"])):
            of_unit = {key: parts[unit] for key, parts in stacks.items()}
            values = self._block.forward(of_unit, _by_batch(of_unit), values)
        for name, block in self._tail.items():
            of_block = _of(weights, name)
            values = block.forward(of_block, _by_batch(of_block), values)
        values = F.relu(batch_norm(values, weights["norm.weight"], weights["norm.bias"]))
        logits = F.linear(values.mean(dim=(2, 3)), weights["out.weight"], weights["out.bias"])
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
        """Means over the image of the last channels, [rows, channels]; see the base class.

        Ranks divide the rows before and after the dealt blocks; through these the rows go from
        rank to rank, by home.
        """
        assert isinstance(features, Tensor), "images are dense"
        rows = len(features)
        values = peers.gather_rows(
            torch.cat(
                [
                    self._through_front(weights, part)
                    for part in features[peers.share(rows)].split(IMAGES_AT_ONCE)
                ]
            ),
            rows,
        )
        at_once = rows if calibrate else IMAGES_AT_ONCE
        stage = _Stage(self._block, weights, statistics, self._scale, calibrate)
        values = peers.relay(values, stage.through, at_once)
        if calibrate:  # each rank with all rows, for means and variances over them
            return self._through_tail(weights, _calibrating(weights, statistics, peers), values)
        whole = {
            spec.key: _of_all_ranks(statistics[spec.key], spec.size, peers)
            for spec in self.statistics
            if spec.key not in self._dealt_norms
        }

        def stored(key: str, values: Tensor) -> Tensor:
            scale, shift = weights[f"{key}.weight"], weights[f"{key}.bias"]
            return stored_norm(values, *whole[key], scale, shift)

        own = [
            self._through_tail(weights, stored, part)
            for part in values[peers.share(rows)].split(IMAGES_AT_ONCE)
        ]
        return peers.gather_rows(torch.cat(own), rows)

    def _through_front(self, weights: Tensors, rows: Tensor) -> Tensor:
        """By the running statistics."""

        def running(name: str) -> Norm:
            kinds = (*_RUNNING, "weight", "bias")
            return lambda norm, values: stored_norm(
                values, *(weights[f"{name}.{norm}.{kind}"] for kind in kinds)
            )

        values = F.conv2d(rows.view(-1, *IMAGE), weights["stem.weight"], padding=1)
        for name, block in self._front.items():
            values = block.forward(_of(weights, name), running(name), values)
        return values

    def _through_tail(self, weights: Tensors, norm: Norm, values: Tensor) -> Tensor:
        """From the dealt blocks on; `norm` takes whole keys. Local."""
        for name, block in self._tail.items():
            values = block.forward(_of(weights, name), _within(norm, name), values)
        return F.relu(norm("norm", values)).mean(dim=(2, 3))

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

    def export_entries(self) -> tuple[ExportEntry, ...]:
        """Of `module_source`: all tensors, named as in checkpoints with `_` for `.`, in stacks."""
        entries = [("parameters", spec.key, spec.key, spec.shape) for spec in self.specs]
        entries += [("parameters", spec.key, spec.key, spec.shape) for spec in self.shared]
        entries += [
            ("statistics", f"{spec.key}.{statistic}", f"{spec.key}.{running}", spec.shape)
            for spec in self.statistics
            for statistic, running in zip(("mean", "variance"), _RUNNING, strict=True)
        ]
        return tuple(
            ExportEntry(name.replace(".", "_"), shape, (group, key))
            for group, key, name, shape in entries
        )

    def module_source(self) -> str:
        """A module for evaluation; see the base class."""
        shapes = "".join(f"    {e.name!r}: {e.shape},\n" for e in self.export_entries())
        blocks = [(name, block.stride) for name, block in self._front.items()]
        after = [(name, block.stride) for name, block in self._tail.items()]
        return resnet_source.SOURCE.format(
            shapes=shapes,
            before=[(name.replace(".", "_"), stride) for name, stride in blocks],
            dealt=self.axes[AXIS].size,
            scale=self._scale,
            after=[(name.replace(".", "_"), stride) for name, stride in after],
            epsilon=NORM_EPSILON,
            image=IMAGE,
        )


class _Stage:
    """The dealt blocks whose home is this rank, one after the other."""

    def __init__(
        self,
        block: BlockShape,
        weights: Tensors,
        statistics: Statistics,
        scale: float,
        calibrate: bool,
    ) -> None:
        self._block, self._scale, self._calibrate = block, scale, calibrate
        self._weights = {key: weights[f"{AXIS}.{key}"] for key in block.shapes}
        self._statistics = statistics
        if calibrate:
            for norm in block.norm_sizes:
                like = self._weights[f"{norm}.weight"]
                statistics[f"{AXIS}.{norm}"] = torch.empty_like(like), torch.empty_like(like)

    def through(self, values: Tensor) -> Tensor:
        """Rows [rows, channels, height, width] through all of them. Local."""
        for unit in range(len(self._weights["conv1.weight"])):
            own = {key: stack[unit] for key, stack in self._weights.items()}

            def norm(name: str, values: Tensor, unit: int = unit, own: Tensors = own) -> Tensor:
                found: Statistics = {}
                stacks = self._statistics[f"{AXIS}.{name}"]
                if not self._calibrate:
                    found[name] = stacks[0][unit], stacks[1][unit]
                scale, shift = own[f"{name}.weight"], own[f"{name}.bias"]
                normed = full_norm(values, name, found, scale, shift, self._calibrate)
                if self._calibrate:
                    for stack, value in zip(stacks, found[name], strict=True):
                        stack[unit] = value
                return normed

            values = self._block.forward(own, norm, values, self._scale)
        return values


def _named(sections: Sequence[Sequence[BlockShape]], first: int) -> dict[str, BlockShape]:
    return {
        f"section{section}.{index}": block
        for section, blocks in enumerate(sections, start=first)
        for index, block in enumerate(blocks)
    }


def _of(weights: Tensors, name: str) -> Mapping[str, Tensor]:
    """The tensors of a shared block, under the names of `BlockShape.shapes`."""
    prefix = f"{name}."
    return {
        key.removeprefix(prefix): tensor
        for key, tensor in weights.items()
        if key.startswith(prefix)
    }


def _within(norm: Norm, name: str) -> Norm:
    """The norms of a block, from those that take whole keys."""
    return lambda key, values: norm(f"{name}.{key}", values)


def _by_batch(own: Tensors) -> Norm:
    return lambda norm, values: batch_norm(values, own[f"{norm}.weight"], own[f"{norm}.bias"])


def _calibrating(weights: Tensors, statistics: Statistics, peers: Peers) -> Norm:
    """Norms by the statistics of the values themselves, of which this rank's part is kept."""

    def norm(key: str, values: Tensor) -> Tensor:
        scale, shift, whole = weights[f"{key}.weight"], weights[f"{key}.bias"], Statistics()
        normed = full_norm(values, key, whole, scale, shift, calibrate=True)
        mean, variance = (part[peers.share(len(scale))].clone() for part in whole[key])
        statistics[key] = mean, variance
        return normed

    return norm


def _of_all_ranks(own: tuple[Tensor, Tensor], size: int, peers: Peers) -> tuple[Tensor, Tensor]:
    """Whole mean and variance, of which each rank has its part. Collective."""
    mean, variance = (peers.gather(part.unsqueeze(0), size)[0] for part in own)
    return mean, variance

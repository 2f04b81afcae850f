"""A pre-activation residual network on images of 32 x 32, of blocks of two convolutions.

Tensors have names, such as `section1.0.conv1.weight`. The blocks in the middle are alike, and have
theirs in stacks: `blocks.conv1.weight` is [blocks, channels, channels, 3, 3]. What a norm does is
an argument, as it is by the batch in training, and by stored means and variances in evaluation.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGE = (3, 32, 32)
"""Channels, height and width of what goes in."""
Tensors = Mapping[str, Tensor]
Norm = Callable[[str, Tensor], Tensor]
"""The norm of a name, such as `section1.0.norm1`, of values [rows, channels, height, width]."""
Blocks = Sequence[tuple[str, int]]
"""The name of each block, and the stride of its first convolution."""


def block(
    tensors: Tensors, norm: Norm, name: str, values: Tensor, stride: int = 1, scale: float = 1.0
) -> Tensor:
    """Norm, ReLU, convolution, twice; times `scale`, and added to what came in.

    values  float32 [rows, channels, height, width]; with a shortcut they pass a convolution of
            1 x 1, after the first norm and ReLU, before they are added
    """
    entering = F.relu(norm(f"{name}.norm1", values))
    branch = F.conv2d(entering, tensors[f"{name}.conv1.weight"], stride=stride, padding=1)
    after = tensors[f"{name}.conv2.weight"]
    branch = F.conv2d(F.relu(norm(f"{name}.norm2", branch)), after, padding=1)
    shortcut = tensors.get(f"{name}.shortcut.weight")
    if shortcut is not None:
        values = F.conv2d(entering, shortcut, stride=stride)
    return values + (branch if scale == 1.0 else scale * branch)


def front(tensors: Tensors, norm: Norm, rows: Tensor, blocks: Blocks) -> Tensor:
    """From images [rows, 3 x 32 x 32] to what enters the blocks in stacks."""
    values = F.conv2d(rows.view(-1, *IMAGE), tensors["stem.weight"], padding=1)
    for name, stride in blocks:
        values = block(tensors, norm, name, values, stride)
    return values


def unstacked(tensors: Tensors) -> Iterator[dict[str, Tensor]]:
    """The tensors of each block in stacks, one block after the other."""
    # Unbound, so that the gradient of a stack is put together once and not block by block.
    stacks = {key: stack.unbind() for key, stack in tensors.items() if key.startswith("blocks.")}
    for parts in zip(*stacks.values(), strict=True):
        yield dict(zip(stacks, parts, strict=True))


def tail(tensors: Tensors, norm: Norm, values: Tensor, blocks: Blocks) -> Tensor:
    """From the blocks in stacks to means over the image, [rows, channels]."""
    for name, stride in blocks:
        values = block(tensors, norm, name, values, stride)
    return F.relu(norm("norm", values)).mean(dim=(2, 3))


class ResNet(nn.Module):
    """The whole network, for evaluation: from float32 [rows, 3 x 32 x 32] to logits.

    shapes         of all tensors, by name; they are buffers, with `_` for `.` in their names
    before, after  the blocks on either side of those in stacks
    scale          of the branches of blocks in stacks
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], before: Blocks, after: Blocks, scale: float
    ) -> None:
        super().__init__()
        self.names, self.before, self.after, self.scale = tuple(shapes), before, after, scale
        for name, shape in shapes.items():
            self.register_buffer(name.replace(".", "_"), torch.zeros(shape))

    def forward(self, rows: Tensor) -> Tensor:
        """Logits [rows, classes]."""
        tensors = {name: self.get_buffer(name.replace(".", "_")) for name in self.names}
        values = front(tensors, by_stored(tensors), rows, self.before)
        for own in unstacked(tensors):
            values = block(own, by_stored(own), "blocks", values, scale=self.scale)
        values = tail(tensors, by_stored(tensors), values, self.after)
        return F.linear(values, tensors["out.weight"], tensors["out.bias"])


def by_stored(tensors: Tensors) -> Norm:
    """Norms by means and variances that are among the tensors."""

    def norm(name: str, values: Tensor) -> Tensor:
        mean, variance = tensors[f"{name}.running_mean"], tensors[f"{name}.running_var"]
        return F.batch_norm(
            values, mean, variance, tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        )

    return norm

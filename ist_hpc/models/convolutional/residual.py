"""The blocks of a pre-activation residual network, and its sections (ResIST, section 3).

`plain.resnet.block` says what a block computes; this file says which tensors it has and what it
costs. The first block of a section may halve the image and change the channels: then it has a
shortcut.
"""

from dataclasses import dataclass

from ist_hpc.exchange.placement import Axis
from ist_hpc.models.layers import Layer

_KERNEL = 3
_BESIDE = 5  # the input after its norm, the branch, and both sides of a norm and a convolution


@dataclass(frozen=True)
class BlockShape:
    """A block of a section: channels in and out, and the step of its first convolution.

    size  height and width of the input images
    """

    inputs: int
    outputs: int
    stride: int
    size: int

    @property
    def has_shortcut(self) -> bool:
        """Whether the input passes a convolution before it is added."""
        return self.stride != 1 or self.inputs != self.outputs

    @property
    def size_out(self) -> int:
        """Height and width of the output images."""
        return -(-self.size // self.stride)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each trained tensor, in the order of the forward pass."""
        shapes = {
            **self.norms("norm1", self.inputs),
            "conv1.weight": (self.outputs, self.inputs, _KERNEL, _KERNEL),
            **self.norms("norm2", self.outputs),
            "conv2.weight": (self.outputs, self.outputs, _KERNEL, _KERNEL),
        }
        if self.has_shortcut:
            shapes["shortcut.weight"] = (self.outputs, self.inputs, 1, 1)
        return shapes

    @property
    def norm_sizes(self) -> dict[str, int]:
        """Channels of each norm."""
        return {"norm1": self.inputs, "norm2": self.outputs}

    @staticmethod
    def norms(name: str, channels: int) -> dict[str, tuple[int, ...]]:
        """The trained tensors of a norm."""
        return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}

    def layers(self, copies: Axis | None = None, calibrated: bool = False) -> tuple[Layer, ...]:
        """Its convolutions, from which costs are counted; see `Layer`."""
        before, after = self.size**2, self.size_out**2

        def layer(outputs: int, inputs: int, kernel: int, positions_in: int) -> Layer:
            return Layer(
                *(outputs, inputs, False, False, kernel, after, positions_in),
                copies=copies,
                calibrated=calibrated,
                beside=_BESIDE,
            )

        found = [
            layer(self.outputs, self.inputs, _KERNEL**2, before),
            layer(self.outputs, self.outputs, _KERNEL**2, after),
        ]
        if self.has_shortcut:
            found.append(layer(self.outputs, self.inputs, 1, before))
        return tuple(found)


def sections_of(
    counts: tuple[int, ...], channels: tuple[int, ...], size: int
) -> list[list[BlockShape]]:
    """The blocks of each section; the first block of all but the first section halves the image.

    counts    blocks in each section
    channels  channels of each section; the stem has those of the first
    size      height and width of the images
    """
    sections: list[list[BlockShape]] = []
    inputs = channels[0]
    for index, (count, outputs) in enumerate(zip(counts, channels, strict=True)):
        blocks = []
        for block in range(count):
            stride = 2 if index and not block else 1
            blocks.append(BlockShape(inputs, outputs, stride, size))
            inputs, size = outputs, blocks[-1].size_out
        sections.append(blocks)
    return sections

"""VGG11 with batch norm on images of 32 x 32: eight convolutions, then a perceptron."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

IMAGE = (3, 32, 32)
"""Channels, height and width of what goes in."""
POOLED = (True, True, False, True, False, True, False, True)
"""Whether a pooling by two follows a convolution."""


def vgg11(channels: Sequence[int], head: nn.Sequential) -> nn.Sequential:
    """From float32 [rows, 3 x 32 x 32] to logits [rows, classes].

    channels  of the convolutions
    head      from [rows, channels[-1]] to the logits
    """
    layers = OrderedDict[str, nn.Module](images=nn.Unflatten(1, IMAGE))
    inputs = IMAGE[0]
    for i, (outputs, pooled) in enumerate(zip(channels, POOLED, strict=True), start=1):
        layers[f"conv{i}"] = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        layers[f"conv{i}_norm"] = nn.BatchNorm2d(outputs)
        layers[f"conv{i}_relu"] = nn.ReLU()
        if pooled:
            layers[f"conv{i}_pool"] = nn.MaxPool2d(2)
        inputs = outputs
    layers["features"] = nn.Flatten()
    layers.update(head.named_children())
    return nn.Sequential(layers)

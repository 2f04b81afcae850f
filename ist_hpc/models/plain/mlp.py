"""A multi-layer perceptron: linear without bias, batch norm, ReLU; then the linear output."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn


def perceptron(
    inputs: int, hidden: Sequence[int], outputs: int, output_norm: bool, output_bias: bool
) -> nn.Sequential:
    """From float32 [rows, inputs] to logits [rows, outputs].

    hidden       widths of the hidden layers
    output_norm  whether batch norm without scale and shift follows the output
    """
    layers = OrderedDict[str, nn.Module]()
    for i, width in enumerate(hidden, start=1):
        layers[f"fc{i}"] = nn.Linear(inputs, width, bias=False)
        layers[f"bn{i}"] = nn.BatchNorm1d(width)
        layers[f"relu{i}"] = nn.ReLU()
        inputs = width
    layers["out"] = nn.Linear(inputs, outputs, bias=output_bias)
    if output_norm:
        layers["bn_out"] = nn.BatchNorm1d(outputs, affine=False)
    return nn.Sequential(layers)

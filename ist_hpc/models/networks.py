"""The list of networks. A new one is one file beside this one, and one entry in `build`."""

import math
from collections.abc import Sequence
from pathlib import Path

from ist_hpc.common.errors import InputError
from ist_hpc.config.keys import MlpConfig, ModelConfig, ResnetConfig, channels_of, sections_of
from ist_hpc.models.base import Model
from ist_hpc.models.mlp import MultiLayerPerceptron
from ist_hpc.models.plain.vgg import IMAGE
from ist_hpc.models.resnet import ResNet
from ist_hpc.models.vgg import VGG11


def build(
    config: ModelConfig, inputs: int, outputs: int, sparse: bool = False, subnets: int = 1
) -> Model:
    """The model that a configuration names, for data of `inputs` features and `outputs` classes.

    sparse   whether the data have sparse rows and sets of labels
    subnets  how many networks are trained at a time, for which the full one is scaled: 1 if every
             rank has the whole network
    Raises `InputError` if the configured loss is for other labels.
    """
    if isinstance(config, MlpConfig):
        return _perceptron(config, inputs, outputs, sparse)
    expected = math.prod(IMAGE)
    if sparse or inputs != expected:
        got = "sparse rows" if sparse else f"rows of {inputs} numbers"
        raise InputError(
            f"`model.kind: {config.kind}` takes images of {_by(IMAGE)}, that is "
            f"{expected} numbers a row; the data have {got}, which `model.kind: mlp` takes"
        )
    channels = channels_of(config)
    if isinstance(config, ResnetConfig):
        return ResNet(sections_of(config), channels, outputs, config.min_blocks, subnets)
    return VGG11(
        hidden=config.hidden,
        outputs=outputs,
        channels=channels,
        output_norm=config.output_norm == "batch",
        output_bias=config.output_bias,
        deal_channels=config.deal_channels,
        freeze_body=config.freeze_body,
    )


def _perceptron(config: MlpConfig, inputs: int, outputs: int, sparse: bool) -> Model:
    loss: str = config.loss
    if loss == "auto":
        loss = "softmax" if sparse else "cross_entropy"
    if sparse and (loss == "cross_entropy" or config.output_norm != "none"):
        raise InputError(
            "the data have sets of labels, which take `model.loss: softmax` or `bce` and "
            f"`model.output_norm: none`; got `model.loss: {config.loss}` and "
            f"`model.output_norm: {config.output_norm}`"
        )
    return MultiLayerPerceptron(
        inputs=inputs,
        hidden=config.hidden,
        outputs=outputs,
        output_norm=config.output_norm == "batch",
        output_bias=config.output_bias,
        loss=loss,
        label_block=config.label_block,
        sparse=sparse,
    )


def refuse_other_rows(model: Model, feature_shape: Sequence[int], path: Path) -> None:
    """Raise `InputError` unless rows of the data at `path` have the shape that a model needs."""
    if model.feature_shape not in (None, tuple(feature_shape)):
        raise InputError(
            f"{path} has rows of {_by(feature_shape)}, the model takes images of "
            f"{_by(model.feature_shape or ())}"
        )


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))

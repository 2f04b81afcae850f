"""Which networks there are. A new one is a file of its family's folder, and an entry in `build`."""

import math
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ist_hpc.common.errors import InputError
from ist_hpc.config.keys import MlpConfig, ModelConfig, ResnetConfig, channels_of, sections_of
from ist_hpc.models.base import Model
from ist_hpc.models.convolutional.resnet import ResNet
from ist_hpc.models.convolutional.vgg import VGG11
from ist_hpc.models.perceptrons.mlp import MultiLayerPerceptron
from ist_hpc.models.perceptrons.sampled_labels import Sampling
from ist_hpc.models.plain.vgg import IMAGE


def build(
    config: ModelConfig,
    inputs: int,
    outputs: int,
    sparse: bool = False,
    subnets: int = 1,
    frequencies: Tensor | None = None,
) -> Model:
    """The model that a configuration names, for data of `inputs` features and `outputs` classes.

    sparse   whether the data have sparse rows and sets of labels
    subnets  how many networks are trained at a time, of which the full one is scaled for: 1 where
             every rank has the whole one
    frequencies
             the part of the training rows that has each label, to train labels that are sampled;
             float32 [outputs]
    Raises `InputError` if the configured loss is of other labels.
    """
    if isinstance(config, MlpConfig):
        return _perceptron(config, inputs, outputs, sparse, frequencies)
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


def _perceptron(
    config: MlpConfig, inputs: int, outputs: int, sparse: bool, frequencies: Tensor | None
) -> Model:
    loss: str = config.loss
    if loss == "auto":
        loss = "softmax" if sparse else "cross_entropy"
    if sparse and (loss == "cross_entropy" or config.output_norm != "none"):
        raise InputError(
            "the data have sets of labels, which take `model.loss: softmax`, `bce` or "
            "`sampled_softmax` and "
            f"`model.output_norm: none`; got `model.loss: {config.loss}` and "
            f"`model.output_norm: {config.output_norm}`"
        )
    if loss == "sampled_softmax" and not sparse:
        raise InputError(
            "`model.loss: sampled_softmax` is of sets of labels; the data have one class a row, "
            "which take cross_entropy, softmax or bce"
        )
    is_sampled = loss == "sampled_softmax"
    return MultiLayerPerceptron(
        inputs=inputs,
        hidden=config.hidden,
        outputs=outputs,
        output_norm=config.output_norm == "batch",
        output_bias=config.output_bias,
        loss=loss,
        label_block=config.label_block,
        sparse=sparse,
        sampling=Sampling(outputs, config.negatives, frequencies) if is_sampled else None,
        dropout=config.dropout,
        zero_outputs=config.output_start == "zero",
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

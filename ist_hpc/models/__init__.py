"""The networks. A new architecture is one file here and one entry in `build`."""

from ist_hpc.config import ModelConfig
from ist_hpc.errors import InputError
from ist_hpc.models.base import Model
from ist_hpc.models.mlp import MultiLayerPerceptron


def build(config: ModelConfig, inputs: int, outputs: int, sparse: bool = False) -> Model:
    """The model that a configuration names, for data of `inputs` features and `outputs` classes.

    sparse  whether the data have sparse rows and sets of labels. Raises `InputError` if the
            configured loss is of other labels.
    """
    loss = config.loss
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

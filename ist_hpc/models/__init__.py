"""The networks. A new architecture is one file here and one entry in `build`."""

from ist_hpc.config import ModelConfig
from ist_hpc.models.base import Model
from ist_hpc.models.mlp import MultiLayerPerceptron


def build(config: ModelConfig, inputs: int, outputs: int) -> Model:
    """The model that a configuration names, for data of `inputs` features and `outputs` classes."""
    return MultiLayerPerceptron(
        inputs=inputs,
        hidden=config.hidden,
        outputs=outputs,
        output_norm=config.output_norm == "batch",
        output_bias=config.output_bias,
    )

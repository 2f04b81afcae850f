"""What is kept of a round, to undo it, takes the memory that the plan says."""

import pytest

from ist_hpc.config.keys import OptimizerConfig
from ist_hpc.cost import counts
from ist_hpc.cost.memory import subnet_memory
from ist_hpc.exchange.exchanger import Exchanger
from ist_hpc.models import optimizer
from ist_hpc.models.perceptrons.mlp import MultiLayerPerceptron
from ist_hpc.training.algorithms.ist import IndependentSubnets
from ist_hpc.training.averaging import MpiAverages
from tests.helpers.alone import Alone


@pytest.mark.parametrize("carry", [False, True])
def test_what_is_kept_of_a_round_is_what_is_said(carry):
    model = MultiLayerPerceptron(30, [40], 7, output_norm=False, output_bias=True)
    rule, comm = optimizer.build(OptimizerConfig(kind="adam")), Alone(0, ranks=3)
    algorithm = IndependentSubnets(
        comm, model, rule, Exchanger(comm, 1.0), 0, carry, MpiAverages(comm)
    )
    algorithm.start_new()
    algorithm.begin_round(0)
    algorithm.keep_round()
    job = counts.Job(model=model, rule=rule, ranks=3, carry=carry, keeps_rounds=True)
    said = subnet_memory(job).phases["training"]["kept_round"]
    assert said == sum(tensor.nbytes for tensor in algorithm._kept)

"""N ranks on one device against one process: to the last bit on the CPU, nearly so on a GPU.

`GPU_TESTS_ON=cuda`, as bench/gpu.sh sets it, is a real GPU that all ranks share. There sums are
added in another order than in the oracle, which is on the CPU.
"""

import os

import pytest
import torch

from ist_hpc.data.sparse_rows import to_device
from ist_hpc.exchange.exchanger import Exchanger
from ist_hpc.exchange.staging import staging_of
from ist_hpc.models import optimizer
from ist_hpc.models.perceptrons.mlp import MultiLayerPerceptron
from ist_hpc.training.algorithms.ist import IndependentSubnets
from tests.helpers.oracle import Oracle
from tests.mpi.against_oracle import RULES, SEED, assert_equal, rounds
from tests.mpi.helpers import INPUTS, OUTPUTS, batch, rule, sparse_batch

DEVICE = torch.device(os.environ.get("GPU_TESTS_ON", "cpu"))
LABELS = {"output_norm": False, "loss": "softmax", "label_block": Oracle.BLOCK, "sparse": True}


class OnDevice(IndependentSubnets):
    """Takes batches of the CPU's."""

    def step(self, features, labels, lr, trained):
        return super().step(to_device(features, DEVICE), to_device(labels, DEVICE), lr, trained)


def built(world, model, config):
    exchanger = Exchanger(world, 1.0, staging_of(DEVICE, cuda_aware=False))
    parts = (world, model, optimizer.build(config), exchanger, SEED, config.state == "carry", None)
    algorithm = OnDevice(*parts)
    algorithm.start_new()
    return algorithm


def whole_on_cpu(world, algorithm, specs):
    algorithm.visit_home(with_slots=True)
    found = {}
    for spec in specs:
        block = algorithm.state[spec.key].place("home").detach().cpu()
        found[spec.key] = torch.cat(world.allgather(block))
    algorithm.leave_home()
    return found


@pytest.mark.parametrize("config", [RULES["momentum, carried"], rule(kind="adagrad")], ids=str)
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_ranks_on_a_device_equal_one_process(world, kind, config):
    options, draw = (LABELS, sparse_batch) if kind == "sparse" else ({}, batch)
    model = MultiLayerPerceptron(INPUTS, [11, 7], OUTPUTS, **options)
    algorithm, again = built(world, model, config), built(world, model, config)
    oracle = Oracle(model, world.Get_size(), SEED, config)
    for _ in rounds(world, algorithm, oracle, config.lr, 5, draw):
        pass
    for _ in rounds(
        world, again, Oracle(model, world.Get_size(), SEED, config), config.lr, 5, draw
    ):
        pass
    specs = (*model.specs, *algorithm.slot_specs)
    whole, repeated = (whole_on_cpu(world, one, specs) for one in (algorithm, again))
    if DEVICE.type == "cpu":
        assert_equal(whole, oracle, algorithm)
    largest = 0.0
    for spec in model.specs:
        wanted = oracle.whole[spec.key].values
        torch.testing.assert_close(whole[spec.key], wanted, atol=1e-4, rtol=1e-3)
        largest = max(largest, float((whole[spec.key] - wanted).abs().max()))
    same = all(torch.equal(whole[key], repeated[key]) for key in whole)
    if world.Get_rank() == 0:
        place = f"{kind}, {world.Get_size()} ranks on {DEVICE}"
        bits = "the same bits" if same else "other bits"
        print(f"{place}: at most {largest:.1e} from the oracle; a second run has {bits}")

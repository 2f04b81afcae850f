"""Data parallel training and local SGD on sampled labels average what some rank trained."""

from functools import partial

import pytest
import torch
from torch import Tensor

from ist_hpc.common.sizes import allreduce_bytes
from ist_hpc.models.perceptrons.mlp import MultiLayerPerceptron
from ist_hpc.models.perceptrons.sampled_labels import Sampling
from tests.mpi.helpers import INPUTS, full, rule, sparse_batch
from tests.mpi.replica_runs import STEPS, everything, on_mean_gradients, started, train

LABELS = 40
SAMPLED = {"output_norm": False, "loss": "sampled_softmax", "sparse": True}
few_labels = partial(sparse_batch, outputs=LABELS, density=0.02)


def sampled_perceptron():
    sampling = Sampling(LABELS, 2, torch.full((LABELS,), 0.02))
    return MultiLayerPerceptron(INPUTS, [9], LABELS, sampling=sampling, **SAMPLED)


def test_data_parallel_on_sampled_labels_averages_what_some_rank_trains(world, averages):
    algorithm = started(world, averages, "data_parallel", sampled_perceptron(), rule())
    train(world, algorithm, rule(), 2, few_labels)
    found, ranks = everything(world, algorithm), world.Get_size()
    expected = on_mean_gradients(world, algorithm.model, rule(), 2, few_labels)
    for key, weight in expected.items():
        torch.testing.assert_close(found[key], weight.detach(), atol=1e-6, rtol=0)
    whole = 2 * STEPS * allreduce_bytes(sum(map(Tensor.numel, expected.values())), ranks) * ranks
    assert algorithm.meter.read(world).bytes_averaged < 0.8 * whole or ranks == 1


@pytest.mark.parametrize("config", [rule(momentum=0.9), rule(kind="rowwise_adagrad")], ids=str)
def test_local_sgd_on_sampled_labels_averages_what_some_rank_trained(world, averages, config):
    """Each rank's copy is trained here, too, by one rank alone; labels of no rank do not change."""
    from mpi4py import MPI

    ranks = world.Get_size()
    algorithm = started(world, averages, "local_sgd", sampled_perceptron(), config)
    before = everything(world, algorithm)
    train(world, algorithm, config, 1, few_labels)
    found = everything(world, algorithm)
    copies = []
    for rank in range(ranks):
        alone = started(MPI.COMM_SELF, averages, "local_sgd", sampled_perceptron(), config)
        alone.begin_round(0)
        for step in range(STEPS):
            alone.step(*few_labels(rank, step), config.lr, step)
        copies.append(full(MPI.COMM_SELF, alone, (*alone.model.specs, *alone.slot_specs)))
    for key, tensor in found.items():
        mean = torch.stack([copy[key] for copy in copies]).mean(0)
        torch.testing.assert_close(tensor, mean, atol=1e-6, rtol=0)
    untouched = (before["out.weight"] == found["out.weight"]).all(dim=1)
    assert 0 < untouched.sum() < LABELS

"""Rounds over real MPI: nothing is lost, bytes are as planned, memory is as counted."""

import numpy as np
import pytest
import torch

from ist_hpc.common.sizes import ELEMENT_BYTES
from ist_hpc.exchange.placement import at_round, home
from ist_hpc.exchange.plan import pair_counts
from ist_hpc.exchange.tensors import state_bytes
from ist_hpc.models.perceptrons.mlp import MultiLayerPerceptron
from tests.mpi.helpers import INPUTS, OUTPUTS, batch, build, full, rule, same_bits

SEED = 3


@pytest.mark.parametrize("buffer_mib", [1.0, 0.0005], ids=["one chunk", "many chunks"])
def test_fifty_rounds_at_learning_rate_0_leave_every_weight_as_it_was(world, buffer_mib):
    model = MultiLayerPerceptron(INPUTS, [11, 9, 7], OUTPUTS)
    algorithm = build(world, model, rule(lr=0.0, momentum=0.9), SEED, buffer_mib)
    for index in range(50):
        algorithm.begin_round(index)
        algorithm.step(*batch(world.Get_rank(), index), 0.0, index)
        algorithm.end_round()
        if index % 20 == 7:
            full(world, algorithm, model.specs)
    whole = full(world, algorithm, model.specs)
    for spec in model.specs:
        initial = torch.from_numpy(model.initial_rows(spec, SEED, (0, spec.rows)))
        assert same_bits(whole[spec.key], initial), spec.key


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_bytes_are_those_of_the_plan(world, kind):
    """For each rank, to the byte; and a round is one Alltoallv on every rank."""
    model = MultiLayerPerceptron(INPUTS, [13, 10], OUTPUTS)
    algorithm = build(world, model, rule(kind=kind), SEED)
    specs = (*model.specs, *algorithm.slot_specs)
    ranks, rank = world.Get_size(), world.Get_rank()
    source = home(ranks)
    for index in range(6):
        target = at_round(model.axes, ranks, SEED, index)
        counts = pair_counts(specs, source, target) * ELEMENT_BYTES
        report = algorithm.begin_round(index)
        assert report.bytes_sent == counts[rank].sum()
        assert report.bytes_received == counts[:, rank].sum()
        assert report.chunks == (0 if ranks == 1 else 1)
        source = target


def test_a_rank_holds_what_the_design_counts(world):
    """1/N of an input or output layer; 1/N + 1/N^2 of a middle layer; evaluation adds home."""
    ranks = world.Get_size()
    width, inputs, outputs = 12 * ranks, 24, 12
    model = MultiLayerPerceptron(inputs, [width, width], outputs)
    algorithm = build(world, model, rule(momentum=0.9), SEED)
    ends = (inputs + outputs + 4) * width / ranks  # two batch norms of two vectors each
    middle = width * width * (1 / ranks + 1 / ranks**2)
    for index in range(3):
        algorithm.begin_round(index)
        assert state_bytes(algorithm.state) == 2 * 4 * (ends + middle)
        algorithm.visit_home(with_slots=False)
        assert state_bytes(algorithm.state) == 4 * (2 * (ends + middle) + ends)
        algorithm.leave_home()
        assert state_bytes(algorithm.state) == 2 * 4 * (ends + middle)


def test_the_ranks_draw_the_blocks_of_one_model(world):
    """Initial weights do not depend on the number of ranks."""
    model = MultiLayerPerceptron(INPUTS, [11, 7], OUTPUTS)
    algorithm = build(world, model, rule(), SEED)
    for spec in model.specs:
        blocks = world.allgather(algorithm.state[spec.key].place("home").numpy())
        alone = model.initial_rows(spec, SEED, (0, spec.rows))
        assert np.array_equal(np.concatenate(blocks), alone)


def test_more_outputs_than_ranks_are_not_needed(world):
    """A rank may have no row of a narrow output layer at home."""
    model = MultiLayerPerceptron(INPUTS, [9], 2)
    algorithm = build(world, model, rule(), SEED)
    for index in range(3):
        algorithm.begin_round(index)
        features, labels = batch(world.Get_rank(), index)
        algorithm.step(features, labels % 2, 0.1, index)
    whole = full(world, algorithm, model.specs)
    assert whole["out.weight"].shape == (2, 9)
    assert torch.isfinite(whole["out.weight"]).all()

"""The central test: N ranks give, to the last bit, what one process with the whole model gives."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ist_hpc.exchange.held_bytes import trained_bytes
from ist_hpc.models.perceptrons.mlp import MultiLayerPerceptron
from ist_hpc.models.perceptrons.sampled_labels import Sampling
from tests.helpers.oracle import Oracle
from tests.mpi.against_oracle import RULES, SEED, STEPS, assert_equal, follow_averages, rounds
from tests.mpi.helpers import INPUTS, OUTPUTS, batch, build, full, rule, sparse_batch

ROUNDS = 7
SPARSE_RULES = RULES | {
    "adagrad, carried": rule(kind="adagrad"),
    "rowwise adagrad, carried": rule(kind="rowwise_adagrad"),
    "rowwise adagrad, reset": rule(kind="rowwise_adagrad", state="reset"),
}


@pytest.mark.parametrize("hidden", [[9], [11, 7], [6, 13, 10]], ids=str)
@pytest.mark.parametrize("config", RULES.values(), ids=RULES.keys())
def test_ranks_equal_one_process_that_trains_the_subnets_in_turn(world, hidden, config):
    model = MultiLayerPerceptron(INPUTS, hidden, OUTPUTS)
    algorithm = build(world, model, config, SEED)
    oracle = Oracle(model, world.Get_size(), SEED, config)
    for index in rounds(world, algorithm, oracle, config.lr, ROUNDS):
        if index in (2, 3, ROUNDS - 1):  # visits home in between must not matter
            whole = full(world, algorithm, (*model.specs, *algorithm.slot_specs))
    assert_equal(whole, oracle, algorithm)


@pytest.mark.parametrize(
    ("hidden", "config"),
    [([11, 7], rule) for rule in SPARSE_RULES.values()]
    + [([9], SPARSE_RULES["rowwise adagrad, carried"])],
    ids=[*SPARSE_RULES, "one layer"],
)
def test_with_sparse_rows_and_sets_of_labels_too(world, hidden, config):
    """Lazy updates: a feature that does not occur keeps its weights, momentum and moments."""
    options = {"output_norm": False, "loss": "softmax", "label_block": Oracle.BLOCK}
    model = MultiLayerPerceptron(INPUTS, hidden, OUTPUTS, sparse=True, **options)
    algorithm = build(world, model, config, SEED)
    oracle = Oracle(model, world.Get_size(), SEED, config)
    for index in rounds(world, algorithm, oracle, config.lr, ROUNDS, sparse_batch):
        if index in (2, ROUNDS - 1):
            whole = full(world, algorithm, (*model.specs, *algorithm.slot_specs))
    assert_equal(whole, oracle, algorithm)


SAMPLED_RULES = SPARSE_RULES | {
    "momentum and decay, carried": rule(momentum=0.9, weight_decay=0.01),
}


@pytest.mark.parametrize("config", SAMPLED_RULES.values(), ids=SAMPLED_RULES.keys())
def test_with_sampled_labels_too(world, config):
    """Rows of the output weights come when asked for, and go back; other labels do not change."""
    outputs, density = 60, 0.02
    sampling = Sampling(outputs, 3, torch.full((outputs,), density))
    options = {"output_norm": False, "loss": "sampled_softmax", "sampling": sampling}
    model = MultiLayerPerceptron(INPUTS, [11, 9], outputs, sparse=True, dropout=0.25, **options)
    algorithm = build(world, model, config, SEED)
    oracle = Oracle(model, world.Get_size(), SEED, config)
    oracle.sampling, oracle.dropout = sampling, 0.25
    draw = partial(sparse_batch, outputs=outputs, density=density)
    for index in rounds(world, algorithm, oracle, config.lr, ROUNDS, draw):
        if world.Get_size() > 1:
            held = algorithm.placement.demands["labels"].rows
            assert STEPS <= len(held) < outputs
        if index in (2, 3, ROUNDS - 1):
            whole = full(world, algorithm, (*model.specs, *algorithm.slot_specs))
    assert_equal(whole, oracle, algorithm)


def test_a_round_that_is_given_up_leaves_no_row_that_was_asked_for(world):
    """The run is as one without the round; what was kept to undo it is what was trained."""
    outputs, density = 60, 0.02
    sampling = Sampling(outputs, 3, torch.full((outputs,), density))
    options = {"output_norm": False, "loss": "sampled_softmax", "sampling": sampling}
    model = MultiLayerPerceptron(INPUTS, [11], outputs, sparse=True, **options)
    config, wholes = SAMPLED_RULES["rowwise adagrad, carried"], []
    for given_up in ([1], []):
        algorithm = build(world, model, config, SEED)
        specs = (*model.specs, *algorithm.slot_specs)
        for index in (0, *given_up, 2, 3):
            steps = range(STEPS * index, STEPS * (index + 1))
            drawn = [
                sparse_batch(world.Get_rank(), step, 8 if index else 3, outputs, density)
                for step in steps
            ]
            algorithm.begin_round(index, drawn, steps[0])
            algorithm.keep_round()
            kept = sum(tensor.nbytes for tensor in algorithm._kept)
            assert kept == trained_bytes(specs, algorithm.placement, world.Get_rank())
            for step, batch_of_step in zip(steps, drawn, strict=True):
                algorithm.step(*batch_of_step, config.lr, step)
            if index in given_up:
                algorithm.undo_round()
            else:
                algorithm.forget_kept()
                algorithm.end_round()
        wholes.append(full(world, algorithm, specs))
    for key, tensor in wholes[0].items():
        assert torch.equal(tensor, wholes[1][key]), key


def test_middle_layers_are_idle_in_part(world):
    """The case the Adam test is about occurs: elements of one subnet with different counts."""
    model = MultiLayerPerceptron(INPUTS, [11, 7], OUTPUTS)
    algorithm = build(world, model, RULES["adam, carried"], SEED)
    for index in range(ROUNDS):
        algorithm.begin_round(index)
        algorithm.step(*batch(world.Get_rank(), index), 0.01, index)
    updates = full(world, algorithm, algorithm.slot_specs)["updates/fc2.weight"]
    counts = set(updates.unique().tolist())
    assert counts == {ROUNDS} if world.Get_size() == 1 else len(counts) > 1
    assert updates.sum() == sum(_trained_elements(world.Get_size(), i) for i in range(ROUNDS))


def _trained_elements(ranks: int, index: int) -> int:
    from ist_hpc.exchange.placement import Axis, deal

    rows, columns = (
        deal(a, Axis(n), ranks, SEED, index).counts for a, n in (("hidden2", 7), ("hidden1", 11))
    )
    return int((rows * columns).sum())


@pytest.mark.parametrize(
    "config", [RULES["momentum, carried"], RULES["adam, reset"]], ids=["carry", "reset"]
)
def test_shared_bias_is_averaged_and_the_rest_equals_the_oracle(world, averages, config):
    """Averages within 1e-6; given the same averages, dealt parameters to the last bit."""
    model = MultiLayerPerceptron(INPUTS, [9, 7], OUTPUTS, output_norm=False, output_bias=True)
    algorithm = build(world, model, config, SEED, averages=averages)
    oracle = Oracle(model, world.Get_size(), SEED, config)
    for _ in rounds(world, algorithm, oracle, config.lr, ROUNDS):
        follow_averages(algorithm, oracle)
    assert algorithm.shared["out.bias"].abs().max() > 1e-3
    whole = full(world, algorithm, model.specs)
    for spec in model.specs:
        assert torch.equal(whole[spec.key], oracle.whole[spec.key].values), spec.key


@pytest.mark.parametrize("name", ["sgd", "momentum, carried", "decay", "adam, carried"])
@pytest.mark.parametrize("hidden", [[9], [33, 21]], ids=str)
def test_one_rank_equals_a_plain_pytorch_loop(world, name, hidden):
    from mpi4py import MPI

    rules = RULES | {"decay": rule(momentum=0.9, weight_decay=0.02)}
    config, model = rules[name], MultiLayerPerceptron(INPUTS, hidden, OUTPUTS)
    algorithm = build(MPI.COMM_SELF, model, config, SEED)
    for index in range(ROUNDS):
        algorithm.begin_round(index)
        for i in range(STEPS):
            algorithm.step(*batch(0, STEPS * index + i), config.lr, STEPS * index + i)
    whole = full(MPI.COMM_SELF, algorithm, model.specs)

    # The loop. The output layer is a product with a matrix of [hidden, classes], as it is stored
    # (a neuron is a row): nn.Linear's [classes, hidden] asks the BLAS for the same sums in another
    # order, which in networks as small as these differs in the last bit.
    start = {s.key: torch.from_numpy(model.initial_rows(s, SEED, (0, s.rows))) for s in model.specs}
    layers, width = [], INPUTS
    for size in hidden:
        layers += [nn.Linear(width, size, bias=False), nn.BatchNorm1d(size), nn.ReLU()]
        width = size
    body, norm = nn.Sequential(*layers), nn.BatchNorm1d(OUTPUTS, affine=False)
    head = nn.Parameter(start.pop("out.weight").t().contiguous())
    for parameter, value in zip(body.parameters(), start.values(), strict=True):
        parameter.data.copy_(value)
    weights = [*body.parameters(), head]
    if config.kind == "adam":
        torch_rule = torch.optim.Adam(weights, config.lr)
    else:
        decay = config.weight_decay
        torch_rule = torch.optim.SGD(
            weights, config.lr, momentum=config.momentum, weight_decay=decay
        )
    for step in range(ROUNDS * STEPS):
        features, labels = batch(0, step)
        torch_rule.zero_grad()
        F.cross_entropy(norm(body(features) @ head), labels).backward()
        torch_rule.step()

    assert torch.equal(whole.pop("out.weight"), head.data.t())
    for (key, value), parameter in zip(whole.items(), body.parameters(), strict=True):
        assert torch.equal(value, parameter.data), key

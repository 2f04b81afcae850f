"""Data parallel training, local SGD and DDP against plain loops of one process."""

import numpy as np
import pytest
import torch

from ist_hpc.common.sizes import allreduce_bytes
from ist_hpc.exchange.tensors import Held
from ist_hpc.models.convolutional.vgg import VGG11
from ist_hpc.models.perceptrons.mlp import MultiLayerPerceptron
from ist_hpc.models.shapes import SharedSpec
from ist_hpc.runtime.meters import Meter
from ist_hpc.training import averaging
from tests.helpers.pretended_gpu import GPU, PretendedGpu
from tests.mpi.helpers import INPUTS, OUTPUTS, batch, build, full, rule, same_bits, sparse_batch
from tests.mpi.replica_runs import (
    RULES,
    SEED,
    SPARSE,
    STEPS,
    Plain,
    algorithm_of,
    everything,
    images,
    on_mean_gradients,
    perceptron,
    residual,
    started,
    train,
)


class Counting(MultiLayerPerceptron):
    """A perceptron with a tensor that is shared, changed by every step, and not trained."""

    def __init__(self, *widths):
        super().__init__(*widths, output_norm=False, output_bias=True)
        self.shared = (*self.shared, SharedSpec("seen", (2,), trained=False))

    def loss(self, weights, features, labels, step):
        weights["seen"].add_(features.detach().sum())
        return super().loss(weights, features, labels, step)

    def loss_and_gradients(self, weights, features, labels, step):
        weights["seen"].add_(features.detach().sum())
        trained = {key: weight for key, weight in weights.items() if key != "seen"}
        return super().loss_and_gradients(trained, features, labels, step)


@pytest.mark.parametrize("kind", ["data_parallel", "ddp"])
@pytest.mark.parametrize("config", RULES.values(), ids=RULES.keys())
def test_equals_one_process_that_averages_gradients(world, averages, kind, config):
    model = perceptron()
    algorithm = started(world, averages, kind, model, config)
    train(world, algorithm, config, rounds=2)
    found = everything(world, algorithm)
    for key, expected in on_mean_gradients(world, model, config, rounds=2).items():
        torch.testing.assert_close(found[key], expected.detach(), atol=1e-6, rtol=0)
    moved = found["fc2.weight"] - Plain(model, config).weights["fc2.weight"].detach()
    assert moved.abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["data_parallel", "ddp"])
@pytest.mark.parametrize(
    ("model", "running"),
    [
        (VGG11([6], OUTPUTS, channels=[4] * 8), "conv1_norm.running_var"),
        (residual(), "section1.0.norm1.running_var"),
    ],
    ids=["vgg11", "resnet"],
)
def test_images_and_shared_convolutions_too(world, averages, kind, model, running):
    algorithm = started(world, averages, kind, model, rule(lr=0.01))
    train(world, algorithm, rule(lr=0.01), 1, images)
    found = everything(world, algorithm)
    expected = on_mean_gradients(world, model, rule(lr=0.01), 1, images)
    for spec in (*model.specs, *(spec for spec in model.shared if spec.trained)):
        torch.testing.assert_close(found[spec.key], expected[spec.key].detach(), atol=1e-5, rtol=0)
    assert (found[running] != 1).all()


def test_data_parallel_on_sparse_rows_too(world, averages):
    model = MultiLayerPerceptron(INPUTS, [9, 7], OUTPUTS, **SPARSE)
    algorithm = started(world, averages, "data_parallel", model, rule())
    train(world, algorithm, rule(), 2, sparse_batch)
    found = everything(world, algorithm)
    for key, expected in on_mean_gradients(world, model, rule(), 2, sparse_batch).items():
        torch.testing.assert_close(found[key], expected.detach(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("averages", ["Horovod"], indirect=True)
@pytest.mark.parametrize("draw", [batch, sparse_batch])
def test_half_precision_is_near_and_takes_half_the_bytes(world, averages, draw):
    options = {} if draw is batch else SPARSE
    model, config = MultiLayerPerceptron(INPUTS, [9], OUTPUTS, **options), RULES["momentum"]
    found, received = [], []
    for compression in ("none", "fp16"):
        algorithm = started(
            world, averages, "data_parallel", model, config, compression=compression
        )
        algorithm.meter = Meter()
        train(world, algorithm, config, 1, draw)
        received.append(algorithm.meter.read(world).bytes_averaged)
        found.append(everything(world, algorithm))
    ranks, elements = world.Get_size(), sum(spec.rows * spec.columns for spec in model.specs)
    assert received[0] == round(ranks * STEPS * allreduce_bytes(elements, ranks))
    assert received[1] == received[0] // 2
    exact, near = (one["fc1.weight"] for one in found)
    torch.testing.assert_close(near, exact, atol=2e-4, rtol=0)
    assert torch.equal(near, exact) == (ranks == 1)


@pytest.mark.parametrize(
    ("model", "draw", "config"),
    [
        *((perceptron(), batch, config) for config in RULES.values()),
        (residual(), images, RULES["momentum"]),
    ],
    ids=[*RULES, "resnet, momentum"],
)
def test_local_sgd_equals_copies_that_are_averaged(world, averages, model, draw, config):
    """Averages within 1e-6; given the same averages, the next ones."""
    rank, ranks = world.Get_rank(), world.Get_size()
    algorithm = started(world, averages, "local_sgd", model, config)
    copies = [Plain(model, config) for _ in range(ranks)]
    for index in range(3):
        algorithm.begin_round(index)
        for copy in copies if config.state == "reset" else ():
            copy.begin()
        for step in range(STEPS * index, STEPS * (index + 1)):
            algorithm.step(*draw(rank, step), config.lr, step)
            for other, copy in enumerate(copies):
                copy.step(copy.gradients(*draw(other, step)))
        # before they are averaged: this rank's own copy, to the bit
        for spec in model.specs:
            own = algorithm._weights[spec.key]
            own = own.t().contiguous() if spec.transposed else own
            assert same_bits(own, copies[rank].weights[spec.key].detach()), spec.key
        algorithm.end_round()
        found = everything(world, algorithm)
        parts = [copy.weights | copy.slots() for copy in copies]
        for key, averaged in found.items():
            if key.startswith("updates/"):
                assert (averaged == STEPS * (index + 1)).all()
                continue
            own = [part[key].detach() for part in parts]
            torch.testing.assert_close(averaged, sum(own) / ranks, atol=1e-6, rtol=0)
            for tensor in own:
                tensor.copy_(averaged)
    assert any("/" in key for key in found) == (config.state == "carry")


def test_more_elements_than_mpi_counts_go_in_several_groups(world, averages, monkeypatch):
    model, found = perceptron(), []
    for most in (1 << 30, 50):  # of 13 x 9, 9 x 7 and 7 x 5 weights
        monkeypatch.setattr(averaging, "_MOST_ELEMENTS", most)
        algorithm = started(world, averages, "local_sgd", model, rule())
        train(world, algorithm, rule(), rounds=1)
        found.append(everything(world, algorithm))
    for key, expected in found[0].items():
        torch.testing.assert_close(found[1][key], expected, atol=1e-6, rtol=0)


def test_the_warm_up_is_data_parallel(world, averages):
    config, model, found = RULES["adam"], Counting(INPUTS, [9, 7], OUTPUTS), []
    warm = started(world, averages, "local_sgd", model, config, warmup=2 * STEPS)
    parallel = started(world, averages, "data_parallel", model, config)
    for first, rounds in ((0, 2), (2, 1)):
        for algorithm in (warm, parallel):
            train(world, algorithm, config, rounds, first=first)
        found.append([everything(world, algorithm) for algorithm in (warm, parallel)])
    (same, same_too), (local, averaged) = found
    assert all(same_bits(same[key], same_too[key]) for key in same)
    differ = not torch.equal(local["fc1.weight"], averaged["fc1.weight"])
    assert differ == (world.Get_size() > 1)


@pytest.mark.parametrize("kind", ["data_parallel", "local_sgd", "ddp"])
def test_running_statistics_are_averaged_each_round(world, averages, kind):
    model = Counting(INPUTS, [9], OUTPUTS)
    algorithm = started(world, averages, kind, model, rule())
    train(world, algorithm, rule(), rounds=2)
    sums = [
        sum(float(batch(rank, step)[0].sum()) for step in range(2 * STEPS))
        for rank in range(world.Get_size())
    ]
    mean = everything(world, algorithm)["seen"]
    torch.testing.assert_close(mean, torch.full((2,), np.mean(sums)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["data_parallel", "local_sgd", "ddp"])
@pytest.mark.parametrize("config", [RULES["momentum"], RULES["adam"]], ids=["momentum", "adam"])
def test_goes_on_from_home_blocks_as_if_never_stopped(world, averages, kind, config):
    model = perceptron()
    whole, before = (started(world, averages, kind, model, config) for _ in range(2))
    train(world, whole, config, rounds=3)
    train(world, before, config, rounds=2)
    before.visit_home(with_slots=True)
    blocks = {key: Held(home=held.place("home").clone()) for key, held in before.state.items()}
    common, slots = (
        {key: tensor.detach().clone() for key, tensor in tensors.items()}
        for tensors in (before.shared, before.shared_slots)
    )
    after = algorithm_of(world, averages, kind, model, config)
    after.start_from(blocks, common, slots)
    train(world, after, config, rounds=1, first=2)
    expected, found = everything(world, whole), everything(world, after)
    assert expected.keys() == found.keys()
    for key in expected:
        # Gradients are summed in an order that follows from what arrives together.
        if kind == "local_sgd" or world.Get_size() < 3:
            assert same_bits(expected[key], found[key]), key
        torch.testing.assert_close(expected[key], found[key], atol=1e-6, rtol=0)


def test_counts_of_updates_that_dealt_subnets_left_are_kept(world, averages):
    """Local SGD goes on from independent subnets, whose middle layers were idle in part."""
    model, config = MultiLayerPerceptron(INPUTS, [9, 7], OUTPUTS), RULES["adam"]
    dealt = build(world, model, config, SEED)
    train(world, dealt, config, rounds=2)
    expected = full(world, dealt, (*model.specs, *dealt.slot_specs))
    dealt.visit_home(with_slots=True)
    algorithm = algorithm_of(world, averages, "local_sgd", model, config)
    algorithm.start_from(dict(dealt.state), {}, {})
    found = everything(world, algorithm)
    assert all(same_bits(expected[key], found[key]) for key in expected)
    train(world, algorithm, config, rounds=1, first=2)
    counts = everything(world, algorithm)["updates/fc2.weight"]
    assert torch.equal(counts, expected["updates/fc2.weight"] + STEPS)
    assert (counts.min() < counts.max()) == (world.Get_size() > 1)


@pytest.mark.parametrize("kind", ["data_parallel", "local_sgd", "ddp"])
@pytest.mark.parametrize("config", RULES.values(), ids=RULES.keys())
def test_one_rank_is_one_rank_of_independent_subnets(world, averages, kind, config):
    if world.Get_size() > 1:
        return
    cases = [(perceptron(), batch)]
    if kind != "ddp":
        cases.append((MultiLayerPerceptron(INPUTS, [9, 7], OUTPUTS, **SPARSE), sparse_batch))
    for model, draw in cases:
        algorithm = started(world, averages, kind, model, config, warmup=4)
        subnets = build(world, model, config, SEED, averages=averages)
        found = []
        for one in (algorithm, subnets):
            train(world, one, config, 3, draw)
            found.append(everything(world, one) if one is algorithm else None)
        expected = full(world, subnets, (*model.specs, *subnets.slot_specs))
        expected |= subnets.shared | subnets.shared_slots
        assert expected.keys() == found[0].keys()
        assert all(same_bits(found[0][key], expected[key]) for key in expected)


@pytest.mark.parametrize("kind", ["data_parallel", "local_sgd"])
def test_on_a_gpu_the_same_as_on_the_cpu(world, averages, kind):
    """Gradients and weights pass through the CPU: to the bit, where the order of sums is fixed.

    Horovod puts gradients together as they come in time, and from three ranks on the order of a
    sum depends on where in the buffer it is; in half precision that is too much to compare.
    """
    model, config, rank = perceptron(), RULES["momentum"], world.Get_rank()
    exact = world.Get_size() < 3
    options = {"warmup": STEPS}
    if kind == "data_parallel":
        half = exact and averages.by == "Horovod"
        options = {"compression": "fp16" if half else "none"}
    on_cpu = started(world, averages, kind, model, config, **options)
    train(world, on_cpu, config, rounds=2)
    expected = everything(world, on_cpu)
    with PretendedGpu():
        on_gpu = started(world, averages, kind, model, config, device=GPU, **options)
        train(
            world,
            on_gpu,
            config,
            rounds=2,
            draw=lambda rank, step: tuple(part.to(GPU) for part in batch(rank, step)),
        )
        on_gpu.visit_home(with_slots=True)
        blocks = {key: held.place("home").cpu() for key, held in on_gpu.state.items()}
    for spec in (*model.specs, *on_cpu.slot_specs):
        first, last = spec.home_rows(rank, world.Get_size())
        wanted = expected[spec.key][first:last].contiguous()
        if exact:
            assert same_bits(blocks[spec.key], wanted)
        torch.testing.assert_close(blocks[spec.key], wanted, atol=1e-6, rtol=0)

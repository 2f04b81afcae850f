"""Residual networks over the ranks: the full network; test_image_networks has the oracle."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ist_hpc.data.sparse_rows import to_device
from ist_hpc.exchange.exchanger import Exchanger
from ist_hpc.exchange.staging import InPlace, Staging, ThroughHost
from ist_hpc.models import optimizer
from ist_hpc.models.convolutional.resnet import ResNet
from ist_hpc.runtime.devices import CPU
from ist_hpc.training.algorithms.ist import IndependentSubnets
from ist_hpc.training.evaluation.full_network import HomeNetwork
from tests.helpers.pretended_gpu import GPU, PretendedGpu
from tests.mpi.against_oracle import RULES, SEED
from tests.mpi.helpers import build, full
from tests.mpi.image_networks import SECTIONS, images, resnet


def plain(model: ResNet, weights: dict[str, Tensor], rows: Tensor, scale: float, means=None):
    """The full network as anybody would write it: logits, and the inputs of its dealt norms.

    Norms have the statistics of `rows` where `means` (mean, variance by norm) is not given, but
    for those with running ones.
    """
    entered: dict[str, Tensor] = {}

    def norm(name: str, values: Tensor, key: str) -> Tensor:
        at = slice(None) if name == key else int(key.rpartition("@")[2])
        scale, shift = weights[f"{name}.weight"][at], weights[f"{name}.bias"][at]
        if f"{name}.running_mean" in weights:
            running = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
            return F.relu(F.batch_norm(values, *running, scale, shift))
        entered[key] = values
        if means is None:
            return F.relu(F.batch_norm(values, None, None, scale, shift, True))
        return F.relu(F.batch_norm(values, *means[key], scale, shift))

    def block(name: str, values: Tensor, stride: int, at: int | None = None) -> Tensor:
        suffix = "" if at is None else f"@{at}"
        part = slice(None) if at is None else at
        entering = norm(f"{name}.norm1", values, f"{name}.norm1{suffix}")
        branch = F.conv2d(entering, weights[f"{name}.conv1.weight"][part], None, stride, 1)
        branch = norm(f"{name}.norm2", branch, f"{name}.norm2{suffix}")
        branch = F.conv2d(branch, weights[f"{name}.conv2.weight"][part], padding=1)
        if f"{name}.shortcut.weight" in weights:
            values = F.conv2d(entering, weights[f"{name}.shortcut.weight"], stride=stride)
        return values + branch * (1 if at is None else scale)

    values = F.conv2d(rows.view(-1, 3, 32, 32), weights["stem.weight"], padding=1)
    for section, count in enumerate(SECTIONS, start=1):
        for number in range(1 if section == 3 else count):
            stride = 2 if section > 1 and not number else 1
            values = block(f"section{section}.{number}", values, stride)
        for at in range(count - 1 if section == 3 else 0):
            values = block("blocks", values, 1, at)
    values = norm("norm", values, "norm").mean(dim=(2, 3))
    return F.linear(values, weights["out.weight"], weights["out.bias"]), entered


@pytest.mark.parametrize("rows", [1, 70])
def test_the_full_network_is_evaluated_as_anybody_would(world, averages, rows):
    """Of fewer rows than ranks, and of more than go through at a time.

    Three of the five dealt blocks a rank are more than half: the full network has 3/5 of a branch.
    """
    model = resnet(least=3, subnets=2)
    algorithm = build(world, model, RULES["momentum, carried"], SEED, averages=averages)
    for index in range(2):
        algorithm.begin_round(index)
        for step in range(3):
            algorithm.step(*images(world.Get_rank(), 3 * index + step), 0.05, 3 * index + step)
        algorithm.end_round()
    algorithm.visit_home(with_slots=False)
    own = {spec.key: algorithm.state[spec.key].place("home") for spec in model.specs}
    found = HomeNetwork(world, model, own | algorithm.shared)
    sample = images(0, 77, rows=90)[0]
    found.calibrate(sample)
    tested = images(0, 78, rows=rows)[0]
    logits = found.outputs(tested)
    algorithm.leave_home()

    weights = full(world, algorithm, model.specs) | algorithm.shared
    with torch.no_grad():
        _, entered = plain(model, weights, sample, scale=3 / 5)
        means = {
            key: (values.mean((0, 2, 3)), values.var((0, 2, 3), correction=0))
            for key, values in entered.items()
        }
        expected, _ = plain(model, weights, tested, 3 / 5, means)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert len(set(world.allgather(logits.numpy().tobytes()))) == 1


def test_on_a_gpu_it_trains_and_is_evaluated_as_on_the_cpu(world, averages):
    """On a pretended one; shared blocks are settled through its staging, rows relayed."""
    config, sample = RULES["momentum, carried"], images(0, 78, rows=5)[0]

    def found(staging: Staging) -> Tensor:
        device, model = staging.device, resnet(least=3, subnets=2)
        algorithm = IndependentSubnets(
            world,
            model,
            optimizer.build(config),
            Exchanger(world, 1.0, staging),
            SEED,
            True,
            averages,
        )
        algorithm.start_new()
        for index in range(2):
            algorithm.begin_round(index)
            rows = (to_device(part, device) for part in images(world.Get_rank(), index))
            algorithm.step(*rows, 0.05, index)
            algorithm.end_round()
        algorithm.visit_home(with_slots=False)
        own = {spec.key: algorithm.state[spec.key].place("home") for spec in model.specs}
        full_network = HomeNetwork(world, model, own | algorithm.shared)
        full_network.calibrate(images(0, 77, rows=20)[0])
        return full_network.outputs(sample)

    direct = found(InPlace(CPU))
    with PretendedGpu() as gpu:
        staged = found(ThroughHost(GPU))
    assert gpu.waits
    torch.testing.assert_close(staged, direct, atol=1e-5, rtol=1e-5)

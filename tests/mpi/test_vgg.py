"""VGG11 over the ranks: the oracle, with the body shared and dealt out, and the full network."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ist_hpc.models.vgg import VGG11
from ist_hpc.training.full_network import HomeNetwork
from tests.helpers.oracle import Oracle
from tests.mpi.against_oracle import RULES, SEED, assert_equal, follow_averages, rounds
from tests.mpi.helpers import build, full

CHANNELS, HIDDEN, CLASSES = [5, 4, 6, 4, 7, 5, 4, 6], [9, 7], 5
BODIES = {"shared": {}, "dealt out": {"deal_channels": True}}
NARROW = {"deal_channels": True, "channels": [2, 1, 3, 2, 2, 1, 2, 2]}  # ranks without a channel


def images(rank: int, step: int, rows: int = 6) -> tuple[Tensor, Tensor]:
    """A batch that is a function of rank and step."""
    generator = torch.Generator().manual_seed(1000 * rank + step)
    features = torch.rand(rows, 3 * 32 * 32, generator=generator)
    return features, torch.randint(CLASSES, (rows,), generator=generator)


def network(**options) -> VGG11:
    return VGG11(HIDDEN, CLASSES, **{"channels": CHANNELS, **options})


@pytest.mark.parametrize("options", BODIES.values(), ids=BODIES.keys())
@pytest.mark.parametrize("config", RULES.values(), ids=RULES.keys())
def test_ranks_equal_one_process_that_trains_the_subnets_in_turn(world, averages, options, config):
    model = network(**options)
    algorithm = build(world, model, config, SEED, averages=averages)
    oracle = Oracle(model, world.Get_size(), SEED, config)
    for index in rounds(world, algorithm, oracle, config.lr, 4, images):
        follow_averages(algorithm, oracle)
        if index in (1, 3):  # visits home in between must not matter
            whole = full(world, algorithm, (*model.specs, *algorithm.slot_specs))
    assert_equal(whole, oracle, algorithm)
    start = {spec.key: model.initial_shared(spec, SEED) for spec in model.shared}
    unchanged = [k for k, v in algorithm.shared.items() if np.array_equal(v.numpy(), start[k])]
    assert not unchanged
    for tensor in algorithm.shared.values():
        assert len(set(world.allgather(tensor.numpy().tobytes()))) == 1


def test_a_frozen_body_stays_as_it_is_and_the_rest_learns(world, averages):
    config, model = RULES["momentum, carried"], network(freeze_body=True)
    algorithm = build(world, model, config, SEED, averages=averages)
    before = {key: tensor.clone() for key, tensor in algorithm.shared.items()}
    start = full(world, algorithm, model.specs)
    for index in range(2):
        algorithm.begin_round(index)
        for step in range(3):
            algorithm.step(*images(world.Get_rank(), 3 * index + step), 0.05, 3 * index + step)
        algorithm.end_round()
    assert all(torch.equal(algorithm.shared[key], tensor) for key, tensor in before.items())
    assert not algorithm.shared_slots
    whole = full(world, algorithm, model.specs)
    assert all(not torch.equal(whole[spec.key], start[spec.key]) for spec in model.specs)


@pytest.mark.parametrize("options", [*BODIES.values(), NARROW], ids=[*BODIES, "narrow"])
@pytest.mark.parametrize("rows", [70, 3], ids=["more rows than go at once", "few rows"])
def test_the_full_network_is_the_exported_module(world, options, rows):
    """Calibrated layer by layer, as a module in training mode does; a shared body is not."""
    model = network(**options)
    weights, own = _random_weights(model), {}
    for spec in model.specs:
        first, last = spec.home_rows(world.Get_rank(), world.Get_size())
        own[spec.key] = weights[spec.key][first:last].clone()
    home = HomeNetwork(world, model, weights | own)
    calibration, (features, _) = images(9, 9, rows=50)[0], images(8, 8, rows)
    home.calibrate(calibration)
    outputs = home.outputs(features)

    names: dict[str, object] = {}
    exec(model.module_source(), names)  # what users run after `show --export`
    module = names["model"]
    assert isinstance(module, nn.Sequential)
    shapes = {entry.name: entry.shape for entry in model.export_entries()}
    assert {key: tuple(value.shape) for key, value in module.state_dict().items()} == shapes
    module.load_state_dict(weights, strict=False)
    norms = (nn.BatchNorm1d, nn.BatchNorm2d) if options else nn.BatchNorm1d
    module.eval()
    with torch.no_grad():
        values = calibration
        for layer in module:
            if isinstance(layer, norms):
                across = [0, *range(2, values.dim())]
                layer.running_mean.copy_(values.mean(across))
                layer.running_var.copy_(values.var(across, correction=0))
            values = layer(values)
        torch.testing.assert_close(outputs, module(features), atol=2e-5, rtol=0)
    assert len(set(world.allgather(outputs.numpy().tobytes()))) == 1


def _random_weights(model: VGG11) -> dict[str, Tensor]:
    """Every tensor in whole, as after some training; no norm divides by next to nothing."""
    tensors = {}
    for number, spec in enumerate((*model.specs, *model.shared)):
        values = torch.randn(*spec.shape, generator=torch.Generator().manual_seed(number))
        if len(spec.shape) > 1:
            values *= (2 / math.prod(spec.shape[1:])) ** 0.5
        elif spec.key.endswith((".bias", "_mean")):
            values *= 0.2
        else:
            values = 1 + 0.4 * values.clamp(-1, 1)
        tensors[spec.key] = values
    return tensors

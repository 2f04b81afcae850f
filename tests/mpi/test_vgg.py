"""VGG11 over the ranks: a frozen body, the full network; test_image_networks has the oracle."""

import math

import pytest
import torch
from torch import Tensor, nn

from ist_hpc.models.convolutional.vgg import VGG11
from ist_hpc.training.evaluation.full_network import HomeNetwork
from tests.mpi.against_oracle import RULES, SEED
from tests.mpi.helpers import build, full
from tests.mpi.image_networks import BODIES, images, vgg11

NARROW = {"deal_channels": True, "channels": [2, 1, 3, 2, 2, 1, 2, 2]}  # ranks without a channel


def test_a_frozen_body_stays_as_it_is_and_the_rest_learns(world, averages):
    config, model = RULES["momentum, carried"], vgg11(freeze_body=True)
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
    model = vgg11(**options)
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

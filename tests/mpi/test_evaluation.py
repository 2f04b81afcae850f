"""The sharded full network against a plain one that holds everything."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ist_hpc.common.blocks import block_bounds
from ist_hpc.data.rows import CommonRows
from ist_hpc.data.shards import Dataset, DatasetWriter
from ist_hpc.models.norms import NORM_EPSILON
from ist_hpc.models.perceptrons.mlp import MultiLayerPerceptron
from ist_hpc.training.evaluation import full_network
from ist_hpc.training.evaluation.full_network import HomeNetwork
from ist_hpc.training.evaluation.metrics import ClassificationMetrics

INPUTS, SEED = 13, 5
MODELS = {
    "one layer": {"hidden": [9], "outputs": 5},
    "ranks without an output": {"hidden": [11, 7], "outputs": 3},
    "one output": {"hidden": [6], "outputs": 1},
    "three layers, wide": {"hidden": [33, 20, 41], "outputs": 10},
    "no output norm": {"hidden": [11, 7], "outputs": 5, "output_norm": False},
    "output bias": {"hidden": [8], "outputs": 3, "output_norm": False, "output_bias": True},
}


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def model(request) -> MultiLayerPerceptron:
    return MultiLayerPerceptron(INPUTS, **request.param)


@pytest.fixture(params=[1 << 23, 200], ids=["gathered at once", "gathered in pieces"])
def piece_bytes(request, monkeypatch):
    monkeypatch.setattr(full_network, "GATHER_BYTES", request.param)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def whole_weights(model: MultiLayerPerceptron) -> dict[str, Tensor]:
    """Every tensor in whole; scales and shifts as after some training."""
    tensors = {}
    for number, spec in enumerate((*model.specs, *model.shared)):
        values = random(*spec.shape, seed=number)
        tensors[spec.key] = values / spec.shape[1] ** 0.5 if len(spec.shape) > 1 else values
    return tensors


def sharded(world, model: MultiLayerPerceptron) -> HomeNetwork:
    weights = whole_weights(model)
    for spec in model.specs:
        start, stop = spec.home_rows(world.Get_rank(), world.Get_size())
        weights[spec.key] = weights[spec.key][start:stop].clone()
    return HomeNetwork(world, model, weights)


@torch.no_grad()
def plain(model: MultiLayerPerceptron, calibration: Tensor) -> nn.Sequential:
    """An ordinary network, whose running statistics are set layer by layer."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    weights = whole_weights(model)
    linear = [key for key, value in weights.items() if value.ndim == 2]
    for number, key in enumerate(linear, start=1):
        outputs, inputs = weights[key].shape
        last = key == linear[-1]
        layers[key.removesuffix(".weight")] = nn.Linear(
            inputs, outputs, bias="out.bias" in weights and last
        )
        if not last:
            layers[f"bn{number}"] = nn.BatchNorm1d(outputs, eps=NORM_EPSILON)
            layers[f"relu{number}"] = nn.ReLU()
        elif model.statistics[-1].key == "bn_out":
            layers["bn_out"] = nn.BatchNorm1d(outputs, eps=NORM_EPSILON, affine=False)
    network = nn.Sequential(layers).eval()
    missing, unexpected = network.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all("running" in key or "tracked" in key for key in missing)
    values = calibration
    for module in network:
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.copy_(values.mean(0))
            module.running_var.copy_(values.var(0, correction=0))
        values = module(values)
    return network


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_outputs_and_statistics_are_those_of_a_plain_network(world, model, piece_bytes):
    calibration, features = random(50, INPUTS, seed=100), random(31, INPUTS, seed=101)
    network, reference = sharded(world, model), plain(model, calibration)
    network.calibrate(calibration)
    for spec in model.statistics:
        bounds = block_bounds(spec.size, world.Get_size())
        own = slice(int(bounds[world.Get_rank()]), int(bounds[world.Get_rank() + 1]))
        norm = reference.get_submodule(spec.key)
        mean, variance = network.statistics[spec.key]
        close(mean, norm.running_mean[own])
        close(variance, norm.running_var[own])
    outputs = network.outputs(features)
    assert outputs.shape == (31, model.outputs)
    with torch.no_grad():
        close(outputs, reference(features))
    assert len(set(world.allgather(outputs.numpy().tobytes()))) == 1  # the same on all ranks


def test_statistics_of_a_checkpoint_are_used_as_they_are(world, model):
    network = sharded(world, model)
    network.calibrate(random(50, INPUTS, seed=100))
    restored = HomeNetwork(world, model, network.weights, network.statistics)
    features = random(9, INPUTS, seed=101)
    before = {key: (mean.clone(), var.clone()) for key, (mean, var) in network.statistics.items()}
    assert torch.equal(restored.outputs(features), network.outputs(features))
    for key, pair in before.items():
        assert all(torch.equal(a, b) for a, b in zip(pair, restored.statistics[key], strict=True))


def test_a_prediction_does_not_depend_on_what_else_is_in_its_batch(world, model, tmp_path):
    features = random(37, INPUTS, seed=102).numpy()
    labels = np.arange(37) % model.outputs
    with DatasetWriter(
        tmp_path / "rows",
        name="rows",
        feature_shape=(INPUTS,),
        classes=[str(label) for label in range(model.outputs)],
        shard_rows=8,
        made_by={"command": "test"},
    ) as writer:
        writer.append("test", features, labels)
    network = sharded(world, model)
    network.calibrate(random(50, INPUTS, seed=100))
    whole = network.outputs(torch.from_numpy(features))
    expected = {
        "accuracy": float((whole.argmax(1).numpy() == labels).mean()),
        "loss": float(F.cross_entropy(whole.double(), torch.from_numpy(labels))),
    }
    with Dataset.open(tmp_path / "rows") as dataset:
        rows = CommonRows(world, dataset, "test", "rows")
        for batch_rows in (1, 7, 36, 100):
            metrics = ClassificationMetrics()
            predicted = list(network.predict(rows, batch_rows, metrics))
            assert [first for first, _ in predicted] == list(range(0, 37, batch_rows))
            close(torch.cat([batch["logits"] for _, batch in predicted]), whole)
            result = network.evaluate(rows, batch_rows, ClassificationMetrics())
            assert result == metrics.result()
            assert result["accuracy"] == expected["accuracy"]
            assert result["loss"] == pytest.approx(expected["loss"], abs=1e-5)
    order = torch.from_numpy(np.random.default_rng(0).permutation(37))
    close(network.outputs(torch.from_numpy(features)[order]), whole[order])


@pytest.mark.parametrize("label_block", [3, 1000])
def test_the_best_labels_are_those_of_all_outputs(world, label_block):
    """Whatever the blocks, and where ranks have fewer labels than are asked for."""
    model = MultiLayerPerceptron(
        INPUTS, [11, 7], 9, output_norm=False, loss="softmax", label_block=label_block
    )
    network = sharded(world, model)
    network.calibrate(random(50, INPUTS, seed=100))
    features = random(21, INPUTS, seed=103)
    values, labels = network.top(features, 5)
    expected = network.outputs(features).topk(5, dim=1)
    close(values, expected.values)
    assert torch.equal(labels, expected.indices)
    assert len(set(world.allgather(labels.numpy().tobytes()))) == 1

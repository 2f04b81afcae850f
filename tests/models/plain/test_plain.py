"""The networks in plain PyTorch: they are what is printed, and what is trained."""

import ast
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ist_hpc.models import plain
from ist_hpc.models.base import Model
from ist_hpc.models.convolutional.resnet import ResNet
from ist_hpc.models.convolutional.vgg import VGG11
from ist_hpc.models.local_step import LocalStep
from ist_hpc.models.norms import NORM_EPSILON, NORM_MOMENTUM
from ist_hpc.models.perceptrons.mlp import MultiLayerPerceptron
from tests.helpers.image_runs import CLASSES, thin_weights

CHANNELS = [4, 4, 6, 5, 6, 5, 6, 7]
NETWORKS = {
    "perceptron": lambda: MultiLayerPerceptron(3072, [9, 8], CLASSES),
    "perceptron, bias": lambda: MultiLayerPerceptron(3072, [9], CLASSES, False, True),
    "vgg11": lambda: VGG11([9, 8], CLASSES, CHANNELS),
    "vgg11, dealt": lambda: VGG11([9, 8], CLASSES, CHANNELS, False, True, deal_channels=True),
    "vgg11, frozen": lambda: VGG11([9, 8], CLASSES, CHANNELS, freeze_body=True),
    "resnet": lambda: ResNet((1, 2, 6, 1), (4, 5, 6, 7), CLASSES, 3, 2),
}
SEQUENTIAL = [name for name in NETWORKS if name != "resnet"]


@pytest.mark.parametrize(
    "path", sorted(Path(plain.__path__[0]).glob("*.py")), ids=lambda path: path.stem
)
def test_nothing_but_pytorch_is_imported(path: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level
            imported.add(str(node.module))
    assert {name.partition(".")[0] for name in imported} - sys.stdlib_module_names <= {"torch"}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_printed_module_is_the_one_of_the_package(name: str) -> None:
    """Names, shapes and outputs, to the last bit."""
    model = NETWORKS[name]()
    names: dict[str, object] = {}
    exec(model.module_source(), names)  # what users run after `show --export`
    printed, own = names["model"], model.exported().module()
    assert isinstance(printed, nn.Module)
    state = {
        entry.name: torch.rand(entry.shape) if entry.source else torch.tensor(0)
        for entry in model.export_entries()
    }
    for module in (printed, own):
        assert list(module.state_dict()) == list(state)
        module.load_state_dict(state, strict=True)
        module.eval()
    rows = torch.rand(5, 3072)
    with torch.no_grad():
        outputs = own(rows)
        assert torch.equal(outputs, printed(rows))
    assert outputs.shape == (5, CLASSES)


@pytest.mark.parametrize("name", NETWORKS)
def test_each_tensor_of_a_checkpoint_is_exported_once(name: str) -> None:
    model = NETWORKS[name]()
    sources = [entry.source for entry in model.export_entries() if entry.source]
    expected = [("parameters", spec.key) for spec in model.specs]
    expected += [("parameters", spec.key) for spec in model.shared]
    for spec in model.statistics:
        expected += [("statistics", f"{spec.key}.{kind}") for kind in ("mean", "variance")]
    assert sorted(sources) == sorted(expected)


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_what_is_trained_at_one_rank_is_the_module_in_training_mode(name: str) -> None:
    """Loss, gradients and running statistics; the body of a frozen one is in evaluation mode."""
    model, labels = NETWORKS[name](), torch.arange(6) % CLASSES
    weights, rows = thin_weights(model, 1), torch.rand(6, 3072)
    module = _with(model, weights)
    loss, gradients = model.loss_and_gradients(weights, rows, labels, LocalStep())
    expected = F.cross_entropy(module(rows), labels)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    parameters = dict(module.named_parameters())
    assert gradients.keys() == {key for key, tensor in parameters.items() if tensor.requires_grad}
    for key, gradient in gradients.items():
        found = gradient.t() if key == "out.weight" else gradient
        torch.testing.assert_close(found, parameters[key].grad, atol=1e-5, rtol=1e-4)
    for key, tensor in module.named_buffers():
        if key in weights:
            torch.testing.assert_close(weights[key], tensor)


def _with(model: Model, weights: dict[str, Tensor]) -> nn.Module:
    """The module with a copy of these weights, whose output layer is stored the other way."""
    module = model.exported().module()
    state = {key: tensor.clone() for key, tensor in weights.items()}
    state["out.weight"] = state["out.weight"].t()
    module.load_state_dict(state, strict=False)
    frozen = {spec.key for spec in model.shared if not spec.changes}
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            assert (child.eps, child.momentum) == (NORM_EPSILON, NORM_MOMENTUM)
            child.train(f"{name}.weight" not in frozen)
        for key, parameter in child.named_parameters():
            parameter.requires_grad_(f"{name}.{key}" not in frozen)
    return module

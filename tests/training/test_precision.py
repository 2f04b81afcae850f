"""Local steps in bfloat16: near those in float32, with float32 weights, gradients and files."""

import json
from pathlib import Path

import h5py
import pytest
import torch
from torch import Tensor

from ist_hpc.common.errors import InputError
from ist_hpc.config import loading
from ist_hpc.models.convolutional.resnet import ResNet
from ist_hpc.models.convolutional.vgg import VGG11
from ist_hpc.models.gradients import ColumnGradient, RowGradient
from ist_hpc.models.local_step import LocalStep
from ist_hpc.models.perceptrons.mlp import MultiLayerPerceptron
from ist_hpc.runtime import precision
from tests.helpers.checkpoints import as_if_killed, same_tensors
from tests.helpers.image_runs import batch, thin_weights
from tests.helpers.launching import run_ranks
from tests.helpers.live_bytes import LiveBytes
from tests.helpers.small_runs import SMALL, command
from tests.mpi.helpers import batch as dense_batch
from tests.mpi.helpers import sparse_batch

pytestmark = pytest.mark.long

CPU = torch.device("cpu")
LABELS = {"output_norm": False, "label_block": 3, "sparse": True}


def dense(gradient: Tensor | RowGradient | ColumnGradient) -> Tensor:
    if isinstance(gradient, RowGradient):
        return gradient.values
    if isinstance(gradient, ColumnGradient):
        return torch.cat([values for _, values in gradient.blocks], 1)
    return gradient


def weights_of(model):
    """As a run begins with, of the whole model."""
    weights = {}
    for spec in model.specs:
        rows = torch.from_numpy(model.initial_rows(spec, 1, (0, spec.rows)))
        weights[spec.key] = rows.t().contiguous() if spec.transposed else rows
    for spec in model.shared:
        weights[spec.key] = torch.from_numpy(model.initial_shared(spec, 1))
    return weights


@pytest.mark.parametrize(
    ("model", "rows"),
    [
        (MultiLayerPerceptron(13, [9, 7], 5), dense_batch(0, 0, 64)),
        (MultiLayerPerceptron(13, [9, 7], 5, loss="softmax", **LABELS), sparse_batch(0, 0, 64)),
        (
            MultiLayerPerceptron(13, [9], 5, loss="bce", output_bias=True, **LABELS),
            sparse_batch(0, 0, 64),
        ),
        (ResNet((1, 1, 3, 1), (4, 5, 6, 7), 4), batch(16)),
        (VGG11([9, 8], 4, [4, 4, 6, 5, 6, 5, 6, 7]), batch(64)),
    ],
    ids=["mlp", "softmax of labels", "bce of labels", "resnet", "vgg11"],
)
def test_a_step_is_near_that_in_float32(model, rows):
    weights, found = weights_of(model), {}
    for name in ("float32", "bf16"):
        own = {key: weight.clone() for key, weight in weights.items()}
        with precision.computing(name, CPU):
            found[name] = model.loss_and_gradients(own, *rows, LocalStep())
    (loss, exact), (low_loss, low) = found.values()
    assert low_loss.dtype == torch.float32
    assert low_loss.item() == pytest.approx(loss.item(), rel=0.02)
    assert exact.keys() == low.keys()
    changed = 0
    for key, gradient in exact.items():
        values, low_values = dense(gradient), dense(low[key])
        assert low_values.dtype == torch.float32
        changed += not torch.equal(values, low_values)
    assert changed > len(exact) / 2, "products are in bfloat16"
    last = dense(exact["out.weight"])
    deep = isinstance(model, VGG11)  # what eleven layers of few channels round adds up
    assert (dense(low["out.weight"]) - last).norm() < (0.2 if deep else 0.05) * last.norm()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("loss", ["softmax", "bce"])
def test_many_labels_are_summed_in_float32(loss, bias):
    """10,000 labels: sums in bfloat16 would be wrong in their first digit."""
    options = {"output_norm": False, "output_bias": bias, "loss": loss, "label_block": 512}
    model = MultiLayerPerceptron(13, [16], 10_000, **options)
    rows = dense_batch(0, 0, 40)
    with precision.computing("bf16", CPU):
        low, _ = model.loss_and_gradients(weights_of(model), *rows, LocalStep())
    exact, _ = model.loss_and_gradients(weights_of(model), *rows, LocalStep())
    assert low.item() == pytest.approx(exact.item(), rel=2e-3)


@pytest.mark.parametrize(
    ("model", "rows"),
    [
        (MultiLayerPerceptron(300, [256, 256], 50), (torch.rand(64, 300), torch.arange(64) % 50)),
        (VGG11([128, 128], 4, [32, 64, *[128] * 2, *[256] * 4]), batch(64)),
    ],
    ids=["mlp", "vgg11"],
)
def test_memory_of_a_step_is_about_what_the_plan_says(model, rows):
    weights = thin_weights(model, 2)
    with LiveBytes() as live, precision.computing("bf16", CPU):
        model.loss_and_gradients(weights, *rows, LocalStep())
    fixed = {spec.key for spec in model.shared if not spec.trained}
    gradient = sum(4 * weight.numel() for key, weight in weights.items() if key not in fixed)
    casts = model.cast_bytes(2, 2)
    estimate = model.step_activations(64, 2, None, 2) + gradient + casts
    assert 0.7 < live.most / estimate < 1.3


def test_what_goes_with_what():
    with pytest.raises(InputError, match=r"`train\.precision: tf32` is of GPUs"):
        loading.parse(
            "",
            "nowhere",
            ["train.precision=tf32", "train.rounds=1", "data.path=x", "model.hidden=[4]"],
        )
    settings = [
        "train.precision=tf32",
        "device=cuda",
        "train.rounds=1",
        "data.path=x",
        "model.hidden=[4]",
    ]
    parsed = loading.parse("", "nowhere", settings)
    assert parsed.train.precision == "tf32"


@pytest.mark.parametrize(
    ("cpuinfo", "lacks"),
    [
        ("flags\t\t: avx2 avx512_bf16 sse\n", False),
        ("flags\t\t: avx2 amx_bf16\n", False),
        ("Features\t: fp asimd bf16\n", False),
        ("flags\t\t: avx2 avx512f\n", True),
        ("", False),
    ],
)
def test_a_cpu_without_instructions_for_it_is_told_of(monkeypatch, cpuinfo, lacks):
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: cpuinfo)
    assert precision.lacks_bf16("bf16", CPU) == lacks
    assert not precision.lacks_bf16("float32", CPU)
    assert not precision.lacks_bf16("bf16", torch.device("cuda"))


def test_tf32_is_on_only_if_asked_for():
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for name in ("tf32", "float32", "bf16"):
            precision.prepare(name)
            assert [switch.allow_tf32 for switch in switches] == [name == "tf32"] * 2
    finally:
        for switch, allowed in zip(switches, before, strict=True):
            switch.allow_tf32 = allowed


def test_a_run_learns_and_goes_on_to_the_last_bit(place):
    settings = [*SMALL, "train.rounds=60", "checkpoint.every_rounds=30"]
    run_ranks(2, command("exact", *settings), place)
    settings.append("train.precision=bf16")
    run_ranks(2, command("low", *settings), place)
    accuracy = {
        name: json.loads((place / f"runs/{name}/summary.json").read_text())["test"]["accuracy"]
        for name in ("exact", "low")
    }
    assert accuracy["low"] == pytest.approx(accuracy["exact"], abs=0.03)
    as_if_killed(place / "runs/low", place / "runs/parts", 30)
    run_ranks(2, command("parts", *settings, resume=True), place)
    last = "checkpoints/round-00000060"
    assert same_tensors(place / "runs/low" / last, place / "runs/parts" / last)
    assert not same_tensors(place / "runs/low" / last, place / "runs/exact" / last)
    with h5py.File(place / "runs/low" / last / "checkpoint.h5") as file:
        assert file["parameters/fc1.weight"].dtype == "f4"

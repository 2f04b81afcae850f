"""VGG11: its costs, what its configuration refuses, and runs on images, shared and dealt out."""

import json

import h5py
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ist_hpc.common.errors import InputError
from ist_hpc.config import loading
from ist_hpc.cost import counts, memory
from ist_hpc.models.vgg import VGG11
from tests.helpers import image_runs
from tests.helpers.checkpoints import as_if_killed
from tests.helpers.image_runs import (
    CLASSES,
    OneOf,
    assert_bytes_are_those_planned,
    assert_equal_runs,
    batch,
    export_differs,
    job_of,
    make_images,
    tensors,
    thin_weights,
)
from tests.helpers.launching import one_error_line, run_python
from tests.helpers.live_bytes import LiveBytes

CHANNELS = "[4,4,6,5,6,5,6,7]"
SETTINGS = [*image_runs.SETTINGS, "model.kind=vgg11"]
SETTINGS += [f"model.channels={CHANNELS}", "model.hidden=[9,8]"]


# Costs.


BODIES = [{}, {"deal_channels": True}, {"freeze_body": True}]


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("options", BODIES)
def test_operations_are_those_that_torch_counts(ranks, options):
    model = VGG11([40, 30], CLASSES, [8, 9, 10, 11, 12, 13, 14, 15], **options)
    with FlopCounterMode(display=False) as counter:
        model.loss_and_gradients(thin_weights(model, ranks), *batch(5), {})
    assert counts.step_flops(model.layers, 5, ranks) == counter.get_total_flops()


@pytest.mark.parametrize("options", BODIES)
def test_activations_of_a_step_are_about_those_that_are_held(options):
    model = VGG11([256, 256], CLASSES, **options)
    job = job_of(model, 2, batch_size=64)
    weights = thin_weights(model, 2)
    with LiveBytes() as live:
        model.loss_and_gradients(weights, *batch(64), {})
    fixed = {spec.key for spec in model.shared if not spec.changes}
    gradient = sum(4 * weight.numel() for key, weight in weights.items() if key not in fixed)
    estimate = memory.step_activations(job, 2) + gradient
    assert 0.75 < live.most / estimate < 1.25


def test_activations_of_a_shared_body_are_those_of_all_its_channels():
    """However many ranks: each has rows of its own, which it brings through the whole body."""
    model = VGG11([16], CLASSES)
    job = job_of(model, 4, calibration_rows=2, evaluation_rows=300)
    weights = {spec.key: torch.rand(spec.shape) for spec in model.shared}
    with torch.no_grad(), LiveBytes() as live:
        model._body.full(weights, {}, torch.rand(300, 3 * 32 * 32), OneOf(4), False)
    assert 0.9 < live.most / memory.full_activations(job) < 1.1


# The configuration.


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["model.kind=mlp"], "`model.channels` is of `model.kind: vgg11 or resnet`, not of mlp"),
        (["model.kind=mlp", "model.channels=[]", "model.deal_channels=true"], "deal_channels"),
        (["model.channels=[1,2,3]"], "8 convolutions, or none, got [1, 2, 3]"),
        (
            ["model.loss=bce", "model.output_norm=none"],
            "is of `model.kind: mlp`, not of vgg11",
        ),
        (["model.deal_channels=true", "model.body_from=a.h5"], "`model.body_from` is of conv"),
        (["model.deal_channels=true", "model.freeze_body=true"], "`model.freeze_body` is of conv"),
    ],
)
def test_keys_that_do_not_go_together(settings, said):
    with pytest.raises(InputError) as error:
        loading.parse("", "nowhere", [*SETTINGS, "train.rounds=1", *settings])
    assert said in str(error.value)


# Runs.


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Images whose class is the brightest corner, and a run on them by two ranks."""
    folder = tmp_path_factory.mktemp("vgg")
    make_images(folder / "images")
    train(folder, "shared", 4)
    return folder


def train(folder, name, rounds, *settings, **options):
    return image_runs.train(folder, name, rounds, *SETTINGS, *settings, **options)


def test_a_resumed_run_equals_an_uninterrupted_one(place):
    """With augmented images, averaged running statistics and momentum."""
    as_if_killed(place / "runs/shared", place / "runs/parts", 2)
    train(place, "parts", 4, resume=True)
    assert_equal_runs(place, "shared", "parts", 4)


def test_bytes_are_those_of_the_plan(place):
    assert_bytes_are_those_planned(place, "shared", 4, *SETTINGS)


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_exported_module_gives_the_logits_of_evaluate(place, tmp_path, ranks):
    assert export_differs(place, place / "runs/shared", tmp_path, ranks) < 2e-5


@pytest.mark.parametrize("source", ["run", "file"])
def test_convolutions_can_be_loaded_and_frozen(place, tmp_path, source):
    start = place / "runs/shared"
    body = {k: v for k, v in tensors(place, "shared", 4).items() if k.startswith("conv")}
    if source == "file":
        start = tmp_path / "body.h5"
        with h5py.File(start, "w") as file:
            for key, values in body.items():
                file[key] = values.astype(np.float64)
    settings = [f"model.body_from={start}", "model.freeze_body=true"]
    train(place, f"frozen-{source}", 2, *settings, "seed=9")
    found = tensors(place, f"frozen-{source}", 2)
    assert all(np.array_equal(found[key], values) for key, values in body.items())
    assert not any("conv" in key for key in tensors(place, f"frozen-{source}", 2, "optimizer"))
    if source == "file":
        return
    train(place, "frozen-run", 3, "seed=9", "model.freeze_body=false", ranks=1, resume=True)
    found = tensors(place, "frozen-run", 3)
    assert not any(np.array_equal(found[key], values) for key, values in body.items())
    slots = tensors(place, "frozen-run", 3, "optimizer")
    assert slots["momentum/conv1.weight"].any()


def test_dealt_channels_train_on_three_ranks_and_resume_on_two(place):
    """Each channel changes: it is trained by one rank or the other. So few learn nothing yet."""
    train(place, "dealt", 2, "model.deal_channels=true", ranks=3)
    train(place, "dealt", 4, "model.deal_channels=true", ranks=2, resume=True)
    before, whole = (tensors(place, "dealt", rounds) for rounds in (2, 4))
    assert whole["conv3.weight"].shape == (6, 4, 3, 3)
    assert all(np.isfinite(values).all() for values in whole.values())
    convolutions = [key for key, values in whole.items() if values.ndim == 4]
    assert len(convolutions) == 8
    for key in convolutions:
        changed = (whole[key] != before[key]).any(axis=(1, 2, 3))
        assert changed.all(), key
    summary = json.loads((place / "runs/dealt/summary.json").read_text())
    assert summary["bytes"]["averaged"] == 0  # nothing is shared


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["data.path=small"], "has rows of 3 x 16 x 64, the model takes images of 3 x 32 x 32"),
        (["model.freeze_body=true"], "would leave random convolutions as they are"),
        (["model.body_from=none.h5"], "no checkpoint at none.h5"),
        (["model.body_from=bad.h5"], "bad.h5: has no conv1.weight (4, 3, 3, 3)"),
        (["model.body_from=other.h5"], "conv1.weight is float64 (4, 3, 5, 5)"),
    ],
)
def test_bad_input_is_one_line(place, settings, said):
    if not (place / "small").exists():
        make_images(place / "small", (3, 16, 64))
        for name, shape in (("bad.h5", None), ("other.h5", (4, 3, 5, 5))):
            with h5py.File(place / name, "w") as file:
                if shape:
                    file["conv1.weight"] = np.zeros(shape)
    done = train(place, "bad", 1, *settings, check=False)
    assert said in one_error_line(done)
    assert not (place / "runs/bad").exists()
    if "16 x 64" in said:
        evaluate = ["-m", "ist_hpc.evaluate", "runs/shared", "--data", "small"]
        assert said in one_error_line(run_python(evaluate, place, check=False))

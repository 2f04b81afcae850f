"""VGG11: its costs, and runs on images, shared and dealt out; test_image_networks has the rest."""

import json

import h5py
import numpy as np
import pytest
import torch

from ist_hpc.cost import memory
from ist_hpc.models.convolutional.vgg import VGG11
from tests.helpers import image_runs
from tests.helpers.image_runs import (
    CLASSES,
    KINDS,
    OneOf,
    job_of,
    make_images,
    tensors,
)
from tests.helpers.launching import one_error_line, run_python
from tests.helpers.live_bytes import LiveBytes


def test_activations_of_a_shared_body_are_those_of_all_its_channels():
    """However many ranks: each has rows of its own, which it brings through the whole body."""
    model = VGG11([16], CLASSES)
    job = job_of(model, 4, calibration_rows=2, evaluation_rows=300)
    weights = {spec.key: torch.rand(spec.shape) for spec in model.shared}
    with torch.no_grad(), LiveBytes() as live:
        model._body.full(weights, {}, torch.rand(300, 3 * 32 * 32), OneOf(4), False)
    assert 0.9 < live.most / memory.full_activations(job) < 1.1


# Runs.


@pytest.fixture
def place(runs_of):
    return runs_of("vgg11")


def train(folder, name, rounds, *settings, **options):
    return image_runs.train(folder, name, rounds, *KINDS["vgg11"], *settings, **options)


@pytest.mark.parametrize("source", ["run", "file"])
def test_convolutions_can_be_loaded_and_frozen(place, tmp_path, source):
    start = place / "runs/whole"
    body = {k: v for k, v in tensors(place, "whole", 4).items() if k.startswith("conv")}
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
        evaluate = ["-m", "ist_hpc.evaluate", "runs/whole", "--data", "small"]
        assert said in one_error_line(run_python(evaluate, place, check=False))

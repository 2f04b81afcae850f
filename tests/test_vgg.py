"""VGG11: its costs, what its configuration refuses, and runs on images, shared and dealt out."""

import json

import h5py
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ist_hpc import config, cost, cost_memory
from ist_hpc.errors import InputError
from ist_hpc.models.base import Model
from ist_hpc.models.vgg import VGG11
from ist_hpc.shards import DatasetWriter
from tests import checkpoints
from tests.checkpoints import as_if_killed
from tests.launching import one_error_line, run_python, run_ranks
from tests.live_bytes import LiveBytes

CLASSES = 4
CHANNELS = "[4,4,6,5,6,5,6,7]"
SETTINGS = ["data.path=images", "data.batch_size=8", "data.augment=crop_flip"]
SETTINGS += ["data.mean=[0.5,0.5,0.5]", "data.std=[0.2,0.25,0.3]", "seed=2"]
SETTINGS += ["model.kind=vgg11", f"model.channels={CHANNELS}", "model.hidden=[9,8]"]
SETTINGS += ["train.local_steps=3", "optimizer.momentum=0.9", "optimizer.lr=0.05"]
SETTINGS += ["evaluate.every_epochs=0", "evaluate.calibration_rows=40", "checkpoint.every_rounds=2"]


# Costs.


def thin_weights(model: Model, ranks: int) -> dict[str, torch.Tensor]:
    weights = {spec.key: torch.rand(spec.subnet_shape(0, ranks)) for spec in model.specs}
    return weights | {spec.key: torch.rand(spec.shape) for spec in model.shared}


def batch(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(rows, 3 * 32 * 32), torch.randint(CLASSES, (rows,))


BODIES = [{}, {"deal_channels": True}, {"freeze_body": True}]


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("options", BODIES)
def test_operations_are_those_that_torch_counts(ranks, options):
    model = VGG11([40, 30], CLASSES, [8, 9, 10, 11, 12, 13, 14, 15], **options)
    with FlopCounterMode(display=False) as counter:
        model.loss_and_gradients(thin_weights(model, ranks), *batch(5), {})
    assert cost.step_flops(model.layers, 5, ranks) == counter.get_total_flops()


@pytest.mark.parametrize("options", BODIES)
def test_activations_of_a_step_are_about_those_that_are_held(options):
    model = VGG11([256, 256], CLASSES, **options)
    job = cost.Job(
        weights=model.specs, slots=(), layers=model.layers, axes=model.axes, ranks=2, batch_size=64
    )
    weights = thin_weights(model, 2)
    with LiveBytes() as live:
        model.loss_and_gradients(weights, *batch(64), {})
    fixed = {spec.key for spec in model.shared if not spec.changes}
    gradient = sum(4 * weight.numel() for key, weight in weights.items() if key not in fixed)
    estimate = cost_memory.step_activations(job, 2) + gradient
    assert 0.75 < live.most / estimate < 1.25


def test_activations_of_a_shared_body_are_those_of_all_its_channels():
    """However many ranks: each has rows of its own, which it brings through the whole body."""
    model = VGG11([16], CLASSES)
    job = cost.Job(
        weights=model.specs, slots=(), layers=model.layers, axes=model.axes, ranks=4,
        calibration_rows=2, evaluation_rows=300,
    )  # fmt: skip
    weights = {spec.key: torch.rand(spec.shape) for spec in model.shared}
    with torch.no_grad(), LiveBytes() as live:
        model._body.full(weights, {}, torch.rand(300, 3 * 32 * 32), OneOf4(), False)
    assert 0.9 < live.most / cost_memory.full_activations(job) < 1.1


class OneOf4:
    """Peers of which one is here; it gathers nothing."""

    def share(self, units):
        return slice(0, units // 4)

    def gather(self, own, units):
        return own


# The configuration.


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["model.kind=mlp"], "`model.channels` is of `model.kind: vgg11`"),
        (["model.kind=mlp", "model.channels=[]", "model.deal_channels=true"], "deal_channels"),
        (["model.channels=[1,2,3]"], "8 convolutions, or none, got [1, 2, 3]"),
        (["model.loss=bce", "model.output_norm=none"], "takes `model.loss: cross_entropy`"),
        (["model.deal_channels=true", "model.body_from=a.h5"], "`model.body_from` is of conv"),
        (["model.deal_channels=true", "model.freeze_body=true"], "`model.freeze_body` is of conv"),
    ],
)
def test_keys_that_do_not_go_together(settings, said):
    with pytest.raises(InputError) as error:
        config.parse("", "nowhere", [*SETTINGS, "train.rounds=1", *settings])
    assert said in str(error.value)


# Runs.


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Images whose class is the brightest corner, and a run on them by two ranks."""
    folder = tmp_path_factory.mktemp("vgg")
    make_images(folder / "images")
    train(folder, "shared", 4)
    return folder


def make_images(folder, shape=(3, 32, 32)):
    generator = np.random.default_rng(0)
    with DatasetWriter(
        folder,
        name="images",
        feature_shape=shape,
        feature_dtype="uint8",
        classes=[f"class {label}" for label in range(CLASSES)],
        made_by={"command": "test"},
    ) as writer:
        for split, rows in (("train", 150), ("test", 41)):
            labels = generator.integers(CLASSES, size=rows)
            pixels = generator.integers(0, 120, (rows, *shape), dtype=np.uint8)
            for row, label in zip(pixels, labels, strict=True):
                row[:, 16 * (label // 2) :, 16 * (label % 2) :][:, :16, :16] += 120
            writer.append(split, pixels, labels)


def train(folder, name, rounds, *settings, ranks=2, resume=False, check=True):
    arguments = ["-m", "ist_hpc.train", "--name", name, *(["--resume"] if resume else [])]
    values = [*SETTINGS, f"train.rounds={rounds}", *settings]
    return run_ranks(ranks, [*arguments, "--set", *values], cwd=folder, check=check)


def tensors(folder, name, rounds, group="parameters"):
    found = checkpoints.tensors(folder / f"runs/{name}/checkpoints/round-{rounds:08d}")
    prefix = f"{group}/"
    return {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}


def test_a_resumed_run_equals_an_uninterrupted_one(place):
    """With augmented images, averaged running statistics and momentum."""
    as_if_killed(place / "runs/shared", place / "runs/parts", 2)
    train(place, "parts", 4, resume=True)
    for group in ("parameters", "statistics"):
        expected, found = (tensors(place, name, 4, group) for name in ("shared", "parts"))
        assert expected.keys() == found.keys()
        assert all(np.array_equal(expected[key], found[key]) for key in expected)


def test_bytes_are_those_of_the_plan(place):
    values = ["--set", *SETTINGS, "train.rounds=4", "--ranks", "2", "--rounds", "3", "--json"]
    planned = json.loads(run_python(["-m", "ist_hpc.plan", *values], place).stdout)
    rows = [
        json.loads(line) for line in (place / "runs/shared/metrics.jsonl").read_text().splitlines()
    ]
    rounds = [row for row in rows if row["kind"] == "round"]
    traffic = planned["bytes_a_round"]["ist"]
    expected = [sum(exchange["received"]) for exchange in traffic["exchanges"]]
    assert [row["bytes_received"] for row in rounds] == expected
    assert [row["bytes_averaged"] for row in rounds] == [2 * traffic["averaging_a_rank"]] * 4


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_exported_module_gives_the_logits_of_evaluate(place, tmp_path, ranks):
    run = place / "runs/shared"
    done = run_python(["-m", "ist_hpc.show", run, "--export", "model.pt"], tmp_path)
    source = done.stdout.split("nothing but PyTorch:\n")[1]
    evaluate = ["-m", "ist_hpc.evaluate", run, "--data", place / "images", "--predictions", "p.h5"]
    run_ranks(ranks, evaluate, cwd=tmp_path)
    compare = f"""{source}
import h5py
with h5py.File({str(place / "images/test-0000.h5")!r}) as file:
    rows = torch.from_numpy(file["features"][...]).float() / 255
mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.5, 0.5, 0.5], [0.2, 0.25, 0.3]))
with torch.no_grad(), h5py.File("p.h5") as file:
    logits = model(((rows - mean) / std).flatten(1))
    print((logits - torch.from_numpy(file["logits"][...])).abs().max().item())
"""
    (tmp_path / "compare.py").write_text(compare)
    assert float(run_python(["-I", "compare.py"], tmp_path).stdout) < 2e-5


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
    train(place, "dealt", 2, "model.deal_channels=true", ranks=3)
    train(place, "dealt", 4, "model.deal_channels=true", ranks=2, resume=True)
    whole = tensors(place, "dealt", 4)
    assert whole["conv3.weight"].shape == (6, 4, 3, 3)
    assert all(np.isfinite(values).all() for values in whole.values())
    summary = json.loads((place / "runs/dealt/summary.json").read_text())
    assert summary["bytes"]["averaged"] == 0  # nothing is shared
    assert summary["test"]["accuracy"] > 1.5 / CLASSES


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

"""What tests of the networks for images share: made images, runs on them, and what they must be."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ist_hpc.config.keys import OptimizerConfig
from ist_hpc.cost import counts
from ist_hpc.data.shards import DatasetWriter
from ist_hpc.models import optimizer
from ist_hpc.models.base import Model
from tests.helpers import checkpoints
from tests.helpers.launching import run_python, run_ranks

CLASSES = 4
_MEAN, _STD = [0.5, 0.5, 0.5], [0.2, 0.25, 0.3]
SETTINGS = [
    *("seed=2", "data.path=images", "data.batch_size=8", "data.augment=crop_flip"),
    *(f"data.mean={_MEAN}".replace(" ", ""), f"data.std={_STD}".replace(" ", "")),
    *("train.local_steps=3", "optimizer.momentum=0.9", "optimizer.lr=0.05"),
    *("evaluate.every_epochs=0", "evaluate.calibration_rows=40", "checkpoint.every_rounds=2"),
]
KINDS = {
    "resnet": [
        *(*SETTINGS, "model.kind=resnet", "model.hidden=[]", "model.channels=[4,5,6,7]"),
        *("model.sections=[1,2,6,1]", "model.min_blocks=3"),
    ],
    "vgg11": [
        *(*SETTINGS, "model.kind=vgg11", "model.channels=[4,4,6,5,6,5,6,7]", "model.hidden=[9,8]"),
    ],
}
"""What is set of each kind of network."""


def make_images(folder: Path, shape: tuple[int, ...] = (3, 32, 32)) -> None:
    """Images whose class is the brightest corner."""
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


def train(
    folder: Path,
    name: str,
    rounds: int,
    *settings: str,
    ranks: int = 2,
    resume: bool = False,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Train on `folder`/images; the run is `folder`/runs/`name`."""
    arguments = ["-m", "ist_hpc.train", "--name", name, *(["--resume"] if resume else [])]
    values = [f"train.rounds={rounds}", *settings]
    return run_ranks(ranks, [*arguments, "--set", *values], cwd=folder, check=check)


def tensors(
    folder: Path, name: str, rounds: int, group: str = "parameters"
) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors of a group of a run's checkpoint, by key."""
    found = checkpoints.tensors(folder / f"runs/{name}/checkpoints/round-{rounds:08d}")
    prefix = f"{group}/"
    return {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}


def assert_equal_runs(folder: Path, one: str, other: str, rounds: int) -> None:
    """The weights and statistics of two runs are equal to the last bit."""
    for group in ("parameters", "statistics"):
        expected, found = (tensors(folder, name, rounds, group) for name in (one, other))
        assert expected.keys() == found.keys() != set()
        assert all(np.array_equal(expected[key], found[key]) for key in expected)


def assert_bytes_are_those_planned(
    folder: Path, name: str, rounds: int, *settings: str, ranks: int = 2
) -> None:
    """What a run counted is what `plan` counts before, exactly."""
    values = [*settings, f"train.rounds={rounds}"]
    plan = ["-m", "ist_hpc.plan", "--ranks", str(ranks), "--rounds", str(rounds - 1), "--json"]
    traffic = json.loads(run_python([*plan, "--set", *values], folder).stdout)["bytes_a_round"]
    lines = (folder / f"runs/{name}/metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["kind"] == "round"]
    exchanges = [sum(exchange["received"]) for exchange in traffic["ist"]["exchanges"]]
    assert [row["bytes_received"] for row in rows] == exchanges
    averaging = ranks * traffic["ist"]["averaging_a_rank"]
    assert [row["bytes_averaged"] for row in rows] == [averaging] * rounds


def export_differs(folder: Path, run: Path, place: Path, ranks: int) -> float:
    """How far the logits of the module that `show --export` prints are from those of `evaluate`."""
    done = run_python(["-m", "ist_hpc.show", run, "--export", "model.pt"], place)
    source = done.stdout.split("nothing but PyTorch:\n")[1]
    evaluate = ["-m", "ist_hpc.evaluate", run, "--data", folder / "images"]
    run_ranks(ranks, [*evaluate, "--predictions", "p.h5"], cwd=place)
    compare = f"""{source}
import h5py
with h5py.File({str(folder / "images/test-0000.h5")!r}) as file:
    rows = torch.from_numpy(file["features"][...]).float() / 255
mean, std = (torch.tensor(v).view(3, 1, 1) for v in ({_MEAN}, {_STD}))
with torch.no_grad(), h5py.File("p.h5") as file:
    logits = model(((rows - mean) / std).flatten(1))
    print((logits - torch.from_numpy(file["logits"][...])).abs().max().item())
"""
    (place / "compare.py").write_text(compare)
    return float(run_python(["-I", "compare.py"], place).stdout)


def thin_weights(model: Model, ranks: int) -> dict[str, Tensor]:
    """Random weights as rank 0 of `ranks` would train."""
    weights = {spec.key: torch.rand(spec.subnet_shape(0, ranks)) for spec in model.specs}
    return weights | {spec.key: torch.rand(spec.shape) for spec in model.shared}


def batch(rows: int) -> tuple[Tensor, Tensor]:
    """Random images and classes."""
    return torch.rand(rows, 3 * 32 * 32), torch.randint(CLASSES, (rows,))


def job_of(model: Model, ranks: int, **values: Any) -> counts.Job:
    """A job of a network, as far as activations depend on it."""
    rule = optimizer.build(OptimizerConfig(kind="sgd"))
    return counts.Job(model=model, rule=rule, ranks=ranks, **values)


class OneOf:
    """Peers of which one is here: others bring nothing, and take nothing away."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks

    def share(self, units: int) -> slice:
        return slice(0, -(-units // self.ranks))

    def gather_rows(self, own: Tensor, rows: int) -> Tensor:
        return own if self.ranks == 1 else torch.zeros(rows, *own.shape[1:])

    def gather(self, own: Tensor, units: int) -> Tensor:
        return own if self.ranks == 1 else torch.zeros(len(own), units, *own.shape[2:])

    def relay(self, values: Tensor, stage: Callable[[Tensor], Tensor], rows_at_once: int) -> Tensor:
        if self.ranks == 1:
            parts = values.split(rows_at_once)
            return stage(values) if len(parts) == 1 else torch.cat([stage(part) for part in parts])
        arrived = torch.empty(values.shape)
        for part, into in zip(values.split(rows_at_once), arrived.split(rows_at_once), strict=True):
            into.copy_(stage(part))
        return arrived

"""Residual networks: their size and costs, and runs on images; test_image_networks has the rest."""

import json

import h5py
import numpy as np
import pytest
import torch

from ist_hpc.config import loading
from ist_hpc.config.keys import RESNET_SECTIONS, subnets_of
from ist_hpc.cost import memory
from ist_hpc.cost.report import plan_report
from ist_hpc.exchange.placement import elements
from ist_hpc.models import networks
from ist_hpc.models.convolutional.resnet import ResNet
from ist_hpc.studies.plots.runs import read_metrics
from ist_hpc.studies.state import read_rows
from tests.helpers import image_runs
from tests.helpers.checkpoints import as_if_killed
from tests.helpers.image_runs import (
    CLASSES,
    KINDS,
    OneOf,
    batch,
    job_of,
    tensors,
)
from tests.helpers.launching import ROOT, one_error_line, run_python
from tests.helpers.live_bytes import LiveBytes

# Its size and costs.


def test_the_paper_s_network_has_its_weights():
    """41.4 million: its ResNet101 is of basic blocks (its table of communication says so)."""
    model = ResNet(RESNET_SECTIONS, (64, 128, 256, 512), 100)
    dealt = sum(elements(spec) for spec in model.specs)
    shared = sum(int(np.prod(spec.shape)) for spec in model.shared if spec.trained)
    assert dealt == 22 * (2 * 9 * 256**2 + 4 * 256)
    assert dealt + shared == 41_397_924


@pytest.mark.parametrize(
    ("ranks", "blocks", "resist_gb", "local_sgd_gb"),
    [(2, 4, 0.4546, 0.662), (4, 6, 0.720, 1.325), (8, 4, 1.289, 2.649)],
)
def test_the_paper_s_table_of_communication(ranks, blocks, resist_gb, local_sgd_gb):
    """Which counts every block down and up; it has 0.454 for two: docs/results.md."""
    path = ROOT / "configs/resist_cifar100.yaml"
    values = ["data.path=nowhere", f"model.min_blocks={blocks}"]
    report = plan_report(loading.load(path, values), ranks, rounds=1)
    counted = {name: n["through_server"] / 1e9 for name, n in report["bytes_a_round"].items()}
    assert counted["ist"] == pytest.approx(resist_gb, abs=0.0005)
    assert counted["local_sgd"] == pytest.approx(local_sgd_gb, abs=0.0005)
    received = {name: n["all_ranks"] / 1e9 for name, n in report["bytes_a_round"].items()}
    assert received["ist"] < received["local_sgd"] < counted["local_sgd"]


@pytest.mark.parametrize("ranks", [1, 4])
@pytest.mark.parametrize("rows", [96, 512])
@pytest.mark.parametrize("channels", [(32, 64, 128, 256), (8, 8, 16, 32)], ids=["wide", "narrow"])
def test_activations_of_the_full_network_are_about_those_that_are_held(channels, rows, ranks):
    """Of the calibration, and of a batch of an evaluation."""
    model, statistics = ResNet([1, 1, 5, 1], channels, CLASSES), {}
    weights = {spec.key: torch.rand(spec.shape) for spec in model.shared}
    for spec in model.specs:
        weights[spec.key] = torch.rand(spec.home_rows(0, ranks)[1], *spec.shape[1:])
    for calibrate in (True, False):
        counted = {"calibration_rows": 2, "evaluation_rows": 1}
        counted["calibration_rows" if calibrate else "evaluation_rows"] = rows
        with torch.no_grad(), LiveBytes() as live:
            model.full_hidden(weights, statistics, batch(rows)[0], OneOf(ranks), calibrate)
        held = live.most - (4 * 3072 * rows if calibrate else 0)  # rows that are counted as kept
        assert 0.7 < held / memory.full_activations(job_of(model, ranks, **counted)) < 1.2


@pytest.mark.parametrize("ranks", [1, 2, 4, 11])
def test_a_rank_holds_its_blocks_and_no_others(ranks):
    model = ResNet([1, 1, 12, 1], [4, 4, 4, 4], CLASSES, least=2)
    for rank in range(ranks):
        own = max(2, len(range(rank, 11, ranks)))
        for spec in model.specs:
            assert spec.subnet_shape(rank, ranks) == (own, *spec.shape[1:])


@pytest.mark.parametrize(
    ("algorithm", "ranks", "blocks", "scale"),
    [
        ("ist", 4, 6, 6 / 22),
        ("ist", 4, 4, 1 / 4),
        ("ist", 8, 4, 4 / 22),
        ("ist", 2, 4, 1 / 2),
        ("ist", 1, 4, 1.0),
        ("local_sgd", 4, 4, 1.0),
    ],
)
def test_the_full_network_is_scaled_by_the_part_that_a_rank_trains(algorithm, ranks, blocks, scale):
    """As the commands build it: max(1/S, the least over all), 1 where every rank trains all."""
    values = [*KINDS["resnet"], "model.sections=[1,1,23,1]", f"model.min_blocks={blocks}"]
    values += [f"train.algorithm={algorithm}", "train.rounds=1"]
    found = loading.parse("", "nowhere", values)
    model = networks.build(found.model, 3 * 32 * 32, CLASSES, subnets=subnets_of(found, ranks))
    assert model.axes["blocks"].size == 22
    assert model.exported().arguments["scale"] == scale
    assert f"    scale={scale},\n" in model.module_source()


# Runs.


@pytest.fixture
def place(runs_of):
    return runs_of("resnet")


def train(folder, name, rounds, *settings, **options):
    return image_runs.train(folder, name, rounds, *KINDS["resnet"], *settings, **options)


def test_show_names_the_blocks(place):
    shown = run_python(["-m", "ist_hpc.show", "runs/whole/checkpoints/round-00000004"], place)
    assert "resnet, sections [1, 2, 6, 1], channels [4, 5, 6, 7]" in shown.stdout


def test_it_goes_on_under_another_algorithm_and_with_other_blocks_a_rank(place):
    """As a baseline, then on more ranks with fewer blocks a rank; the blocks go with it."""
    as_if_killed(place / "runs/whole", place / "runs/on", 4)
    train(place, "on", 5, "train.algorithm=ddp", "model.min_blocks=1", resume=True)
    train(place, "on", 6, "model.min_blocks=2", ranks=3, resume=True)
    found = tensors(place, "on", 6)
    assert found["blocks.conv1.weight"].shape == (5, 6, 6, 3, 3)
    assert all(np.isfinite(values).all() for values in found.values())
    before = tensors(place, "whole", 4)["blocks.conv1.weight"]
    changed = (found["blocks.conv1.weight"] != before).reshape(5, -1).any(axis=1)
    assert changed.all()


@pytest.mark.parametrize(
    "settings", [["model.min_blocks=1"], ["train.algorithm=local_sgd"]], ids=lambda s: s[0]
)
def test_what_is_owed_is_evaluated_as_it_was_trained(place, settings):
    """By the scale of the ranks, blocks a rank and algorithm of before, not of those that go on."""
    name = f"owed-{settings[0]}".replace("=", "-")
    as_if_killed(place / "runs/whole", place / "runs" / name, 4)
    train(place, name, 4, *settings, ranks=1, resume=True)
    expected, found = (
        json.loads((place / f"runs/{run}/summary.json").read_text())["test"]
        for run in ("whole", name)
    )
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_round_that_diverges_is_skipped_on_all_ranks(place):
    """Shared blocks are not settled then, and the round before is as it was."""
    steep = ["optimizer.lr=1e15", "train.on_nan=skip_round"]
    as_if_killed(place / "runs/whole", place / "runs/steep", 4)
    train(place, "steep", 5, *steep, resume=True)
    lines = (place / "runs/steep/metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["kind"] == "round"]
    assert [row["round"] for row in rows if row.get("skipped")] == [5]
    before, after = (tensors(place, name, n) for name, n in (("whole", 4), ("steep", 5)))
    assert all(np.array_equal(after[key], values) for key, values in before.items())


def test_fewer_blocks_than_ranks_are_refused(place):
    done = train(place, "bad", 1, "model.sections=[1,1,2,1]", "model.min_blocks=1", check=False)
    assert "axis `blocks` has 1 units, too few for 2 ranks" in one_error_line(done)
    assert not (place / "runs/bad").exists()


def test_an_ensemble_is_the_mean_of_its_members_probabilities(place, tmp_path):
    """bench/ensemble.py, of a run and another seed; both have checkpoints of rounds 2 and 4."""
    train(place, "other", 4, "seed=3")
    members = [place / "runs/whole", place / "runs/other"]
    run_python([ROOT / "bench/ensemble.py", tmp_path / "both", *members], place)
    probabilities = 0
    for number, run in enumerate(members):
        target = tmp_path / f"{number}.h5"
        words = ["-m", "ist_hpc.evaluate", run, "--data", place / "images", "--predictions", target]
        run_python(words, place)
        with h5py.File(target) as file:
            labels, logits = file["labels"][...], file["logits"][...].astype(np.float64)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = probabilities + powers / powers.sum(axis=1, keepdims=True)
    rows = read_metrics(tmp_path / "both/metrics.jsonl")
    assert [row["round"] for row in rows] == [2, 2, 4, 4]
    assert rows[-1]["samples"] == 2 * read_metrics(members[0] / "metrics.jsonl")[-1]["samples"]
    expected = (probabilities.argmax(axis=1) == labels).mean()
    assert rows[-1]["test"]["accuracy"] == pytest.approx(expected)
    loss = -np.log(probabilities[np.arange(len(labels)), labels] / 2).mean()
    assert rows[-1]["test"]["loss"] == pytest.approx(loss, rel=1e-5)
    (row,) = read_rows(tmp_path / "ensembles.csv", ("run",))
    assert (row["run"], row["members"], row["seeds"]) == ("both", 2, "2 3")
    assert (row["samples"], row["final"]) == (rows[-1]["samples"], rows[-1]["test"]["accuracy"])


def test_it_learns(place):
    wide = ["model.channels=[8,8,8,8]", "optimizer.lr=0.1", "optimizer.state=reset"]
    train(place, "wide", 10, *wide, "train.local_steps=10", "data.augment=none")
    summary = json.loads((place / "runs/wide/summary.json").read_text())
    assert summary["test"]["accuracy"] > 3 / CLASSES


def test_what_goes_from_rank_to_rank_is_what_enters_the_dealt_blocks():
    """The third section's channels, on images that were halved twice."""
    assert ResNet([1, 2, 6, 1], [4, 5, 6, 7], CLASSES).relayed_numbers == 6 * 8 * 8

"""The baselines as users run them: configuration, refusals, checkpoints and resume."""

import json
import shutil

import numpy as np
import pytest

from ist_hpc import show
from ist_hpc.common.errors import InputError
from ist_hpc.config import loading
from ist_hpc.cost import prediction
from ist_hpc.models.perceptrons.mlp import MultiLayerPerceptron
from ist_hpc.training import algorithms
from tests.helpers import checkpoints
from tests.helpers.checkpoints import as_if_killed
from tests.helpers.launching import run_python, run_ranks

BASE = ["data.path=digits", "model.hidden=[21,14]", "train.local_steps=4", "seed=4"]
BASE += ["optimizer.kind=adam", "optimizer.momentum=0", "optimizer.lr=0.003"]
BASE += ["checkpoint.every_rounds=3", "evaluate.every_epochs=0"]
LOCAL = ["train.algorithm=local_sgd", "train.warmup_steps=14"]


def parsed(*settings):
    return loading.parse("data: {path: d}\nmodel: {hidden: [8]}\ntrain: {rounds: 1}", "x", settings)


def run(place, name, rounds, *settings, ranks=2, resume=False):
    arguments = ["-m", "ist_hpc.train", "--name", name, *(["--resume"] if resume else [])]
    return run_ranks(
        ranks, [*arguments, "--set", *BASE, f"train.rounds={rounds}", *settings], cwd=place
    )


def tensors(place, name, rounds):
    return checkpoints.tensors(place / f"runs/{name}/checkpoints/round-{rounds:08d}")


@pytest.fixture(scope="module")
def place(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("replicas")
    shutil.copytree(trained.data, folder / "digits")
    return folder


def assert_same(expected, found):
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert np.isfinite(value).all()
        assert np.array_equal(value.view(np.int32), found[key].view(np.int32)), key


@pytest.fixture(scope="module")
def finished(place):
    """Five rounds of local SGD, of which 14 steps are a warm-up; checkpoints of the third, last."""
    run(place, "whole", 5, *LOCAL)
    return place


def test_a_resumed_run_equals_an_uninterrupted_one(finished):
    """Steps are counted from the start of the run: the last two of the warm-up are resumed."""
    as_if_killed(finished / "runs/whole", finished / "runs/parts", 3)
    run(finished, "parts", 5, *LOCAL, resume=True)
    expected, found = (tensors(finished, name, 5) for name in ("whole", "parts"))
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert np.isfinite(value).all()
        assert np.array_equal(value.view(np.int32), found[key].view(np.int32)), key
    assert (expected["optimizer/updates/fc2.weight"] == 5 * 4).all()
    rows = [json.loads(line) for line in (finished / "runs/parts/metrics.jsonl").open()]
    averaged = [row["bytes_averaged"] for row in rows if row["kind"] == "round"]
    weights = sum(v.size for k, v in expected.items() if k.startswith("parameters/"))
    ring = 2 * 4 * weights  # of two ranks brings each of them every weight once
    moments = 2
    assert averaged == [4 * ring, 4 * ring, 4 * ring, (2 + 1 + moments) * ring, 3 * ring]


def test_other_algorithms_and_ranks_go_on_from_a_checkpoint(finished, capsys):
    """DDP on three ranks, which the tools read, then independent subnets on two."""
    as_if_killed(finished / "runs/whole", finished / "runs/mixed", 3)
    settings = ["train.algorithm=ddp", "train.warmup_steps=0"]
    done = run(finished, "mixed", 4, *settings, ranks=3, resume=True)
    assert "arning" not in done.stderr
    summary = json.loads((finished / "runs/mixed/summary.json").read_text())
    assert (summary["algorithm"], summary["ranks"], summary["rounds"]) == ("ddp", 3, 4)
    assert summary["bytes"]["averaged"] > 0
    assert summary["seconds"]["average"] > 0
    saved = finished / "runs/mixed/checkpoints/round-00000004"
    assert show.main([str(saved)]) == 0
    assert "algorithm ddp on 3 rank(s)" in capsys.readouterr().out
    found = run_python(["-m", "ist_hpc.evaluate", str(saved), "--data", "digits"], cwd=finished)
    assert f"{summary['test']['accuracy']:.4f}" in found.stdout
    run(finished, "mixed", 5, "train.algorithm=ist", resume=True)
    counts = tensors(finished, "mixed", 5)["optimizer/updates/fc2.weight"]
    assert set(np.unique(counts)) == {4 * 4, 5 * 4}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.algorithm=sgd"], "ist, data_parallel, local_sgd, ddp"),
        (["train.warmup_steps=5"], "`train.warmup_steps` is of local_sgd, not of ist"),
        (
            ["train.algorithm=data_parallel", "train.warmup_steps=5"],
            "is of local_sgd, not of data_parallel; leave it out, got 5",
        ),
        (["train.algorithm=local_sgd", "train.warmup_steps=-1"], "at least 0"),
        (
            ["train.algorithm=local_sgd", "train.compression=fp16"],
            "`train.compression` is of data_parallel, not of local_sgd",
        ),
        (["train.algorithm=data_parallel", "train.compression=int8"], "none, fp16"),
        (["train.algorithm=ddp", "device=cuda"], "gloo, on the CPU; set `device: cpu`"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(")) as caught:
        parsed(*settings)
    assert "\n" not in str(caught.value)


def test_what_each_algorithm_takes():
    read = parsed("train.algorithm=local_sgd", "train.warmup_steps=7")
    assert (read.train.algorithm, read.train.warmup_steps) == ("local_sgd", 7)
    read = parsed("train.algorithm=data_parallel", "train.compression=fp16")
    assert read.train.compression == "fp16"
    assert loading.parse(loading.dump(read), "x") == read


def test_a_model_without_a_loss_for_autograd_is_refused_by_ddp():
    model = MultiLayerPerceptron(5, [3], 4, output_norm=False, loss="softmax")
    with pytest.raises(InputError, match="ddp` wants a loss for autograd"):
        algorithms.refuse_unfit(parsed("train.algorithm=ddp"), model, ranks=2)
    algorithms.refuse_unfit(parsed("train.algorithm=data_parallel"), model, ranks=2)


def test_only_dealt_layers_must_have_a_unit_for_each_rank():
    model = MultiLayerPerceptron(5, [3], 4)
    for name in ("data_parallel", "local_sgd", "ddp"):
        algorithms.refuse_unfit(parsed(f"train.algorithm={name}"), model, ranks=4)
    with pytest.raises(InputError, match="too few for 4 ranks"):
        algorithms.refuse_unfit(parsed(), model, ranks=4)


def test_a_gradient_that_horovod_cannot_count_is_refused():
    model = MultiLayerPerceptron(2**17, [2**14], 4)
    with pytest.raises(InputError, match=r"fc1.weight has 2,147,483,648 elements"):
        algorithms.refuse_unfit(parsed("train.algorithm=data_parallel"), model, ranks=4)
    algorithms.refuse_unfit(parsed("train.algorithm=local_sgd"), model, ranks=4)


def test_memory_of_whole_models(monkeypatch):
    """They are refused where dealt subnets fit; averaging gradients takes one more model."""
    monkeypatch.delenv("HOROVOD_FUSION_THRESHOLD", raising=False)
    model = MultiLayerPerceptron(4096, [4096], 35)

    def phases(*settings, ranks=4):
        read = parsed(*settings)
        memory = prediction.memory_of(read, prediction.job_of(read, model, ranks, None))
        return {name: memory.total(name) for name in memory.phases}

    def step(*settings, ranks=4):
        return phases(*settings, ranks=ranks)["training"]

    weights, fusion = 4 * (4096 * 4096 + 2 * 4096 + 35 * 4096), 128 << 20
    local = phases("train.algorithm=local_sgd")
    parallel = step("train.algorithm=data_parallel")
    assert step() < local["training"]
    assert parallel - local["training"] == fusion
    assert step("train.algorithm=local_sgd", "train.warmup_steps=1") == parallel
    assert step("train.algorithm=data_parallel", "train.compression=fp16") == parallel + weights / 2
    assert step("train.algorithm=ddp") == local["training"] + 4 * 4096 * 4096
    assert step("train.algorithm=ddp", ranks=1) == step("train.algorithm=local_sgd", ranks=1)
    monkeypatch.setenv("HOROVOD_FUSION_THRESHOLD", "1000")
    assert step("train.algorithm=data_parallel") == local["training"] + 1000
    assert phases("train.algorithm=local_sgd")["average"] == local["average"] - fusion + 1000

"""Checkpoint and resume: as if never stopped, to the last bit, on the same number of ranks."""

import json
import re
import shutil

import h5py
import numpy as np
import pytest

from tests.helpers import checkpoints
from tests.helpers.checkpoints import as_if_killed
from tests.helpers.launching import one_error_line, run_ranks

BASE = ["data.path=digits", "model.hidden=[21,14]", "train.local_steps=6", "seed=4"]
BASE += ["checkpoint.every_rounds=3", "evaluate.every_rounds=2", "evaluate.every_epochs=0"]
RULES = {
    "momentum, decaying rate": [
        *("optimizer.momentum=0.9", "optimizer.lr=0.05"),
        *("optimizer.decay_epochs=[0.5,1.2]", "optimizer.decay_factor=0.3"),
    ],
    "adam": ["optimizer.kind=adam", "optimizer.momentum=0", "optimizer.lr=0.003"],
    "adam, reset, bias": [
        *("optimizer.kind=adam", "optimizer.momentum=0", "optimizer.state=reset"),
        *("model.output_norm=none", "model.output_bias=true", "optimizer.lr=0.003"),
    ],
}


def run(place, name, rounds, *settings, ranks=2, resume=False):
    arguments = ["-m", "ist_hpc.train", "--name", name, *(["--resume"] if resume else [])]
    return run_ranks(
        ranks, [*arguments, "--set", *BASE, f"train.rounds={rounds}", *settings], cwd=place
    )


def tensors(place, name, rounds):
    """Every dataset of a checkpoint in whole, and its attributes."""
    folder = place / f"runs/{name}/checkpoints/round-{rounds:08d}"
    with h5py.File(folder / "checkpoint.h5") as file:
        return checkpoints.tensors(folder), dict(file.attrs)


@pytest.fixture(scope="module")
def eight_rounds(trained, tmp_path_factory):
    """A finished run of eight rounds on two ranks, with checkpoints of the sixth and the eighth."""
    folder = tmp_path_factory.mktemp("eight")
    shutil.copytree(trained.data, folder / "digits")
    run(folder, "r", 8)
    return folder


@pytest.fixture
def eight(eight_rounds, tmp_path):
    """A copy of its folder, to be spoilt."""
    shutil.copytree(eight_rounds, tmp_path / "copy")
    return tmp_path / "copy"


def names_of_checkpoints(place):
    return sorted(path.name for path in (place / "runs/r/checkpoints").iterdir())


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_a_resumed_run_equals_an_uninterrupted_one(place, rule):
    run(place, "whole", 8, *rule, "checkpoint.keep=3", ranks=3)
    as_if_killed(place / "runs/whole", place / "runs/parts", 3)
    run(place, "parts", 8, *rule, ranks=3, resume=True)
    expected, attributes = tensors(place, "whole", 8)
    found, found_attributes = tensors(place, "parts", 8)
    assert expected.keys() == found.keys()
    carried = any(key.startswith("optimizer/") for key in expected)
    assert carried == ("optimizer.state=reset" not in rule)
    for key, value in expected.items():
        assert np.isfinite(value).all()
        assert np.array_equal(value.view(np.int32), found[key].view(np.int32)), key
    for key in ("round", "steps", "samples", "stream_rows", "best"):
        assert attributes[key] == found_attributes[key]
    losses = [_losses(place / f"runs/{name}/metrics.jsonl") for name in ("whole", "parts")]
    assert losses[0] == losses[1]
    if rule is RULES["momentum, decaying rate"]:  # 1438 rows, 3 x 32 a step, 6 steps a round
        assert sorted(set(_rates(place / "runs/parts/metrics.jsonl")), reverse=True) == [
            pytest.approx(rate) for rate in (0.05, 0.015, 0.0045)
        ]


def _losses(path):
    rows = [json.loads(line) for line in path.open()]
    return [(row["round"], row["loss"]) for row in rows if row["kind"] == "round"]


def _rates(path):
    rows = [json.loads(line) for line in path.open()]
    return [row["lr"] for row in rows if row["kind"] == "round"]


def test_another_number_of_ranks_goes_on(place):
    run(place, "r", 4, *RULES["adam"], ranks=2)
    before, attributes = tensors(place, "r", 4)
    done = run(place, "r", 9, *RULES["adam"], ranks=3, resume=True)
    assert "3 rank(s), 1 thread(s) each, from round 4" in done.stderr
    after, new_attributes = tensors(place, "r", 9)
    assert new_attributes["ranks"] == 3
    assert new_attributes["samples"] == attributes["samples"] + 5 * 6 * 3 * 32
    assert before.keys() == after.keys()
    rows = [json.loads(line) for line in (place / "runs/r/metrics.jsonl").open()]
    tested = [row["test"] for row in rows if row["kind"] == "evaluation"]
    assert tested[-1]["loss"] < tested[1]["loss"], "five more rounds should have helped"


def test_weights_survive_a_change_of_ranks_to_the_bit(place):
    """Resumed with nothing left to train, then saved by other ranks: the same numbers."""
    run(place, "r", 4, *RULES["momentum, decaying rate"], ranks=2)
    before, _ = tensors(place, "r", 4)
    run(place, "r", 5, *RULES["momentum, decaying rate"], "optimizer.lr=0", ranks=3, resume=True)
    after, _ = tensors(place, "r", 5)
    for key in before:
        if key.startswith("parameters/"):
            assert np.array_equal(before[key], after[key]), key


def test_resume_starts_where_nothing_was_saved(place):
    done = run(place, "new", 2, resume=True)
    assert "test accuracy" in done.stdout


def test_a_finished_run_can_be_resumed_and_reports_again(eight):
    done = run(eight, "r", 8, resume=True)
    assert "test accuracy" in done.stdout


def test_a_damaged_checkpoint_is_named_and_passed_over(eight):
    expected = tensors(eight, "r", 8)[0]
    victim = eight / "runs/r/checkpoints/round-00000008/rank-0001.h5"
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    done = run(eight, "r", 8, resume=True)
    assert "round-00000008/rank-0001.h5: SHA-256 differs" in done.stderr
    assert "from round 6" in done.stderr
    found = tensors(eight, "r", 8)[0]
    assert all(np.array_equal(expected[key], found[key]) for key in expected)
    assert names_of_checkpoints(eight) == [
        "damaged-round-00000008",
        "round-00000006",
        "round-00000008",
    ]


def test_a_damaged_checkpoint_never_pushes_out_a_good_one(eight):
    victim = eight / "runs/r/checkpoints/round-00000008/checkpoint.h5"
    victim.write_bytes(victim.read_bytes()[:-1])
    run(eight, "r", 7, "checkpoint.keep=1", resume=True)
    assert names_of_checkpoints(eight) == ["damaged-round-00000008", "round-00000007"]


BLIND = """
import errno, os, sys
from pathlib import Path
from ist_hpc.checkpoint import folder
from ist_hpc.train import main
def refuses(path):
    raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
if os.environ["OMPI_COMM_WORLD_RANK"] == "1":
    whole = Path.is_dir
    if sys.argv.pop(1) == "unseen":
        Path.is_dir = lambda path: not path.name.startswith("round-") and whole(path)
    else:
        folder.sha256_of = refuses
else:
    sys.argv.pop(1)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("unseen", r"round-00000008 is there on \S+, but not on \S+; see whether"),
        ("unreadable", r"round-00000008/\S+: Input/output error on \S+, so nothing is known of"),
    ],
)
def test_what_one_rank_cannot_read_is_not_taken_for_damaged(eight, how, said):
    """A file system that is not mounted on one host, or that fails: nothing is changed."""
    words = ["-c", BLIND, how, "--name", "r", "--resume", "--set", *BASE, "train.rounds=9"]
    done = run_ranks(2, words, cwd=eight, check=False)
    assert re.search(said, one_error_line(done))
    assert names_of_checkpoints(eight) == ["round-00000006", "round-00000008"]


def test_what_a_killed_save_left_behind_is_removed_by_the_next(eight):
    left = eight / "runs/r/checkpoints/.round-00000009.partial"
    left.mkdir()
    (left / "rank-0000.h5").write_bytes(b"half")
    for name in ("STATUS", "metrics.jsonl"):
        (eight / f"runs/r/.{name}.partial-99999").write_bytes(b"half")
    run(eight, "r", 9, resume=True)
    assert not list((eight / "runs/r").glob(".*.partial-*"))
    assert names_of_checkpoints(eight) == ["round-00000008", "round-00000009"]


def test_metrics_of_rounds_trained_again_are_not_doubled(eight):
    as_if_killed(eight / "runs/r", eight / "runs/k", 6)
    run(eight, "k", 9, resume=True)
    assert [r for r, _ in _losses(eight / "runs/k/metrics.jsonl")] == list(range(1, 10))

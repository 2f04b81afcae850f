"""Training on labels that are drawn, as users do it; the ranks have the data of sparse training."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.helpers.checkpoints import as_if_killed
from tests.helpers.launching import one_error_line, run_python, run_ranks

SETTINGS = [
    *("data.path=data", "data.batch_size=16", "model.hidden=[48]", "model.output_norm=none"),
    *("model.loss=sampled_softmax", "model.negatives=20", "model.dropout=0.2"),
    *("model.output_start=zero", "train.local_steps=4", "optimizer.kind=rowwise_adagrad"),
    *("optimizer.lr=0.1", "optimizer.momentum=0", "evaluate.calibration_rows=300"),
    "checkpoint.every_minutes=0",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Has `data`: 2000 features, 400 labels."""
    place = tmp_path_factory.mktemp("sampled")
    sizes = ["--train-rows", "900", "--test-rows", "150", "--features", "2000", "--labels", "400"]
    command = ["-m", "ist_hpc.prepare", "synthetic", "--like", "amazon670k", *sizes]
    run_python([*command, "--output", "data", "--workers", "1"], cwd=place)
    return place


def train(place: Path, name: str, *settings: str, ranks: int = 2, check: bool = True):
    arguments = ["-m", "ist_hpc.train", "--name", name, "--resume", "--set", *SETTINGS, *settings]
    return run_ranks(ranks, arguments, cwd=place, check=check)


def rows_of(place: Path, name: str) -> list[dict]:
    text = (place / "runs" / name / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def tensors_of(place: Path, name: str, index: int) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    folder = place / "runs" / name / "checkpoints" / f"round-{index:08d}"

    def take(key: str, item) -> None:
        if hasattr(item, "dtype"):
            found[key] = item[...]

    with h5py.File(folder / "checkpoint.h5") as file:
        file.visititems(take)
    return found


def test_it_learns_as_one_rank_and_as_two(place):
    for ranks in (1, 2):
        train(place, f"learns{ranks}", "train.epochs=12", "train.local_steps=10", ranks=ranks)
        result = json.loads((place / "runs" / f"learns{ranks}" / "summary.json").read_text())
        assert result["test"]["precision_at_1"] > 0.2  # the most frequent label is right for 0.02


@pytest.mark.parametrize("algorithm", ["ist", "local_sgd", "data_parallel"])
def test_a_resume_goes_on_to_the_last_bit(place, algorithm):
    names = [f"{algorithm}-whole", f"{algorithm}-parts"]
    settings = [f"train.algorithm={algorithm}", "train.rounds=4", "checkpoint.every_rounds=2"]
    train(place, names[0], *settings)
    as_if_killed(*(place / "runs" / name for name in names), 2)
    train(place, names[1], *settings)
    whole, parts = (tensors_of(place, name, 4) for name in names)
    assert whole.keys() == parts.keys()
    assert whole["optimizer/squares/out.weight"].shape == (400,)
    for key, values in whole.items():
        np.testing.assert_array_equal(values, parts[key], err_msg=key)


def test_bytes_of_a_run_are_about_those_of_the_plan(place):
    """Which labels the batches have is not known before; how many they are is, within a part."""
    command = ["-m", "ist_hpc.plan", "--ranks", "2", "--json", "--set", *SETTINGS]
    planned = json.loads(run_python(command, cwd=place).stdout)["bytes_a_round"]["ist"]
    train(place, "bytes", "train.rounds=12")
    received = [row["bytes_received"] for row in rows_of(place, "bytes") if row["kind"] == "round"]
    assert np.mean(received[1:]) / 2 == pytest.approx(planned["expected_a_rank"], rel=0.05)
    assert np.mean(received[1:]) == pytest.approx(planned["exact_all_ranks"]["mean"], rel=0.05)


def test_a_resume_on_more_ranks_or_by_local_sgd_has_what_was_saved(place):
    """Weights and numbers of labels go to other homes, and to whole copies."""
    settings = ["train.rounds=2", "checkpoint.every_rounds=1", "checkpoint.keep=9"]
    train(place, "moved", *settings)
    before = tensors_of(place, "moved", 2)
    for number, (ranks, algorithm) in enumerate([(3, "ist"), (2, "local_sgd"), (1, "ist")], 3):
        more = [f"train.algorithm={algorithm}", f"train.rounds={number}", "optimizer.lr=0"]
        train(place, "moved", *settings[1:], *more, ranks=ranks)
        after = tensors_of(place, "moved", number)
        for key in ("parameters/out.weight", "parameters/fc1.weight"):
            np.testing.assert_allclose(after[key], before[key], atol=1e-6, err_msg=key)
        numbers = "optimizer/squares/out.weight"
        assert after[numbers].shape == (400,)
        assert (after[numbers] >= before[numbers] * (1 - 1e-6)).all()
        assert not np.array_equal(after[numbers], before[numbers])  # of the labels of the round
        before = after


def test_a_round_that_is_given_up_gives_nothing_back(place):
    """A step that blows up leaves home blocks as the round before had them."""
    settings = ["train.on_nan=skip_round", "checkpoint.every_rounds=1", "train.rounds=2"]
    settings += ["optimizer.kind=sgd", "optimizer.lr=1e30", "evaluate.every_epochs=0"]
    train(place, "given-up", *settings, check=False)
    rounds = [row for row in rows_of(place, "given-up") if row["kind"] == "round"]
    assert rounds[0]["skipped"]
    start = tensors_of(place, "given-up", 1)
    assert not start["parameters/out.weight"].any()  # as it began


def test_a_part_of_the_rows_is_evaluated_but_at_the_end(place):
    settings = ["train.rounds=4", "evaluate.every_rounds=2", "evaluate.rows=40"]
    train(place, "part", *settings)
    found = [row for row in rows_of(place, "part") if row["kind"] == "evaluation"]
    assert [row["test_rows"] for row in found] == [40, 150]
    command = ["-m", "ist_hpc.evaluate", "runs/part", "--data", "data"]
    done = run_python(command, cwd=place)
    assert f"precision at 1: {found[-1]['test']['precision_at_1']:.4f}" in done.stdout
    # P@1 of 40 rows is a multiple of 1/40.
    share = found[0]["test"]["precision_at_1"] * 40
    assert share == pytest.approx(round(share))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("model.output_bias=true", "`model.output_bias` is averaged over the ranks each round"),
        ("model.output_norm=batch", "`model.loss: sampled_softmax` is computed in blocks"),
        ("model.negatives=0", "`model.negatives`"),
        ("model.dropout=1", "`model.dropout`"),
        ("train.algorithm=ddp", "`train.algorithm: ddp` wants a loss for autograd"),
    ],
)
def test_what_cannot_be_is_refused(place, setting, said):
    line = one_error_line(train(place, "refused", "train.rounds=1", setting, check=False))
    assert said in line
    assert not (place / "runs" / "refused").exists()


def test_classes_are_refused(place, trained):
    done = train(place, "refused", "train.rounds=1", f"data.path={trained.data}", check=False)
    assert "`model.loss: sampled_softmax` is of sets of labels" in one_error_line(done)

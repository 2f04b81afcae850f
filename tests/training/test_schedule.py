"""How long a run is, and when something is due."""

import pytest

from ist_hpc.checkpoint.read import Progress
from ist_hpc.config import loading
from ist_hpc.training.schedule import Schedule


def schedule(*settings: str, train_rows: int = 2000, ranks: int = 2) -> Schedule:
    config = loading.load(None, ["data.batch_size=10", "train.local_steps=5", *settings])
    return Schedule(config, train_rows, ranks)


def test_an_epoch_is_a_pass_by_all_ranks_together():
    assert schedule().samples_a_step == 20
    assert schedule().epoch(Progress(samples=3000)) == 1.5


@pytest.mark.parametrize(("rounds", "left"), [(0, 35), (3, 20), (7, 0), (9, 0)])
def test_rounds_are_of_local_steps(rounds, left):
    found = schedule("train.rounds=7", "train.epochs=null")
    assert found.steps_left(Progress(round=rounds)) == left


@pytest.mark.parametrize(
    ("epochs", "samples", "left"),
    [(1, 0, 100), (1, 1990, 1), (1, 2000, 0), (1, 2020, 0), (8.06, 16100, 1), (8.06, 16120, 0)],
)
def test_the_last_step_of_epochs_may_go_over_their_end(epochs, samples, left):
    """8.06 x 2000 is a trillionth more than 16,120 in floating point, which is no further step."""
    found = schedule(f"train.epochs={epochs}")
    assert found.steps_left(Progress(samples=samples)) == left


@pytest.mark.parametrize(
    ("settings", "round_index", "samples", "due"),
    [
        (["evaluate.every_rounds=3", "evaluate.every_epochs=0"], 3, 0, True),
        (["evaluate.every_rounds=3", "evaluate.every_epochs=0"], 4, 0, False),
        (["evaluate.every_epochs=0.5"], 4, 999, False),
        (["evaluate.every_epochs=0.5"], 4, 1000, True),
        (["evaluate.every_epochs=0.5"], 4, 1900, True),  # in the round, not at its end
        (["evaluate.every_epochs=0"], 4, 8000, False),
    ],
)
def test_evaluations_are_due_by_rounds_or_by_epochs(settings, round_index, samples, due):
    found = schedule("evaluate.every_rounds=0", *settings)
    progress = Progress(round=round_index, samples=samples)
    assert found.evaluation_due(progress, epoch_before=0.45) == due


@pytest.mark.parametrize(
    ("settings", "round_index", "since_last_s", "due"),
    [
        (["checkpoint.every_rounds=2", "checkpoint.every_minutes=0"], 4, 0, True),
        (["checkpoint.every_rounds=2", "checkpoint.every_minutes=0"], 5, 1e6, False),
        (["checkpoint.every_rounds=0", "checkpoint.every_minutes=2"], 5, 119, False),
        (["checkpoint.every_rounds=0", "checkpoint.every_minutes=2"], 5, 120, True),
    ],
)
def test_checkpoints_are_due_by_rounds_or_by_the_clock(settings, round_index, since_last_s, due):
    assert schedule(*settings).save_due(Progress(round=round_index), since_last_s) == due

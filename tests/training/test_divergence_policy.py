"""What is done with a round that is not finite, apart from any run."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

from ist_hpc.runtime.launch import AgreedRunError
from ist_hpc.runtime.meters import Meter
from ist_hpc.training.divergence import DivergencePolicy


class Algorithm:
    """As rank 0 of three sees it; `others` is whether the other two ranks are fit."""

    rank = 0

    def __init__(self, finite: bool = True, others: tuple[bool, bool] = (True, True)) -> None:
        self.done: list[str] = []
        self.meter = Meter()
        self.comm = SimpleNamespace(allgather=lambda own: [own, *others])
        self.is_finite = lambda: finite

    def __getattr__(self, name: str):
        return lambda: self.done.append(name)


def test_nothing_is_kept_where_no_round_may_be_skipped():
    algorithm = Algorithm(finite=False)
    policy = DivergencePolicy(algorithm, may_skip=False)
    policy.keep()
    assert policy.undo_if_unfit(diverged=True) == []
    assert algorithm.done == []


@pytest.mark.parametrize(
    ("diverged", "finite", "others", "unfit"),
    [
        (False, True, (True, True), []),
        (True, True, (True, True), [0]),
        (False, False, (True, True), [0]),
        (False, True, (True, False), [2]),
        (True, True, (False, False), [0, 1, 2]),
    ],
)
def test_a_round_is_undone_if_any_rank_is_unfit(diverged, finite, others, unfit):
    algorithm = Algorithm(finite, others)
    policy = DivergencePolicy(algorithm, may_skip=True)
    policy.keep()
    assert policy.undo_if_unfit(diverged) == unfit
    assert algorithm.done == ["keep_round", "undo_round" if unfit else "forget_kept"]


def test_a_round_that_is_fit_needs_no_answer():
    DivergencePolicy(Algorithm(), may_skip=False).answer(1, [], [], None)


def test_the_end_of_a_run_names_ranks_and_the_newest_checkpoint():
    policy = DivergencePolicy(Algorithm(), may_skip=False)
    with pytest.raises(AgreedRunError) as raised:
        policy.answer(5, [1, 2], [], Path("runs/a/checkpoints/round-00000004"))
    assert str(raised.value) == (
        "the loss of round 5 is not finite or above 1e9 (rank 1, 2); the newest checkpoint is "
        "runs/a/checkpoints/round-00000004. A lower optimizer.lr usually helps, and train.on_nan: "
        "skip_round gives single rounds up"
    )
    with pytest.raises(AgreedRunError, match=r"\(rank 0, 1, 2, 3, 4, 5, 6, 7, ...\); nothing was"):
        policy.answer(5, list(range(9)), [], None)


def test_ten_rounds_in_a_row_are_too_many(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("ist_hpc"), "propagate", True)
    policy = DivergencePolicy(Algorithm(), may_skip=True)
    for number in range(1, 10):
        policy.answer(number, [], [2], None)
    policy.answer(10, [], [], None)  # a good one, from which it counts anew
    for number in range(11, 20):
        policy.answer(number, [], [2], None)
    assert len(caplog.messages) == 18
    assert caplog.messages[0] == (
        "a weight of round 1 is not finite or above 1e9 (rank 2); the round is given up"
    )
    with pytest.raises(AgreedRunError, match="as were those of 10 rounds in a row"):
        policy.answer(20, [], [2], None)

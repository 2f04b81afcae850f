"""What happens to a run whose loss or weights are not finite."""

import json
import re

import numpy as np
import pytest

from ist_hpc.checkpoint.folder import newest_first
from tests.helpers.checkpoints import tensors
from tests.helpers.launching import run_ranks
from tests.helpers.small_runs import SMALL, command, rounds

pytestmark = pytest.mark.long


class TestDivergence:
    BAD = """
import sys
from ist_hpc.training import algorithms
from ist_hpc.train import main
build = algorithms.build
def spoilt(*args):
    algorithm = build(*args)
    begin, whole, bad = algorithm.begin_round, algorithm.step, False
    def begin_round(index, *ahead):
        nonlocal bad
        bad = algorithm.rank == 1 and index in ROUNDS
        return begin(index, *ahead)
    def step(*args):
        return whole(*args) * (float("nan") if bad else 1)
    algorithm.begin_round, algorithm.step = begin_round, step
    return algorithm
algorithms.build = spoilt
sys.exit(main(sys.argv[1:]))
"""

    def bad(self, place, rounds, *words, **options):
        script = self.BAD.replace("ROUNDS", repr(rounds))
        return run_ranks(3, ["-c", script, *words[2:]], place, **options)

    def test_stops_before_anything_is_saved(self, place):
        words = command("n", *SMALL, "train.rounds=9", "checkpoint.every_rounds=2")
        done = self.bad(place, [4, 5], *words, check=False)
        assert done.returncode == 1
        (line,) = [line for line in done.stderr.splitlines() if "train: " in line]
        assert re.match(
            r"[\d-]+ [\d:]+ train: failed: the loss of round 5 is not finite or above", line
        )
        assert "(rank 1); the newest checkpoint is" in line
        assert "round-00000004" in line
        assert (place / "runs/n/STATUS").read_text().startswith("failed: the loss of round 5")
        newest = newest_first(place / "runs/n/checkpoints")[0]
        assert newest.name == "round-00000004"
        assert all(np.isfinite(values).all() for values in tensors(newest).values())

    def test_a_learning_rate_that_is_too_high_stops_the_run(self, place):
        done = run_ranks(
            2, command("d", *SMALL, "train.rounds=9", "optimizer.lr=1e30"), place, check=False
        )
        assert done.returncode == 1
        assert done.stderr.count("not finite") == 1
        assert newest_first(place / "runs/d/checkpoints") == []

    @pytest.mark.parametrize(
        "rule",
        [
            [],
            ["optimizer.kind=adam", "optimizer.momentum=0"],
            ["model.output_bias=true", "model.output_norm=none"],
            ["train.algorithm=local_sgd"],
            ["train.algorithm=data_parallel"],
        ],
        ids=["momentum", "adam", "a shared bias", "local_sgd", "data_parallel"],
    )
    def test_a_round_that_is_skipped_leaves_no_trace(self, place, rule):
        settings = [*SMALL, *rule, "train.on_nan=skip_round", "checkpoint.every_rounds=1"]
        words = command("k", *settings, "checkpoint.keep=9", "train.rounds=4")
        done = self.bad(place, [2], *words)
        assert done.stderr.count("the round is given up") == 1
        of_round = [place / f"runs/k/checkpoints/round-{number:08d}" for number in range(5)]
        kept = ("parameters/", "optimizer/")
        before, after, later = (tensors(of_round[number]) for number in (2, 3, 4))
        for key in before:
            if key.startswith(kept):
                assert np.array_equal(before[key], after[key]), key
        assert any(not np.array_equal(after[key], later[key]) for key in after)
        rows = [json.loads(line) for line in (place / "runs/k/metrics.jsonl").open()]
        skipped = [row["round"] for row in rows if row.get("skipped")]
        assert skipped == [3]

    BAD_WEIGHT = """
import sys
from ist_hpc.training.algorithms.ist import IndependentSubnets
from ist_hpc.train import main
whole = IndependentSubnets.step
def step(self, features, labels, lr, trained):
    loss = whole(self, features, labels, lr, trained)
    if self.rank == 1 and trained % 6 == 5:  # the last step of the round: no loss shows it
        next(iter(self._weights.values()))[0, 0] = float("inf")
    return loss
IndependentSubnets.step = step
sys.exit(main(sys.argv[1:]))
"""

    def test_a_weight_that_is_not_finite_skips_the_round_too(self, place):
        words = command("w", *SMALL, "train.on_nan=skip_round", "train.rounds=40")
        done = run_ranks(2, ["-c", self.BAD_WEIGHT, *words[2:]], place, check=False)
        assert done.returncode == 1
        assert "a weight of round 1 is not finite" in done.stderr
        assert rounds(place / "runs/w") == 10

    def test_a_weight_that_is_not_finite_is_not_saved(self, place):
        words = command("s", *SMALL, "train.rounds=40", "checkpoint.every_rounds=1")
        done = run_ranks(2, ["-c", self.BAD_WEIGHT, *words[2:]], place, check=False)
        assert done.returncode == 1
        assert "after round 1 parameters/fc1.weight of rank" in done.stderr
        assert "has numbers that are not finite; it is not saved" in done.stderr
        assert newest_first(place / "runs/s/checkpoints") == []

    def test_ten_skipped_rounds_in_a_row_end_the_run(self, place):
        words = command("t", *SMALL, "train.on_nan=skip_round", "train.rounds=40")
        done = self.bad(place, list(range(3, 40)), *words, check=False)
        assert done.returncode == 1
        assert rounds(place / "runs/t") == 3 + 10

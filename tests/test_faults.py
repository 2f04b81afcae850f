"""What happens to a run that is asked to stop, loses a rank, hangs, diverges or cannot write."""

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from ist_hpc import show
from ist_hpc.checkpoint_read import Checkpoint, newest_first
from ist_hpc.errors import EXIT_GO_ON
from ist_hpc.runfolder import RunFolder
from tests.checkpoints import same_tensors, tensors
from tests.launching import ROOT, one_error_line, run_python, run_ranks, started

SMALL = ["data.path=digits", "model.hidden=[21,14]", "train.local_steps=6", "seed=4"]
SMALL += ["optimizer.momentum=0.9", "evaluate.every_epochs=0"]
LONG = [*SMALL, "train.rounds=100000"]


@pytest.fixture
def place(trained, tmp_path):
    shutil.copytree(trained.data, tmp_path / "digits")
    return tmp_path


def command(name, *settings, resume=False):
    return ["-m", "ist_hpc.train", "--name", name, *(["--resume"] * resume), "--set", *settings]


def rounds(run: Path) -> int:
    """Whole rounds in the metrics so far."""
    with contextlib.suppress(FileNotFoundError):
        return sum('"kind": "round"' in line for line in (run / "metrics.jsonl").open())
    return 0


def wait_for(is_so, limit_s: float = 60.0) -> None:
    end_s = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < end_s, f"not within {limit_s:g} s"
        time.sleep(0.05)


def ranks_of(process: subprocess.Popen[str]) -> dict[int, int]:
    """Process by rank of what mpirun started."""
    found = {}
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            words = environ.read_bytes().split(b"\0")
            stat = (environ.parent / "stat").read_text().rpartition(")")[2].split()
            for word in words:
                if word.startswith(b"OMPI_COMM_WORLD_RANK=") and int(stat[3]) == process.pid:
                    found[int(word.partition(b"=")[2])] = int(environ.parent.name)
    return found


class TestAskedToStop:
    @pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
    def test_saves_after_the_round_and_goes_on_as_if_never_stopped(self, place, number):
        run = place / "runs/s"
        with started(2, command("s", *LONG), place) as process:
            wait_for(lambda: rounds(run) >= 2)
            os.kill(ranks_of(process)[1], number)
            _, stderr = process.communicate(timeout=60)
        assert process.returncode == EXIT_GO_ON
        assert "Traceback" not in stderr
        (saved,) = newest_first(run / "checkpoints")
        done = int(saved.name.removeprefix("round-"))
        status = (run / "STATUS").read_text()
        assert status == f"stopped: {signal.Signals(number).name}, saved after round {done}\n"
        assert stderr.count(status.strip()) == 1

        if number != signal.SIGUSR1:
            return  # what is saved does not depend on the signal
        more = f"train.rounds={done + 3}"
        run_ranks(2, command("s", *LONG, more, resume=True), place)
        run_ranks(2, command("whole", *LONG, more), place)
        last = f"checkpoints/round-{done + 3:08d}"
        assert same_tensors(run / last, place / "runs/whole" / last)
        start = json.loads((run / "run.json").read_text())["starts"][1]
        assert start["before"] == status.strip()

    SLOW_EVALUATION = """
import sys, time
from ist_hpc.evaluation import HomeNetwork
from ist_hpc.train import main
whole = HomeNetwork.predict
def predict(self, *args):
    for found in whole(self, *args):
        time.sleep(0.2)
        yield found
HomeNetwork.predict = predict
sys.exit(main(sys.argv[1:]))
"""

    def test_gives_an_evaluation_up(self, place):
        words = command("e", *LONG, "evaluate.every_rounds=2", "evaluate.batch_rows=2")
        run = place / "runs/e"
        with started(2, ["-c", self.SLOW_EVALUATION, *words[2:]], place) as process:
            wait_for(lambda: rounds(run) >= 2)
            time.sleep(1)
            os.kill(ranks_of(process)[0], signal.SIGUSR1)
            _, stderr = process.communicate(timeout=20)  # all of it would take 36 s
        assert process.returncode == EXIT_GO_ON
        assert "the evaluation was given up" in stderr
        (saved,) = newest_first(run / "checkpoints")
        assert saved.name == "round-00000002"
        assert not any("test" in json.loads(line) for line in (run / "metrics.jsonl").open())

        settings = [*words[5:], "train.rounds=3", "evaluate.batch_rows=512"]
        run_ranks(2, command("e", *settings, resume=True), place)
        tested = [
            row["round"] for row in map(json.loads, (run / "metrics.jsonl").open()) if "test" in row
        ]
        assert tested == [2, 3]  # what was given up was made up for

    def test_gives_the_evaluation_that_it_owes_up_again(self, place):
        """And does not save the same round again."""
        words = command("e", *LONG, "evaluate.every_rounds=2", "evaluate.batch_rows=2")
        run = place / "runs/e"
        for resume in ([], ["--resume"]):
            with started(2, ["-c", self.SLOW_EVALUATION, *words[2:], *resume], place) as process:
                wait_for(lambda: self.evaluating(process, run))
                os.kill(ranks_of(process)[0], signal.SIGUSR1)
                _, stderr = process.communicate(timeout=20)
            assert process.returncode == EXIT_GO_ON
            assert "the evaluation was given up" in stderr
            (saved,) = newest_first(run / "checkpoints")
            assert saved.name == "round-00000002"
        rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
        assert [row["seconds"]["save"] > 0 for row in rows].count(True) == 1

    @staticmethod
    def evaluating(process, run):
        """Whether the start that has begun is in the evaluation of the second round."""
        if rounds(run) < 2 or (run / "STATUS").read_text() != "running\n":
            return False
        time.sleep(1)
        return True

    DURING_A_SAVE = """
import os, signal, sys
from ist_hpc import checkpoint
from ist_hpc.train import main
whole = checkpoint.save
def save(*args):
    os.kill(os.getpid(), signal.SIGUSR1)
    return whole(*args)
checkpoint.save = save
sys.exit(main(sys.argv[1:]))
"""

    def test_during_a_save_it_stops_after_that(self, place):
        words = command("d", *LONG, "checkpoint.every_rounds=2")
        done = run_python(["-c", self.DURING_A_SAVE, *words[2:]], place, check=False)
        assert done.returncode == EXIT_GO_ON
        assert (place / "runs/d/STATUS").read_text() == "stopped: SIGUSR1, saved after round 2\n"
        assert rounds(place / "runs/d") == 2

    DURING_THE_START = """
import os, signal, sys
from ist_hpc import starting
from ist_hpc.train import main
whole = starting.check_shards
def check_shards(dataset, config, rank, ranks):
    if rank == ranks - 1:
        os.kill(os.getpid(), signal.SIGUSR1)
    return whole(dataset, config, rank, ranks)
starting.check_shards = check_shards
sys.exit(main(sys.argv[1:]))
"""

    def test_during_the_start_it_stops_before_a_round(self, place):
        words = command("b", *LONG)
        done = run_ranks(2, ["-c", self.DURING_THE_START, *words[2:]], place, check=False)
        assert done.returncode == EXIT_GO_ON
        run = place / "runs/b"
        assert (run / "STATUS").read_text() == "stopped: SIGUSR1, before its first round\n"
        assert rounds(run) == 0
        assert newest_first(run / "checkpoints") == []

    def test_by_a_signal_to_mpirun_it_has_the_time_that_mpirun_gives(self, place, monkeypatch):
        """Open MPI's mpirun sends SIGKILL a second after SIGTERM, unless it is told otherwise."""
        monkeypatch.setenv("OMPI_MCA_odls_base_sigkill_timeout", "6")
        slow = self.DURING_A_SAVE.replace("os.kill(os.getpid(), signal.SIGUSR1)", "time.sleep(3)")
        run = place / "runs/m"
        script = slow.replace("import os,", "import time, os,")
        with started(2, ["-c", script, *command("m", *LONG)[2:]], place) as process:
            wait_for(lambda: rounds(run) >= 2)
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
            wait_for(lambda: RunFolder(run).owner() is None)
        (saved,) = newest_first(run / "checkpoints")
        assert (run / "STATUS").read_text() == (
            f"stopped: SIGTERM, saved after round {number_of(saved.name)}\n"
        )

    def test_a_round_longer_than_the_warning_time_is_warned_about(self, place):
        settings = [*SMALL, "train.rounds=3", "runtime.lead_time_s=0.001"]
        done = run_python(command("w", *settings), place)
        assert done.stderr.count("sbatch --signal") == 1

    def test_a_checkpoint_longer_than_the_time_of_silence_is_warned_about(self, place):
        slow = self.DURING_A_SAVE.replace("os.kill(os.getpid(), signal.SIGUSR1)", "time.sleep(2)")
        settings = [*SMALL, "train.rounds=3", "checkpoint.every_rounds=1", "runtime.silence_s=3"]
        words = command("w", *settings)[2:]
        done = run_python(["-c", slow.replace("import os,", "import time,"), *words], place)
        assert done.stderr.count("raise runtime.silence_s") == 1


class TestARankThatDies:
    def test_ends_the_job_and_the_next_start_goes_on(self, place, capsys):
        run, settings = place / "runs/k", [*LONG, "checkpoint.every_rounds=2"]
        with started(3, command("k", *settings), place) as process:
            wait_for(lambda: newest_first(run / "checkpoints") and rounds(run) >= 5)
            begin_s = time.monotonic()
            os.kill(ranks_of(process)[1], signal.SIGKILL)
            process.communicate(timeout=60)
        assert time.monotonic() - begin_s < 60
        assert process.returncode != 0
        assert (run / "STATUS").read_text() == "running\n"
        wait_for(lambda: RunFolder(run).owner() is None)  # mpirun does not wait for all ranks
        assert show.main([str(run)]) == 0
        assert "ended without a word: killed" in capsys.readouterr().out

        saved = int(newest_first(run / "checkpoints")[0].name.removeprefix("round-"))
        more = f"train.rounds={saved + 2}"
        done = run_ranks(3, command("k", *settings, more, resume=True), place)
        assert "the run before this one ended without a word" in done.stderr
        assert f"from round {saved}" in done.stderr
        run_ranks(3, command("whole", *settings, more), place)
        last = f"checkpoints/round-{saved + 2:08d}"
        assert same_tensors(run / last, place / "runs/whole" / last)

    HANGS = """
import sys, time
from ist_hpc.algorithms.ist import IndependentSubnets
from ist_hpc.train import main
whole = IndependentSubnets.step
def step(self, features, labels, lr, trained):
    if self.rank == 1 and trained == 13:
        time.sleep(600)
    return whole(self, features, labels, lr, trained)
IndependentSubnets.step = step
sys.exit(main(sys.argv[1:]))
"""

    def test_that_hangs_is_given_up_after_the_time_of_silence(self, place):
        words = command("h", *LONG, "runtime.silence_s=3")
        done = run_ranks(3, ["-c", self.HANGS, *words[2:]], place, timeout_s=60, check=False)
        assert done.returncode == 1
        assert done.stderr.count("train: failed: ") == 1
        status = (place / "runs/h/STATUS").read_text()
        assert re.match(
            r"failed: rank \d of 3 on \S+ has come to no end of `\w+` for \d+ s", status
        )

    SLOW = HANGS.replace("if self.rank == 1 and trained == 13", "if self.rank == 1").replace(
        "600", "0.3"
    )

    def test_slow_steps_are_no_silence(self, place):
        """And checkpoints are due by the clock."""
        saving = ["checkpoint.every_minutes=0.05", "checkpoint.keep=9"]
        words = command("q", *SMALL, *saving, "train.rounds=7", "runtime.silence_s=5")
        begin_s = time.monotonic()
        run_ranks(2, ["-c", self.SLOW, *words[2:]], place)
        assert time.monotonic() - begin_s > 10  # all of it takes longer
        assert (place / "runs/q/STATUS").read_text() == "finished\n"
        saved = [number_of(path.name) for path in newest_first(place / "runs/q/checkpoints")]
        assert 3 <= len(saved) <= 5  # a round takes 1.8 s or more
        assert saved[0] == 7

    def test_a_run_that_was_suspended_goes_on(self, place):
        run = place / "runs/u"
        with started(2, command("u", *LONG, "runtime.silence_s=3"), place) as process:
            wait_for(lambda: rounds(run) >= 2)
            ranks = ranks_of(process)
            for number in (signal.SIGSTOP, signal.SIGCONT):
                for pid in ranks.values():
                    os.kill(pid, number)
                time.sleep(5)
            done = rounds(run)
            wait_for(lambda: rounds(run) > done)
            os.kill(ranks[0], signal.SIGUSR1)
            process.communicate(timeout=60)
        assert process.returncode == EXIT_GO_ON

    IN_HOROVOD = """
import sys, time
from ist_hpc.shared import SharedWeights
from ist_hpc.train import main
whole = SharedWeights.average
def average(self, *args):
    if self._hvd.rank() == 1:
        time.sleep(600)
    return whole(self, *args)
SharedWeights.average = average
sys.exit(main(sys.argv[1:]))
"""

    def test_that_horovod_waits_for_is_given_up_too(self, place):
        shared = ["model.output_bias=true", "model.output_norm=none", "runtime.silence_s=3"]
        words = command("v", *LONG, *shared)
        done = run_ranks(2, ["-c", self.IN_HOROVOD, *words[2:]], place, timeout_s=60, check=False)
        assert done.returncode == 1
        assert (place / "runs/v/STATUS").read_text().startswith("failed: rank ")

    MISSING = """
import os, sys, time
if os.environ["OMPI_COMM_WORLD_RANK"] == "1":
    time.sleep(600)
from ist_hpc import runtime
runtime._START_S = 3.0
from ist_hpc.evaluate import main
sys.exit(main(sys.argv[1:]))
"""

    def test_that_never_comes_is_given_up_at_the_start_of_mpi(self, place):
        begin_s = time.monotonic()
        words = ["-c", self.MISSING, "runs/x", "--data", "digits"]
        done = run_ranks(2, words, place, timeout_s=60, check=False)
        assert done.returncode != 0
        assert done.stderr.startswith("Timeout (0:00:03)!")
        assert "in launch" in done.stderr  # where it waited
        assert time.monotonic() - begin_s < 30

    SILENT = """
import sys, time, types
from ist_hpc import evaluate
from ist_hpc.evaluation import HomeNetwork
whole = HomeNetwork.outputs
def outputs(self, features):
    if self.comm.Get_rank() == 1:
        time.sleep(600)
    return whole(self, features)
HomeNetwork.outputs = outputs
evaluate.RuntimeConfig = lambda: types.SimpleNamespace(silence_s=2.0)
sys.exit(evaluate.main(sys.argv[1:]))
"""

    def test_that_hangs_in_an_evaluation_is_given_up(self, trained, place):
        words = [str(trained.folder), "--data", "digits"]
        done = run_ranks(2, ["-c", self.SILENT, *words], place, timeout_s=60, check=False)
        assert done.returncode == 1
        assert "has come to no end of `evaluate`" in done.stderr

    ABORT = """
import ctypes, sys
from types import SimpleNamespace
from ist_hpc import lastresort, watchdog
from ist_hpc.meters import Meter
lastresort.ABORT_S = 1.0
hanging = ctypes.PyDLL(None)  # which keeps Python's lock, as MPI may
comm = SimpleNamespace(
    Get_rank=lambda: 0, Get_size=lambda: 2, Abort=lambda code: hanging.sleep(60)
)
with watchdog.Watchdog(comm, Meter(), 0.1, print):
    sys.modules["time"].sleep(60)
"""

    def test_ends_itself_where_mpi_cannot_abort(self, place):
        begin_s = time.monotonic()
        done = run_python(["-c", self.ABORT], place, check=False)
        assert done.returncode == 1
        assert "has come to no end of `start`" in done.stdout
        assert time.monotonic() - begin_s < 30

    NO_MEMORY = """
import sys
from ist_hpc import starting
from ist_hpc.train import main
class Trainer(starting.Trainer):
    def __init__(self, *args, **options):
        raise MemoryError("no room for the window")
starting.Trainer = Trainer
sys.exit(main(sys.argv[1:]))
"""

    def test_as_it_starts_is_what_the_status_says(self, place):
        run_python(command("n", *SMALL, "train.rounds=1"), place)
        words = command("n", *LONG, resume=True)
        done = run_python(["-c", self.NO_MEMORY, *words[2:]], place, check=False)
        assert done.returncode == 1
        status = (place / "runs/n/STATUS").read_text()
        assert status == "failed: rank 0: no room for the window\n"


class TestTheFolder:
    def test_has_one_run_at_a_time(self, place):
        with started(2, command("l", *LONG), place) as process:
            wait_for(lambda: rounds(place / "runs/l") >= 1)
            done = run_ranks(2, command("l", *LONG, resume=True), place, check=False)
            line = one_error_line(done)
            assert "another run is writing into runs/l (process" in line
            assert process.poll() is None
            wait_for(lambda: rounds(place / "runs/l") >= 5)
            process.send_signal(signal.SIGUSR1)
            process.communicate(timeout=60)
        assert process.returncode == EXIT_GO_ON


class TestDivergence:
    BAD = """
import sys
from ist_hpc import algorithms
from ist_hpc.train import main
build = algorithms.build
def spoilt(*args):
    algorithm = build(*args)
    begin, whole, bad = algorithm.begin_round, algorithm.step, False
    def begin_round(index):
        nonlocal bad
        bad = algorithm.rank == 1 and index in ROUNDS
        return begin(index)
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
from ist_hpc.algorithms.ist import IndependentSubnets
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


class TestAFullDisk:
    @pytest.mark.parametrize("size_k", [440, 560, 680])
    def test_ends_the_run_with_its_reason_and_the_old_checkpoint(self, place, size_k):
        """It fills up at another place of a checkpoint each time."""
        if os.geteuid() != 0:
            pytest.skip("a small file system of its own needs root")
        disk = place / "runs"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_k}k", "none", disk], check=True)
        try:
            settings = [*SMALL, "train.rounds=9", "checkpoint.every_rounds=1", "checkpoint.keep=50"]
            done = run_ranks(
                2, command("f", *settings, "model.hidden=[120,90]"), place, check=False
            )
            assert done.returncode == 1
            assert done.stderr.count("No space left on device") == 1
            assert "Traceback" not in done.stderr
            status = (disk / "f/STATUS").read_text()
            assert re.match(r"failed: the checkpoint of round \d cannot be saved: No space", status)
            found = newest_first(disk / "f/checkpoints")
            assert found
            for folder in found:
                checkpoint = Checkpoint(folder)
                checkpoint.check_files(checkpoint.files)
            assert [
                path for path in (disk / "f/checkpoints").iterdir() if path.name[0] == "."
            ] == []
        finally:
            subprocess.run(["umount", disk], check=True)


class TestAFolderThatIsReadOnly:
    def test_is_bad_input(self, place):
        if os.geteuid() != 0:
            pytest.skip("a file system that is read only needs root")
        disk = place / "runs"
        disk.mkdir()
        run_ranks(2, command("r", *SMALL, "train.rounds=1"), place)
        subprocess.run(["mount", "--bind", disk, disk], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,bind,ro", disk], check=True)
            done = run_ranks(2, command("r", *SMALL, resume=True), place, check=False)
            assert "cannot write into the run folder runs/r: Read-only" in one_error_line(done)
        finally:
            subprocess.run(["umount", disk], check=True)


class TestKilledInASave:
    SETTINGS = (*SMALL, "checkpoint.every_rounds=1", "checkpoint.keep=2")
    KILLING = str(ROOT / "tests" / "killing.py")

    def test_at_every_moment_the_last_good_checkpoint_is_used(self, place):
        """On one rank. Each start trains a round, and is killed one moment later in its save."""
        run, goal = place / "runs/k", 200
        run_python(command("k", *self.SETTINGS, "train.rounds=2"), place)
        words = command("k", *self.SETTINGS, f"train.rounds={goal}", resume=True)[2:]
        done = run_python([self.KILLING, "every", "--runs", "runs", *words], place, timeout_s=300)
        ended = [line.split() for line in done.stdout.splitlines() if line[0].isdecimal()]
        *killed, (_, code, last) = ended
        assert [int(moment) for moment, _, _ in killed] == list(range(1, len(killed) + 1))
        assert len(killed) >= 25
        assert {code for _, code, _ in killed} == {str(-signal.SIGKILL)}
        newest = [2, *(number_of(name) for _, _, name in killed)]
        steps = [after - before for before, after in itertools.pairwise(newest)]
        assert set(steps) == {0, 1}  # the one before, or from some moment on the new one
        assert steps == sorted(steps)
        assert (code, number_of(last)) == ("0", goal)
        self.is_as_never_killed(place, run, goal, ranks=1)

    def test_on_two_ranks(self, place):
        run, goal = place / "runs/k", 8
        counted = [self.KILLING, "0", "0", *command("c", *self.SETTINGS, "train.rounds=1")[2:]]
        run_ranks(2, counted, place)
        first, second = (int((place / f"moments-{rank}").read_text()) for rank in (0, 1))
        run_ranks(2, command("k", *self.SETTINGS, "train.rounds=2"), place)
        for rank, moment in ((0, 1), (0, first // 2), (0, first), (1, second // 2), (1, second)):
            before = self.newest(run)
            words = command("k", *self.SETTINGS, f"train.rounds={goal}", resume=True)[2:]
            done = run_ranks(2, [self.KILLING, str(rank), str(moment), *words], place, check=False)
            assert done.returncode != 0
            assert self.newest(run) - before in (0, 1), (rank, moment)
        run_ranks(2, command("k", *self.SETTINGS, f"train.rounds={goal}", resume=True), place)
        self.is_as_never_killed(place, run, goal, ranks=2)

    def is_as_never_killed(self, place, run, goal, ranks):
        run_ranks(ranks, command("whole", *self.SETTINGS, f"train.rounds={goal}"), place)
        last = f"checkpoints/round-{goal:08d}"
        assert same_tensors(run / last, place / "runs/whole" / last)
        names = sorted(path.name for path in (run / "checkpoints").iterdir())
        assert names == [f"round-{goal - 1:08d}", f"round-{goal:08d}"]

    @staticmethod
    def newest(run: Path) -> int:
        """The round of the newest checkpoint, which must be whole."""
        folder = newest_first(run / "checkpoints")[0]
        checkpoint = Checkpoint(folder)
        checkpoint.check_files(checkpoint.files)
        return number_of(folder.name)


def number_of(name: str) -> int:
    """Of round-00000012 the 12."""
    return int(name.removeprefix("round-"))

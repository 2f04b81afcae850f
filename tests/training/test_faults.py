"""What happens to a run that loses a rank or hangs, and to two in one folder."""

import os
import re
import signal
import time

import pytest

from ist_hpc import show
from ist_hpc.checkpoint.folder import newest_first
from ist_hpc.common.errors import EXIT_GO_ON
from ist_hpc.runtime.run_folder.folder import RunFolder
from tests.helpers.checkpoints import same_tensors
from tests.helpers.launching import one_error_line, run_python, run_ranks, started
from tests.helpers.small_runs import LONG, SMALL, command, number_of, ranks_of, rounds, wait_for

pytestmark = pytest.mark.long


class TestARankThatDies:
    def test_ends_the_job_and_the_next_start_goes_on(self, place, capsys):
        run, settings = place / "runs/k", [*LONG, "checkpoint.every_rounds=2"]
        with started(3, command("k", *settings), place, fresh=True) as process:
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
from ist_hpc.training.algorithms.ist import IndependentSubnets
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
            r"failed: rank \d of 3 on \S+ has made no progress in `\w+` for \d+ s", status
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
        with started(2, command("u", *LONG, "runtime.silence_s=3"), place, fresh=True) as process:
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

    IN_AN_AVERAGE = """
import sys, time
if sys.argv.pop(1) == "without":
    sys.modules["horovod"] = None
from mpi4py import MPI
from ist_hpc.training.averaging import Averages
from ist_hpc.train import main
whole = Averages.average
def average(self, *args):
    if MPI.COMM_WORLD.Get_rank() == 1:
        time.sleep(600)
    return whole(self, *args)
Averages.average = average
sys.exit(main(sys.argv[1:]))
"""

    @pytest.mark.parametrize("horovod", ["with", "without"])
    def test_that_an_average_waits_for_is_given_up_too(self, place, horovod):
        shared = ["model.output_bias=true", "model.output_norm=none", "runtime.silence_s=3"]
        words = command("v", *LONG, *shared)
        words = ["-c", self.IN_AN_AVERAGE, horovod, *words[2:]]
        done = run_ranks(2, words, place, timeout_s=60, check=False)
        assert done.returncode == 1
        assert (place / "runs/v/STATUS").read_text().startswith("failed: rank ")

    MISSING = """
import os, sys, time
if os.environ["OMPI_COMM_WORLD_RANK"] == "1":
    time.sleep(600)
from ist_hpc.runtime import launch
launch._START_S = 3.0
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

    STAYING = """
import os, sys, time
from ist_hpc.runtime import ending
from ist_hpc.train import main
ending._END_S = 3.0
code = main(sys.argv[1:])
if os.environ["OMPI_COMM_WORLD_RANK"] == "1":
    time.sleep(600)
ending.end(code)
"""

    def test_that_never_comes_is_given_up_at_the_end_of_mpi(self, place):
        words = command("e", *SMALL, "train.rounds=1")
        done = run_ranks(2, ["-c", self.STAYING, *words[2:]], place, timeout_s=60, check=False)
        assert done.returncode == 1
        assert "Timeout (0:00:03)!" in done.stderr
        assert "in end" in done.stderr
        assert (place / "runs/e/STATUS").read_text() == "finished\n"

    SILENT = """
import sys, time, types
from ist_hpc import evaluate
from ist_hpc.training.evaluation.full_network import HomeNetwork
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
        assert "has made no progress in `evaluate`" in done.stderr

    ABORT = """
import ctypes, sys
from types import SimpleNamespace
from ist_hpc.runtime import last_resort, watchdog
from ist_hpc.runtime.meters import Meter
last_resort.ABORT_S = 1.0
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
        assert "has made no progress in `start`" in done.stdout
        assert time.monotonic() - begin_s < 30

    NO_MEMORY = """
import sys
from ist_hpc.training import start
from ist_hpc.train import main
class Trainer(start.Trainer):
    def __init__(self, *args, **options):
        raise MemoryError("no room for the window")
start.Trainer = Trainer
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

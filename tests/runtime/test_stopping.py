"""A run that is asked to stop saves and ends, whatever it is doing."""

import json
import os
import signal
import time

import pytest

from ist_hpc.checkpoint.folder import newest_first
from ist_hpc.common.errors import EXIT_GO_ON
from ist_hpc.runtime.run_folder.folder import RunFolder
from tests.helpers.checkpoints import same_tensors
from tests.helpers.launching import run_python, run_ranks, started
from tests.helpers.small_runs import LONG, SMALL, command, number_of, ranks_of, rounds, wait_for

pytestmark = pytest.mark.long


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
from ist_hpc.training.evaluation.full_network import HomeNetwork
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

    def test_gives_up_the_evaluation_of_a_finished_run(self, place):
        """Its result of before stays; it is evaluated by the next start."""
        run = place / "runs/f"
        settings = [*SMALL, "train.rounds=2"]
        run_ranks(2, command("f", *settings), place)
        summary = (run / "summary.json").read_text()
        words = command("f", *settings, "evaluate.batch_rows=2", resume=True)
        with started(2, ["-c", self.SLOW_EVALUATION, *words[2:]], place) as process:
            wait_for(lambda: self.evaluating(process, run))
            os.kill(ranks_of(process)[0], signal.SIGUSR1)
            process.communicate(timeout=20)
        assert process.returncode == EXIT_GO_ON
        assert (run / "STATUS").read_text() == "stopped: SIGUSR1, saved after round 2\n"
        assert (run / "summary.json").read_text() == summary
        run_ranks(2, command("f", *settings, resume=True), place)
        assert (run / "STATUS").read_text() == "finished\n"

    @staticmethod
    def evaluating(process, run):
        """Whether the start that has begun is in the evaluation of the second round."""
        if rounds(run) < 2 or (run / "STATUS").read_text() != "running\n":
            return False
        time.sleep(1)
        return True

    DURING_A_SAVE = """
import os, signal, sys
from ist_hpc.checkpoint import write
from ist_hpc.train import main
whole = write.save
def save(*args):
    os.kill(os.getpid(), signal.SIGUSR1)
    return whole(*args)
write.save = save
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
from ist_hpc.training import start
from ist_hpc.train import main
whole = start.check_shards
def check_shards(dataset, config, rank, ranks):
    if rank == ranks - 1:
        os.kill(os.getpid(), signal.SIGUSR1)
    return whole(dataset, config, rank, ranks)
start.check_shards = check_shards
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
        words = ["-c", script, *command("m", *LONG)[2:]]
        with started(2, words, place, fresh=True) as process:
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
        assert "sbatch --signal" not in done.stderr

    def test_both_are_warned_about(self, place):
        slow = self.DURING_A_SAVE.replace("os.kill(os.getpid(), signal.SIGUSR1)", "time.sleep(2)")
        settings = [*SMALL, "train.rounds=2", "checkpoint.every_rounds=1", "runtime.silence_s=3"]
        words = command("w2", *settings, "runtime.lead_time_s=0.001")[2:]
        done = run_python(["-c", slow.replace("import os,", "import time,"), *words], place)
        assert done.stderr.count("raise runtime.silence_s") == 1
        assert done.stderr.count("sbatch --signal") == 1

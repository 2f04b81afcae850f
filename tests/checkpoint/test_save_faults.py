"""Saves that cannot be written, or are killed at any moment."""

import itertools
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from ist_hpc.checkpoint.folder import Checkpoint, newest_first
from tests.helpers.checkpoints import same_tensors
from tests.helpers.launching import ROOT, one_error_line, run_python, run_ranks
from tests.helpers.small_runs import SMALL, command, number_of

pytestmark = pytest.mark.long


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
    KILLING = str(ROOT / "tests" / "helpers" / "killing.py")

    def test_at_every_moment_the_last_good_checkpoint_is_used(self, place):
        """On one rank. Each start trains a round, and is killed one moment later in its save."""
        run, goal = place / "runs/k", 20  # few moments leave the new one, and so train further
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

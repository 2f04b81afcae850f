"""When a Slurm job queues itself again, and when not.

Small scripts stand in for Slurm's commands and for the training; test_slurm.py has the real ones.
"""

import re
import time
from datetime import datetime, timedelta

import pytest

from tests.job_site import (
    CANCELLED,
    NOT_PREEMPTED,
    PREEMPTED,
    PREEMPTED_EARLIER,
    TIME,
    TIME_IS_OVER,
    make_site,
)

# What the training does; its parent is the batch shell. It saves when it is told to.
ENDS_BY_ITSELF_THEN = "trap '' USR1; kill -USR1 $PPID; exit 75"
TOO_EARLY = "kill -USR1 $PPID; for _ in {1..500}; do sleep 1; done"
IS_ASKED_TO_STOP = "exit 75"
SAVES = "mkdir -p runs/n; echo 'stopped: SIGUSR1' >runs/n/STATUS; trap '' USR1; kill -USR1 $PPID"
SHELL_IS_ENDED = "kill -TERM $PPID; exit 75"
ENDED_WHILE_IT_SAVES = "kill -TERM $PPID; sleep 1; touch saved; exit 75"


@pytest.fixture
def site(tmp_path):
    return make_site(tmp_path)


class TestQueueAgain:
    """A job whose time is over queues itself again; one that somebody ended does not."""

    @pytest.mark.parametrize(
        "training", [TIME_IS_OVER, ENDS_BY_ITSELF_THEN], ids=["it saves", "it ends just then"]
    )
    def test_the_time_is_over(self, site, training):
        done = site.job("speech", TRAINING=training)
        assert (done.returncode, done.stderr) == (75, "")
        assert "the time is over and the run saved; queued again" in done.stdout
        assert site.was_queued_again()

    def test_mpirun_need_not_end_where_the_run_is_saved(self, site):
        """It stays 50 s after ranks that ended with a code."""
        staying = f"{SAVES}; exec >/dev/null 2>&1; /bin/sleep 30; exit 75"
        begin_s = time.monotonic()
        done = site.job("speech", LAUNCHER="mpirun", TRAINING=staying, NAME="n")
        assert time.monotonic() - begin_s < 25
        assert (done.returncode, done.stderr) == (75, "")
        assert site.was_queued_again()

    @pytest.mark.parametrize(("code", "again"), [(1, True), (2, False)])
    def test_a_run_that_is_saved_goes_on_though_mpi_came_to_no_end(self, site, code, again):
        """Not where the command was refused: STATUS is then of an earlier start."""
        done = site.job("speech", TRAINING=f"{SAVES}; exit {code}", NAME="n")
        assert done.returncode == (75 if again else code)
        assert site.was_queued_again() == again

    @pytest.mark.parametrize(
        ("left_s", "says"), [(119, False), (170, False), (60, True)], ids=["119", "170", "60"]
    )
    def test_the_warning_comes_later_than_the_lead_time(self, site, left_s, says):
        """Up to a minute earlier is Slurm's habit."""
        end = datetime.now() + timedelta(seconds=left_s)
        shown = NOT_PREEMPTED.replace("EndTime=2026-01-02T04", f"EndTime={end:%FT%T} Was=")
        done = site.job("speech", TRAINING=TIME_IS_OVER, SHOWN=shown)
        assert done.returncode == 75
        assert site.was_queued_again()
        lines = done.stderr.splitlines()
        assert len(lines) == says
        if says:
            assert re.match(
                rf"{TIME} job: warning: Slurm's warning came (60|5\d) s before", lines[0]
            )
            assert "sbatch --signal=B:USR1@120" in lines[0]

    def test_the_warning_comes_before_training(self, site):
        (site.folder / "speech_commands").mkdir()
        done = site.job("speech", DATA_ROOT="new", PREPARING="kill -USR1 $PPID")
        assert (done.returncode, done.stderr) == (75, "")
        assert site.got("train") == []
        assert site.was_queued_again()

    def test_the_warning_comes_before_the_ranks_listen(self, site):
        assert site.job("speech", TRAINING=TOO_EARLY).returncode == 138
        assert site.was_queued_again()

    @pytest.mark.parametrize(
        ("shown", "expected"),
        [
            (PREEMPTED, True),
            (NOT_PREEMPTED, False),
            (PREEMPTED_EARLIER, False),
            (CANCELLED, False),
        ],
        ids=["preempted", "not preempted", "preempted earlier", "cancelled"],
    )
    def test_the_ranks_are_asked_to_stop(self, site, shown, expected):
        """SIGTERM to the ranks alone is preemption, or somebody's wish."""
        done = site.job("speech", TRAINING=IS_ASKED_TO_STOP, SHOWN=shown)
        assert (done.returncode, done.stderr) == (75, "")
        assert site.was_queued_again() == expected
        assert not (site.folder / "runs/speech2/requeues").exists()

    def test_scancel_ends_it(self, site):
        done = site.job("speech", TRAINING=SHELL_IS_ENDED, SHOWN=CANCELLED)
        assert done.returncode == -15
        assert not site.was_queued_again()

    def test_scancel_under_mpirun_leaves_the_ranks_time_to_save(self, site):
        """Ranks of the first node end with the batch shell, and soon after SIGTERM to mpirun."""
        ours = {"LAUNCHER": "mpirun", "SHOWN": CANCELLED}
        done = site.job("speech", TRAINING=ENDED_WHILE_IT_SAVES, **ours)
        assert (done.returncode, done.stderr) == (75, "")
        assert (site.folder / "saved").exists()
        assert not site.was_queued_again()
        # the wait comes twice where a rank failed, and docs/reliability.md promises one minute
        assert 10 < int(site.value("launcher", "odls_base_sigkill_timeout")) < 30

    def test_a_run_that_fails_is_not_queued_again(self, site):
        training = TIME_IS_OVER.replace("exit 75", "exit 1")
        assert site.job("speech", TRAINING=training).returncode == 1
        assert not site.was_queued_again()

    def test_times_that_were_over_are_counted_and_nothing_else(self, site):
        ours = {"MAX_REQUEUES": "2", "SLURM_RESTART_COUNT": "7"}
        counter = site.folder / "runs/mine/requeues"
        calls = site.folder / "calls/scontrol"
        for times in (1, 2):
            site.job("speech", "--name", "mine", TRAINING=TIME_IS_OVER, **ours)
            assert site.was_queued_again()
            assert counter.read_text(encoding="utf-8") == f"41 {times}\n"
            calls.unlink()
            site.job("speech", "--name", "mine", TRAINING=IS_ASKED_TO_STOP, SHOWN=PREEMPTED, **ours)
            assert site.was_queued_again()
            calls.unlink()
        done = site.job("speech", "--name", "mine", TRAINING=TIME_IS_OVER, **ours)
        assert done.returncode == 75
        assert "queued again 2 times already (MAX_REQUEUES)" in done.stderr
        assert not site.was_queued_again()

        ours["SLURM_JOB_ID"] = "42"  # the same sbatch line, as the message says
        site.job("speech", "--name", "mine", TRAINING=TIME_IS_OVER, **ours)
        assert site.got("scontrol") == ["requeue Incomplete 42"]
        assert counter.read_text(encoding="utf-8") == "42 1\n"
        assert [path.name for path in counter.parent.iterdir()] == ["requeues"]
        assert site.job("speech", "--name", "mine", **ours).returncode == 0
        assert not counter.exists()

    def test_slurm_may_refuse(self, site):
        (site.folder / "venv/bin/scontrol").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
        done = site.job("speech", TRAINING=TIME_IS_OVER)
        assert done.returncode == 75
        (line,) = done.stderr.splitlines()
        assert re.match(
            rf"{TIME} job: error: scontrol could not queue the job again; the same", line
        )

    def test_a_full_disk_has_no_room_for_the_count(self, site):
        folder = site.folder / "runs/speech2"
        folder.mkdir(parents=True)
        (folder / "requeues.new").symlink_to("/dev/full")
        done = site.job("speech", TRAINING=TIME_IS_OVER)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 75  # the run is saved all the same
        assert re.match(rf"{TIME} job: error: the time is over and the run saved, but ", line)
        assert "cannot be written to runs/speech2/requeues, so the job is not queued again" in line
        assert "the same sbatch line goes on" in line
        assert not site.was_queued_again()

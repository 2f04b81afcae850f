"""When a Slurm job requeues itself, and when not.

Small scripts stand in for Slurm's commands and for the training; test_slurm.py has the real ones.
"""

import re
import shlex
import shutil
import time
from datetime import datetime, timedelta
from types import MappingProxyType

import pytest

from tests.helpers.job_site import (
    CANCELLED,
    NOT_PREEMPTED,
    PREEMPTED,
    PREEMPTED_EARLIER,
    TEMPLATES,
    TIME,
    TIME_IS_OVER,
)

pytestmark = pytest.mark.long

TRAINING = sorted({*TEMPLATES} - {"scaling"})

# What the training does; its parent is the batch shell. It saves when it is told to.
ENDS_BY_ITSELF_THEN = "trap '' USR1; kill -USR1 $PPID; exit 75"
TOO_EARLY = "kill -USR1 $PPID; for _ in {1..500}; do sleep 1; done"
IS_ASKED_TO_STOP = "exit 75"
SAVES = "mkdir -p runs/n; echo 'stopped: SIGUSR1' >runs/n/STATUS; trap '' USR1; kill -USR1 $PPID"
SHELL_IS_ENDED = "kill -TERM $PPID; exit 75"
ENDED_WHILE_IT_SAVES = "kill -TERM $PPID; sleep 1; touch saved; exit 75"


class TestQueueAgain:
    """A job whose time is over requeues itself; one that somebody ended does not."""

    @pytest.mark.parametrize(
        "training", [TIME_IS_OVER, ENDS_BY_ITSELF_THEN], ids=["it saves", "it ends just then"]
    )
    def test_the_time_is_over(self, site, training):
        done = site.job("speech", TRAINING=training)
        assert (done.returncode, done.stderr) == (75, "")
        assert "the time is over and the run saved; requeued" in done.stdout
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
        assert "requeued 2 times already (MAX_REQUEUES)" in done.stderr
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
        assert "cannot be written to runs/speech2/requeues, so the job is not requeued" in line
        assert "the same sbatch command resumes it" in line
        assert not site.was_queued_again()

    def test_outside_of_slurm_nothing_is_queued(self, site):
        words = ["env", "-u", "SLURM_JOB_ID", "bash", "slurm/speech.sbatch"]
        done = site.run(*words, TRAINING=TIME_IS_OVER, RANKS="2")
        (line,) = done.stderr.splitlines()
        assert done.returncode == 75
        assert (
            "this is no job of Slurm, so nothing is requeued: the same command resumes it" in line
        )
        assert not site.was_queued_again()

    @pytest.mark.parametrize("count", ["41 08", "41 -3", "41 1e9", "41 x[0]", "", "41"])
    def test_a_count_that_is_none_begins_anew(self, site, count):
        counter = site.folder / "runs/speech2/requeues"
        counter.parent.mkdir(parents=True)
        counter.write_text(f"{count}\n", encoding="utf-8")
        done = site.job("speech", TRAINING=TIME_IS_OVER)
        assert (done.returncode, done.stderr) == (75, "")
        assert counter.read_text(encoding="utf-8") == "41 1\n"


class TestArrays:
    """A task of an array: its name for scontrol, which is not that of the array, and its run."""

    # the task that has the array's own number
    TASK = MappingProxyType({"SLURM_ARRAY_JOB_ID": "41", "SLURM_ARRAY_TASK_ID": "3"})

    @pytest.mark.parametrize("template", TRAINING)
    def test_a_task_is_queued_again_and_no_other(self, site, template):
        done = site.job(template, TRAINING=TIME_IS_OVER, **self.TASK)
        assert (done.returncode, done.stderr) == (75, "")
        assert site.got("scontrol") == ["requeue Incomplete 41_3"]
        (counter,) = site.folder.glob("runs/*/requeues")
        assert counter.parent.name.endswith("-3")
        assert counter.read_text(encoding="utf-8") == "41_3 1\n"

    def test_a_preempted_one_too(self, site):
        done = site.job("speech", TRAINING=IS_ASKED_TO_STOP, SHOWN=PREEMPTED, **self.TASK)
        assert (done.returncode, done.stderr) == (75, "")
        assert site.got("scontrol") == ["requeue Incomplete 41_3"]

    def test_slurm_is_asked_of_the_task_alone(self, site):
        asking = site.folder / "venv/bin/scontrol"
        asking.write_text(
            '#!/bin/sh\n[ "$1" = show ] && echo "$*" >>"$CALLS/asked" && echo "$SHOWN"\n',
            encoding="utf-8",
        )
        site.job("speech", TRAINING=TIME_IS_OVER, **self.TASK)
        assert set(site.got("asked")) == {"show job 41_3"}

    @pytest.mark.parametrize(
        "shown", ["JobId=7 ArrayJobId=7", "slurm_load_jobs error: Invalid job id"]
    )
    def test_a_job_that_a_task_submitted_is_in_no_array(self, site, shown):
        """sbatch passes on the variables of the job that it is called in."""
        ours = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3", "SHOWN": shown}
        done = site.job("speech", TRAINING=TIME_IS_OVER, **ours)
        assert (done.returncode, done.stderr) == (75, "")
        assert site.was_queued_again()
        assert (site.folder / "runs/speech2/requeues").exists()

    def test_where_slurm_does_not_answer_the_variables_are_believed(self, site):
        shown = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
        done = site.job("speech", TRAINING=TIME_IS_OVER, SHOWN=shown, **self.TASK)
        assert (done.returncode, done.stderr) == (75, "")
        assert site.got("scontrol") == ["requeue Incomplete 41_3"]

    @pytest.mark.parametrize(
        ("template", "words", "settings", "name"),
        [
            ("speech", [], {}, "speech2-3"),
            ("amazon670k_cpu", [], {}, "amazon670k_cpu-3"),
            ("resist", ["--name=blocks-%a"], {}, "blocks-3"),
            ("vgg11", [], {"NAME": "t%a-thin"}, "t3-thin"),
            ("speech", ["--name", "one"], {"SLURM_ARRAY_TASK_COUNT": "1"}, "one"),
        ],
    )
    def test_each_task_has_a_run_of_its_own(self, site, template, words, settings, name):
        done = site.job(template, *words, **self.TASK, **settings)
        assert (done.returncode, done.stderr) == (0, "")
        assert site.value("train", "--name") == name

    def test_a_name_that_is_given_is_kept_for_tasks_that_go_on_one_after_the_other(self, site):
        ours = {**self.TASK, "SLURM_ARRAY_TASK_COUNT": "4", "NAME": "mine"}
        done = site.job("speech", **ours)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 0
        assert site.value("train", "--name") == "mine"
        (advice,) = re.findall(r"write (.*)$", line)
        assert shlex.split(advice) == ["--name=mine-%a"]
        done = site.job("speech", *shlex.split(advice), **ours)
        assert (done.returncode, done.stderr) == (0, "")
        assert site.value("train", "--name") == "mine-3"

    def test_of_a_job_of_parts_it_says_where_the_ranks_are(self, site):
        done = site.job("speech", SLURM_HET_SIZE="2")
        (line,) = done.stderr.splitlines()
        assert done.returncode == 0
        assert "warning: of a heterogeneous job the ranks start in the first part only" in line


class TestPrepare:
    """A job that converts, or waits for another's conversion."""

    WAITS = "trap 'exit 75' USR1; trap 'exit 143' TERM; for _ in {1..500}; do sleep 1; done"

    @pytest.fixture
    def bare(self, site):
        """A site with sources and no shards."""
        shutil.rmtree(site.folder / "data")
        for name in ("speech_commands", "cifar-100-python", "Amazon670K.bow"):
            (site.folder / name).mkdir()
        for name in (
            "cifar-100-python/train",
            "Amazon670K.bow/train.txt",
            "Amazon670K.bow/test.txt",
        ):
            (site.folder / name).touch()
        return site

    @pytest.mark.parametrize("template", TRAINING)
    def test_it_is_left_to_who_comes_first(self, bare, template):
        done = bare.job(template)
        assert (done.returncode, done.stderr) == (0, "")
        assert "--if-missing" in bare.got("prepare")
        assert bare.value("prepare", "--output") == bare.data_path("train")

    @pytest.mark.parametrize("template", TRAINING)
    def test_one_that_waits_is_queued_again_before_its_time_is_over(self, bare, template):
        waits = f"trap 'exit 75' USR1; kill -USR1 $PPID; {self.WAITS}"
        done = bare.job(template, PREPARING=waits)
        assert (done.returncode, done.stderr) == (75, "")
        assert "the time is over before training began; requeued" in done.stdout
        assert bare.got("train") == bare.got("plan") == []
        assert bare.was_queued_again()
        (counter,) = bare.folder.glob("runs/*/requeues")
        assert counter.read_text(encoding="utf-8") == "41 1\n"

    def test_and_a_bounded_number_of_times(self, bare):
        waits = f"trap 'exit 75' USR1; kill -USR1 $PPID; {self.WAITS}"
        done = bare.job("speech", PREPARING=waits, MAX_REQUEUES="0")
        assert done.returncode == 75
        assert "requeued 0 times already (MAX_REQUEUES)" in done.stderr
        assert not bare.was_queued_again()

    def test_one_that_converts_goes_on(self, bare):
        converts = "trap '' USR1; kill -USR1 $PPID; sleep 1; sleep 1; touch made"
        done = bare.job("speech", PREPARING=converts)
        assert (done.returncode, done.stderr) == (75, "")
        assert (bare.folder / "made").exists()
        assert bare.got("train") == []
        assert bare.was_queued_again()

    @pytest.mark.parametrize("signal", ["TERM", "INT"])
    def test_one_that_is_cancelled_leaves_no_process(self, bare, signal):
        says = "trap 'touch ended; exit 143' TERM"
        waits = f"{says}; kill -{signal} $PPID; {self.WAITS.rpartition('TERM; ')[2]}"
        done = bare.job("speech", PREPARING=waits, SHOWN=CANCELLED)
        assert (done.returncode, done.stderr) == (143, "")
        assert (bare.folder / "ended").exists()
        assert bare.got("train") == []
        assert not bare.was_queued_again()

    @pytest.mark.parametrize("code", [1, 2, 137])
    def test_one_that_fails_ends_the_job_with_its_code(self, bare, code):
        done = bare.job("speech", PREPARING=f"exit {code}")
        assert (done.returncode, done.stderr) == (code, "")
        assert bare.got("train") == []
        assert not bare.was_queued_again()

"""The Slurm scripts without a cluster: what they pass on, refuse and queue again.

Small scripts stand in for Slurm's commands and for the training; test_slurm.py has the real ones.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from ist_hpc import config as configuration
from tests.launching import ROOT

# What `scontrol show job` says, in part.
PREEMPTED = """\
JobId=41 JobName=a
   JobState=RUNNING Reason=None Dependency=(null)
   StartTime=2026-01-02T00:00:00 EndTime=2026-01-02T04:00:00 Deadline=N/A
   PreemptEligibleTime=2026-01-02T00:00:00 PreemptTime=2026-01-02T01:00:00
"""
NOT_PREEMPTED = PREEMPTED.replace("PreemptTime=2026-01-02T01:00:00", "PreemptTime=None")
PREEMPTED_EARLIER = PREEMPTED.replace("PreemptTime=2026-01-02", "PreemptTime=2026-01-01")
CANCELLED = PREEMPTED.replace("RUNNING", "CANCELLED")

TEMPLATES = sorted(path.stem for path in (ROOT / "slurm").glob("*.sbatch"))
TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"  # as the package's lines have it

# What the training does; its parent is the batch shell. It saves when it is told to.
TIME_IS_OVER = "trap 'exit 75' USR1; kill -USR1 $PPID; for _ in {1..500}; do sleep 1; done"
ENDS_BY_ITSELF_THEN = "trap '' USR1; kill -USR1 $PPID; exit 75"
TOO_EARLY = "kill -USR1 $PPID; for _ in {1..500}; do sleep 1; done"
IS_ASKED_TO_STOP = "exit 75"
SHELL_IS_ENDED = "kill -TERM $PPID; exit 75"
ENDED_WHILE_IT_SAVES = "kill -TERM $PPID; sleep 1; touch saved; exit 75"

_LAUNCHER = """\
[[ $1 != --version ]] || exit 0
printf '%s\\n' "$@" >"$CALLS/launcher"
env >"$CALLS/environment"
while [[ $1 != python ]]; do shift; done
exec "$@"
"""
_SLURM = {
    "srun": _LAUNCHER,
    "mpirun": _LAUNCHER,
    "sleep": "exec /bin/sleep 0.02",
    "sbatch": 'printf "%s\\n" "$@" >"$CALLS/sbatch"',
    "scontrol": 'if [[ $1 == show ]]; then echo "$SHOWN"; else echo "$*" >>"$CALLS/scontrol"; fi',
    "python": f"""\
if [[ $1 != -m ]]; then exec {sys.executable} "$@"; fi
[[ $3 != --version ]] || exit 0
printf '%s\\n' "${{@:3}}" >"$CALLS/${{2#ist_hpc.}}"
case $2 in
    ist_hpc.train) eval "$TRAINING" ;;
    ist_hpc.prepare) eval "$PREPARING" ;;
esac
""",
}


@dataclass(frozen=True)
class Site:
    """A checkout with Slurm's commands, prepared data in data/ and nothing else."""

    folder: Path

    def run(self, *command: str, **settings: str) -> subprocess.CompletedProcess[str]:
        ours = {
            "PATH": f"{self.folder}/venv/bin:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "CALLS": str(self.folder / "calls"),
            "VENV": "venv",
            "SHOWN": NOT_PREEMPTED,
            "TRAINING": "exit 0",
            "PREPARING": "exit 0",
            "SLURM_JOB_ID": "41",
            "SLURM_JOB_NAME": "job",
            "SLURM_NTASKS": "4",
            "SLURM_ARRAY_TASK_ID": "2",
        }
        return subprocess.run(
            command,
            cwd=self.folder,
            env={**ours, **settings},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def job(
        self, template: str, *arguments: str, **settings: str
    ) -> subprocess.CompletedProcess[str]:
        return self.run("bash", f"slurm/{template}.sbatch", *arguments, **settings)

    def function(self, *words: str, **settings: str) -> list[str]:
        """The lines that a function of job.sh prints."""
        script = 'set -euo pipefail; source slurm/job.sh; "$@"'
        done = self.run("bash", "-c", script, "bash", *words, **settings)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    def got(self, program: str) -> list[str]:
        """The arguments of its last call; empty if it was not called."""
        path = self.folder / "calls" / program
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    def value(self, program: str, option: str) -> str:
        words = self.got(program)
        return words[len(words) - words[::-1].index(option)]

    def data_path(self, program: str) -> str:
        """The data folder of its last call: of several settings the last one counts."""
        words = [word for word in self.got(program) if word.startswith("data.path=")]
        return words[-1].removeprefix("data.path=")

    def was_queued_again(self) -> bool:
        requeues = self.got("scontrol")
        assert requeues in ([], ["requeue Incomplete 41"])
        return bool(requeues)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    shutil.copytree(ROOT / "slurm", tmp_path / "slurm", ignore=shutil.ignore_patterns("env.sh"))
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    for name in ("speech", "amazon670k", "cifar100"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "meta.json").touch()
    (tmp_path / "calls").mkdir()
    (tmp_path / "venv/bin").mkdir(parents=True)
    for name, script in _SLURM.items():
        path = tmp_path / "venv/bin" / name
        path.write_text(f"#!/usr/bin/env bash\n{script}\n", encoding="utf-8")
        path.chmod(0o755)
    return Site(tmp_path)


class TestSettings:
    """What a job makes of its configuration and arguments."""

    @pytest.mark.parametrize(
        ("template", "settings", "name", "data"),
        [
            ("speech", {}, "speech2", "data/speech"),
            ("speech", {"CONFIG": "configs/speech3.yaml"}, "speech3", "data/speech"),
            ("speech", {"CONFIG": "configs/amazon670k.yaml"}, "amazon670k", "data/amazon670k"),
            ("speech", {"NAME": "mine"}, "mine", "data/speech"),
            ("amazon670k", {}, "amazon670k", "data/amazon670k"),
            ("amazon670k_cpu", {}, "amazon670k_cpu", "data/amazon670k"),
            ("amazon670k_cpu", {"CONFIG": "configs/speech2.yaml"}, "speech2_cpu", "data/speech"),
            ("amazon670k_cpu", {"NAME": "mine"}, "mine", "data/amazon670k"),
            ("vgg11", {}, "vgg11_cifar100", "data/cifar100"),
            ("resist", {}, "resist_cifar100", "data/cifar100"),
        ],
    )
    def test_a_run_and_its_data_are_those_of_the_configuration(
        self, site, template, settings, name, data
    ):
        done = site.job(template, **settings)
        assert (done.returncode, done.stderr) == (0, "")
        assert site.value("train", "--name") == name
        assert site.data_path("train") == site.data_path("plan") == data

    @pytest.mark.parametrize(
        ("template", "arguments", "config", "folder"),
        [
            ("speech", "--config {}", "amazon670k", "runs/amazon670k"),
            ("speech", "--config={}", "amazon670k", "runs/amazon670k"),
            ("speech", "--set train.rounds=1 --config {} --resume", "delicious", "runs/delicious"),
            ("amazon670k", "--config {} --name mine", "speech3", "runs/mine"),
            ("amazon670k_cpu", "--config={}", "speech3", "runs/speech3_cpu"),
            ("vgg11", "--runs=there --config {} --name=mine", "speech3", "there/mine"),
            ("resist", "--config {}", "vgg11_cifar100", "runs/vgg11_cifar100"),
            ("vgg11", "--config none.yaml --runs there --config {}", "speech3", "there/speech3"),
        ],
    )
    def test_what_the_arguments_name_is_planned_trained_and_counted(
        self, site, template, arguments, config, folder
    ):
        """The variables that they replace may be set, too."""
        data = configuration.load(ROOT / f"configs/{config}.yaml").data.path
        (site.folder / data).mkdir(exist_ok=True)
        (site.folder / data / "meta.json").touch()
        path = f"configs/{config}.yaml"
        words = arguments.format(path).split()
        ours = {"CONFIG": "configs/quickstart.yaml", "RUNS": "runs", "TRAINING": TIME_IS_OVER}
        done = site.job(template, *words, **ours)
        assert (done.returncode, done.stderr) == (75, "")
        for program in ("plan", "train"):
            assert site.value(program, "--config") == path
            assert site.data_path(program) == data
        name, runs = site.value("train", "--name"), site.value("train", "--runs")
        assert f"{runs}/{name}" == folder
        assert (site.folder / folder / "requeues").exists()
        assert ("train.rounds=1" in site.got("plan")) == ("train.rounds=1" in words)

    def test_a_study_of_the_configuration_among_the_arguments(self, site):
        words = ["--config", "configs/amazon670k.yaml", "--steps", "5"]
        done = site.job("scaling", *words)
        assert (done.returncode, done.stderr) == (0, "")
        assert site.value("bench", "--config") == "configs/amazon670k.yaml"
        assert site.data_path("bench") == "data/amazon670k"
        assert site.value("bench", "--steps") == "5"

    @pytest.mark.parametrize(
        ("words", "problem"),
        [
            (
                "--conf configs/speech3.yaml",
                "--conf is not understood by the templates; write --config",
            ),
            ("--na=mine", "--na is not understood by the templates; write --name in full"),
            ("--se data.path=data", "write --set in full"),
            ("--config", "--config wants a value, as in --config=VALUE, got ''"),
            ("--config=", "--config wants a value"),
            ("--name --resume", "--name wants a value, as in --name=VALUE, got '--resume'"),
        ],
    )
    def test_arguments_that_only_the_training_would_understand(self, site, words, problem):
        for command in (
            ["bash", "slurm/speech.sbatch"],
            ["slurm/submit.sh", "configs/speech2.yaml", "--"],
        ):
            done = site.run(*command, *words.split())
            (line,) = done.stderr.splitlines()
            assert done.returncode == 2
            assert problem in line
            assert site.got("plan") == site.got("train") == site.got("sbatch") == []

    @pytest.mark.parametrize("name", TEMPLATES)
    def test_a_job_of_another_folder_says_where_it_belongs(self, site, tmp_path, name):
        folder = tmp_path / "elsewhere"
        folder.mkdir()
        job = 'cd "$1"; bash "$2"'
        done = site.run("bash", "-c", job, "bash", str(folder), f"../slurm/{name}.sbatch")
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert re.match(rf"{TIME} error: no slurm/job.sh in {folder}; sbatch from the repo", line)
        assert "--chdir=FOLDER" in line

    def test_a_site_may_unset_what_it_defines_for_something_else(self, site):
        names = ["CONFIG", "NAME", "DATA", "DEVICE", "TEXT"]
        lines = f"unset {' '.join(names)}\n"
        (site.folder / "slurm/env.sh").write_text(lines, encoding="utf-8")
        devices = {}
        for template in ("amazon670k", "amazon670k_cpu"):
            done = site.job(template, **dict.fromkeys(names, "of-the-site"))
            assert (done.returncode, done.stderr) == (0, "")
            assert site.value("train", "--name") == template
            assert site.value("train", "--config") == "configs/amazon670k.yaml"
            assert site.data_path("train") == "data/amazon670k"
            words = site.got("train")
            devices[template] = [word for word in words if word.startswith("device=")][-1]
        assert devices == {"amazon670k": "device=cuda", "amazon670k_cpu": "device=cpu"}

    @pytest.mark.parametrize("template", sorted({*TEMPLATES} - {"amazon670k_cpu"}))
    @pytest.mark.parametrize(
        ("arguments", "settings", "origin"),
        [
            (
                [],
                {"DATA": "new"},
                "the value of DATA, a variable of your environment or of slurm/env.sh",
            ),
            (["--set", "data.path=new"], {"DATA": "old"}, "which --set data.path says"),
            ([], {"DATA_ROOT": "new"}, "the data of configs/"),
        ],
        ids=["the environment", "the arguments", "the configuration"],
    )
    def test_missing_data_are_named_by_their_origin(
        self, site, template, arguments, settings, origin
    ):
        """A site may define DATA for something else."""
        done = site.job(template, *arguments, **settings)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert re.search(rf"no shards in new\S*, {origin}", line)

    @pytest.mark.parametrize(
        ("arguments", "settings", "data"),
        [
            ([], {}, "data/speech"),
            ([], {"DATA_ROOT": "elsewhere"}, "elsewhere/speech"),
            ([], {"DATA_ROOT": "elsewhere", "DATA": "given"}, "given"),
            (["--set", "train.rounds=1", "data.path=set"], {"DATA": "given"}, "set"),
            (["--set=data.path=data/set"], {"DATA_ROOT": "elsewhere"}, "data/set"),
        ],
    )
    def test_the_check_and_the_jobs_read_the_same_data(self, site, arguments, settings, data):
        (site.folder / data).mkdir(parents=True, exist_ok=True)
        (site.folder / data / "meta.json").touch()
        words = ["configs/speech3.yaml", "--", *arguments]
        done = site.run("slurm/submit.sh", *words, **settings)
        assert (done.returncode, done.stderr) == (0, "")
        assert site.data_path("plan") == data

        done = site.job("speech", *arguments, CONFIG="configs/speech3.yaml", **settings)
        assert (done.returncode, done.stderr) == (0, "")
        assert site.data_path("train") == data
        done = site.job("scaling", *arguments, CONFIG="configs/speech3.yaml", **settings)
        assert (done.returncode, done.stderr) == (0, "")
        assert site.data_path("bench") == data

    @pytest.mark.parametrize(
        ("template", "config", "folder"),
        [
            ("speech", "delicious", "data/delicious"),
            ("amazon670k", "delicious", "data/delicious"),
            ("vgg11", "quickstart", "data/digits"),
            ("resist", "delicious", "data/delicious"),
            ("scaling", "delicious", "data/delicious"),
        ],
    )
    def test_only_its_own_source_is_converted(self, site, template, config, folder):
        for source in ("speech_commands/yes", "Amazon670K.bow", "cifar-100-python"):
            (site.folder / source).mkdir(parents=True)
        for file in (
            "Amazon670K.bow/train.txt",
            "Amazon670K.bow/test.txt",
            "cifar-100-python/train",
        ):
            (site.folder / file).touch()
        done = site.job(template, CONFIG=f"configs/{config}.yaml")
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert f"no shards in {folder}, the data of configs/{config}.yaml" in line
        assert template == "scaling" or f"not of configs/{config}.yaml" in line
        assert site.got("prepare") == site.got("train") == []

    def test_recordings_are_converted_to_where_the_configuration_looks(self, site):
        (site.folder / "speech_commands").mkdir()
        done = site.job("speech", CONFIG="configs/speech3.yaml", DATA_ROOT="new")
        assert (done.returncode, done.stderr) == (0, "")
        assert site.value("prepare", "--output") == site.data_path("train") == "new/speech"

    def test_a_configuration_that_is_none_ends_the_job_before_anything_is_made(self, site):
        done = site.job("speech", CONFIG="configs/speech9.yaml", DATA_ROOT="new")
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert "configs/speech9.yaml" in line
        assert site.got("prepare") == []

    @pytest.mark.parametrize(
        ("arguments", "settings"),
        [
            (["--set=a=1", "--set=b=2"], ["a=1", "b=2"]),
            (["--set=a=1", "word"], ["a=1"]),
            (["--set", "a=1", "b=2", "--name", "c=3", "--set", "d=4"], ["a=1", "b=2", "d=4"]),
            (["--set", "a=one two", "model.hidden=[1, 2]"], ["a=one two", "model.hidden=[1, 2]"]),
            (["--set=model.hidden=[1, 2]"], ["model.hidden=[1, 2]"]),
            (["--name", "a=1"], []),
        ],
    )
    def test_settings_are_found_among_arguments(self, site, arguments, settings):
        assert site.function("settings_of", *arguments) == settings

    @pytest.mark.parametrize(
        ("settings", "own", "seconds"),
        [({}, [], 120), ({"LEAD_TIME_S": "300"}, [], 300), ({}, ["runtime.lead_time_s=30"], 30)],
    )
    def test_the_lead_time_is_the_sites_or_the_users(self, site, settings, own, seconds):
        done = site.job("speech", "--set", "train.rounds=2", *own, **settings)
        assert (done.returncode, done.stderr) == (0, "")
        given = [word for word in site.got("train") if "=" in word]
        loaded = configuration.load(ROOT / "configs/speech2.yaml", given)
        assert loaded.runtime.lead_time_s == seconds

    def test_a_sites_lines_may_read_variables_that_are_not_set(self, site):
        lines = "module() { echo $NOT_SET_BY_THE_SITE; }\nmodule\nRUNS=${RUNS:-there}\n"
        (site.folder / "slurm/env.sh").write_text(lines, encoding="utf-8")
        _, options, runs = site.function("eval", 'echo "$-"; echo "$RUNS"')
        assert "u" in options  # in our own lines it is an error again
        assert runs == "there"

    @pytest.mark.parametrize(
        ("launcher", "words"),
        [
            ("srun", "srun --mpi=pmix --kill-on-bad-exit=1 --nodes={ranks} --ntasks={ranks}"),
            (
                "mpirun",
                "mpirun -np {ranks} --bind-to none -x PATH -x OMP_NUM_THREADS "
                "-x HDF5_USE_FILE_LOCKING",
            ),
        ],
    )
    def test_a_study_starts_its_ranks_as_a_run_does(self, site, launcher, words):
        done = site.job("scaling", LAUNCHER=launcher)
        assert (done.returncode, done.stderr) == (0, "")
        assert site.value("bench", "--launcher") == words
        of_run = words.replace("--nodes={ranks} ", "").replace("{ranks}", "4")
        assert site.function("launcher_words", "4", LAUNCHER=launcher) == [of_run]

    @pytest.mark.parametrize(("launcher", "processors"), [("srun", ["8"]), ("mpirun", [])])
    def test_the_ranks_environment(self, site, launcher, processors):
        ours = {"SLURM_CPUS_PER_TASK": "8", "SLURM_EXPORT_ENV": "NONE", "LAUNCHER": launcher}
        done = site.job("speech", **ours)
        assert (done.returncode, done.stderr) == (0, "")
        pairs = [line.partition("=") for line in site.got("environment")]
        # mpirun's srun starts one process a node, which must have all of the node's processors
        assert [value for name, _, value in pairs if name == "SRUN_CPUS_PER_TASK"] == processors
        assert ("OMP_NUM_THREADS", "=", "8") in pairs
        assert ("SLURM_EXPORT_ENV", "=", "ALL") in pairs  # srun takes it as --export

    @pytest.mark.parametrize("template", ["speech", "scaling"])
    @pytest.mark.parametrize(
        ("name", "value"),
        [("LAUNCHER", "aprun"), ("MAX_REQUEUES", "a few"), ("LEAD_TIME_S", "2:00")],
    )
    def test_a_setting_of_the_site_that_cannot_be(self, site, template, name, value):
        done = site.job(template, **{name: value})
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert re.match(rf"{TIME} job: error: {name} is {value}; it may be", line)


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


class TestSubmit:
    @pytest.mark.parametrize(
        ("words", "problem"),
        [
            (["configs/none.yaml"], "no configuration configs/none.yaml"),
            (["configs/speech2.yaml", "--", "--set", "train.local_step=3"], "train.local_step"),
            (["configs/amazon670k.yaml", "--mem=1G"], "does not fit"),
            (["configs/amazon670k.yaml", "--mem", "1000"], "does not fit"),
            (["configs/amazon670k.yaml", "--mem-per-cpu=100M"], "does not fit"),
        ],
        ids=["no file", "a misspelt key", "too little memory", "in MB", "of a processor"],
    )
    def test_refuses_before_anything_is_queued(self, site, words, problem):
        done = site.run("slurm/submit.sh", *words, VENV=sys.prefix, DATA_ROOT="none")
        assert done.returncode == 2
        assert problem in done.stderr
        assert site.got("sbatch") == []

    @pytest.mark.parametrize(
        ("words", "ranks", "gb"),
        [  # the template has 4 nodes, 1 rank a node, 8 processors a rank and --mem=16G
            ("", 4, 17.1799),
            ("--nodes=8", 8, 17.1799),
            ("--nodes 8", 8, 17.1799),
            ("-N8", 8, 17.1799),
            ("-N 8", 8, 17.1799),
            ("-N8 --nodes=2", 2, 17.1799),
            ("--ntasks=6", 6, 8.58993),  # two of the nodes have two
            ("--ntasks 3", 3, 17.1799),
            ("-n6", 6, 8.58993),
            ("-n 6 -N 6", 6, 17.1799),
            ("--ntasks-per-node=2", 8, 8.58993),
            ("--ntasks-per-node 2", 8, 8.58993),
            ("--mem=16000", 4, 16.7772),
            ("--mem 16000", 4, 16.7772),
            ("--mem=16000M", 4, 16.7772),
            ("--mem=16000MB", 4, 16.7772),
            ("--mem=16384000K", 4, 16.7772),
            ("--mem=16GB", 4, 17.1799),
            ("--mem=16g", 4, 17.1799),
            ("--mem=1T", 4, 1099.51),
            ("--mem-per-cpu=1G", 4, 8.58993),
            ("--mem-per-cpu 1000 -c2", 4, 2.09715),
            ("--mem-per-cpu=1G --cpus-per-task=4", 4, 4.29497),
            ("--mem-per-cpu=1G --mem=16G", 4, 17.1799),
            ("--time 1:00 --mem-bind=local -J some --no-kill --ntasks-per-core=1", 4, 17.1799),
        ],
    )
    def test_reads_the_options_as_sbatch_does(self, site, words, ranks, gb):
        done = site.run(
            "slurm/submit.sh", "configs/speech3.yaml", *words.split(), "--", "--name", "a"
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert f"configs/speech3.yaml on {ranks} ranks" in done.stdout
        assert site.value("plan", "--ranks") == str(ranks)
        assert float(site.value("plan", "--memory-gb")) == pytest.approx(gb, rel=1e-5)
        job = ["slurm/speech.sbatch", "--config", "configs/speech3.yaml", "--name", "a"]
        assert site.got("sbatch") == [*words.split(), *job]

    @pytest.mark.parametrize(
        ("words", "problem"),
        [
            ("--nodes=2-4", "write --nodes=2 or --nodes=4"),
            ("-N 2-4", "write --nodes=2 or --nodes=4"),
            ("--nodes=two", "--nodes wants a number from 1 on, as in --nodes=4, got 'two'"),
            ("--nodes=", "--nodes wants a number"),
            ("--nodes", "--nodes wants a value, as in --nodes=4"),
            ("-n 0", "--ntasks wants a number from 1 on"),
            ("--ntasks-per-n=2", "write an option in full, such as --ntasks-per-node=..."),
            ("--ntasks-per-gpu=1", "write --ntasks-per-node=RANKS"),
            ("--mem=much", "--mem wants a size, as in --mem=16G"),
            ("--mem=1.5G", "--mem wants a size"),
            ("--mem-per-cpu=1P", "--mem-per-cpu wants a size"),
            ("--mem-per-gpu=8G", "write --mem=SIZE, of a node"),
        ],
    )
    def test_refuses_what_it_cannot_read(self, site, words, problem):
        done = site.run("slurm/submit.sh", "configs/speech3.yaml", *words.split())
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert line.startswith("submit: error: ")
        assert problem in line
        assert site.got("plan") == site.got("sbatch") == []

    def test_one_configuration_only(self, site):
        words = ["configs/speech3.yaml", "--", "--config", "configs/speech2.yaml"]
        done = site.run("slurm/submit.sh", *words)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert "--config configs/speech2.yaml after -- and configs/speech3.yaml before it" in line
        assert site.got("plan") == site.got("sbatch") == []

    def test_options_before_the_configuration(self, site):
        done = site.run("slurm/submit.sh", "--nodes=4", "configs/speech3.yaml")
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert "the configuration comes before options" in line

    def test_files_are_those_that_are_seen_from_where_it_is_called(self, site, tmp_path):
        folder = tmp_path / "elsewhere"
        folder.mkdir()
        shutil.copy(ROOT / "configs/speech3.yaml", folder / "mine.yaml")
        shutil.copy(ROOT / "slurm/speech.sbatch", folder / "own.sbatch")
        call = 'cd "$1"; shift; ../slurm/submit.sh "$@"'
        words = ["--template", "own.sbatch", "mine.yaml"]
        done = site.run("bash", "-c", call, "bash", str(folder), *words)
        assert (done.returncode, done.stderr) == (0, "")
        assert site.got("sbatch") == ["elsewhere/own.sbatch", "--config", "elsewhere/mine.yaml"]
        assert site.data_path("plan") == "data/speech"

        done = site.run("bash", "-c", call, "bash", str(folder), "configs/speech3.yaml")
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert line == "submit: error: no configuration elsewhere/configs/speech3.yaml"

    def test_says_that_memory_is_not_checked(self, site):
        done = site.run("slurm/submit.sh", "configs/speech3.yaml", "--mem=0")
        assert (done.returncode, done.stderr) == (0, "")
        assert "memory is not checked" in done.stdout
        assert "--memory-gb" not in site.got("plan")

    def test_the_environment_replaces_the_templates_memory(self, site):
        words = ["slurm/submit.sh", "configs/speech3.yaml"]
        site.run(*words, SBATCH_MEM_PER_NODE="8G")
        assert float(site.value("plan", "--memory-gb")) == pytest.approx(8.58993, rel=1e-5)
        site.run(*words, "--mem=4G", SBATCH_MEM_PER_NODE="8G")
        assert float(site.value("plan", "--memory-gb")) == pytest.approx(4.29497, rel=1e-5)

    def test_the_number_of_ranks_must_be_given(self, site):
        (site.folder / "own.sbatch").write_text(
            "#!/bin/bash\n#SBATCH --nodes=4\n", encoding="utf-8"
        )
        words = ["--template", "own.sbatch", "configs/speech3.yaml"]
        done = site.run("slurm/submit.sh", *words)
        assert done.returncode == 2
        assert "the number of ranks is not given" in done.stderr
        assert site.run("slurm/submit.sh", *words, "-n8").returncode == 0
        assert site.value("plan", "--ranks") == "8"

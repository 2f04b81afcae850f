"""A checkout in which the Slurm scripts run without a cluster.

Small scripts stand in for Slurm's commands and for the training; test_slurm.py has the real ones.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.launching import ROOT

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

NAMES = ("amazon670k", "amazon670k_cpu", "vgg11", "resist", "speech", "scaling")
AMAZON, AMAZON_CPU, VGG11, RESIST, SPEECH, SCALING = (
    ROOT / "slurm" / f"{name}.sbatch" for name in NAMES
)
TEMPLATE_PATHS = sorted((ROOT / "slurm").glob("*.sbatch"))
TEMPLATES = [path.stem for path in TEMPLATE_PATHS]
TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"  # as the package's lines have it

# A training; its parent is the batch shell. It saves when it is told to.
TIME_IS_OVER = "trap 'exit 75' USR1; kill -USR1 $PPID; for _ in {1..500}; do sleep 1; done"

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


def make_site(folder: Path) -> Site:
    """A site in a folder."""
    shutil.copytree(ROOT / "slurm", folder / "slurm", ignore=shutil.ignore_patterns("env.sh"))
    shutil.copytree(ROOT / "configs", folder / "configs")
    for name in ("speech", "amazon670k", "cifar100"):
        (folder / "data" / name).mkdir(parents=True)
        (folder / "data" / name / "meta.json").touch()
    (folder / "calls").mkdir()
    (folder / "venv/bin").mkdir(parents=True)
    for name, script in _SLURM.items():
        path = folder / "venv/bin" / name
        path.write_text(f"#!/usr/bin/env bash\n{script}\n", encoding="utf-8")
        path.chmod(0o755)
    return Site(folder)

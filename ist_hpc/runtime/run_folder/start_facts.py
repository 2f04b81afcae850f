"""What run.json says of each start of a run: versions, MPI, host, command, commit."""

import os
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ist_hpc import __version__
from ist_hpc.common.disk.names import command_line

# Slurm's variables that describe the job; others may contain secrets of the site.
_SLURM = (
    "SLURM_JOB_ID",
    "SLURM_JOB_NAME",
    "SLURM_JOB_PARTITION",
    "SLURM_JOB_NODELIST",
    "SLURM_JOB_NUM_NODES",
    "SLURM_NTASKS",
    "SLURM_CPUS_PER_TASK",
    "SLURM_MEM_PER_NODE",
    "SLURM_RESTART_COUNT",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_STEP_ID",
    "SLURM_CLUSTER_NAME",
)


def facts_of_start(ranks: int, threads: int, mpi_library: str) -> dict[str, Any]:
    """The facts about a start for run.json. Local."""
    versions = {"ist_hpc": __version__, "python": platform.python_version()}
    for package in ("torch", "numpy", "h5py", "mpi4py", "horovod"):
        versions[package] = _version_of(package)
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": socket.gethostname(),
        "command": command_line([sys.executable, *sys.orig_argv[1:]]),
        "folder": os.getcwd(),
        "ranks": ranks,
        "threads_a_rank": threads,
        "mpi": mpi_library.split("\n")[0].strip("\x00 "),
        "slurm": {name: os.environ[name] for name in _SLURM if name in os.environ},
        "versions": versions,
        "git": _git_state(),
    }


def _version_of(package: str) -> str:
    """The version of a package as imported, which may differ from what pip installed."""
    from importlib.metadata import PackageNotFoundError, version

    imported = getattr(sys.modules.get(package), "__version__", None)
    if imported is not None:
        return str(imported)
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _git_state() -> str:
    """Commit of the package's checkout, with `-dirty` if it was changed; empty without a checkout.

    It is a checkout if git has this very file: the package may be installed inside a repository of
    other things, and the environment may point git to yet another repository.
    """
    own = Path(__file__).resolve()
    try:
        _git(own.parent, "ls-files", "--error-unmatch", "--", own.name)
        if not own.is_relative_to(Path(_git(own.parent, "rev-parse", "--show-toplevel")).resolve()):
            return ""
        commit = _git(own.parent, "describe", "--always", "--dirty", "--abbrev=12")
        package = own.parents[2]
        new = _git(package, "ls-files", "--others", "--exclude-standard", "--", "*.py")
    except (OSError, ValueError, subprocess.SubprocessError):
        return ""
    return f"{commit}-dirty" if new and not commit.endswith("-dirty") else commit


def _git(folder: Path, *words: str) -> str:
    """The output of a git command; raises `CalledProcessError` if it fails, and others."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        ["git", *words],
        cwd=folder,
        env={**ours, "GIT_OPTIONAL_LOCKS": "0"},  # reading must change nothing
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=10,
        check=True,
    )
    return done.stdout.rstrip("\n")

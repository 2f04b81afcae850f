"""The folder of a run: what it was, how it goes, how it ended. Written by rank 0.

config.yaml    the resolved configuration
run.json       versions, MPI, host, git, command; one entry a start
metrics.jsonl  a row a round and a row an evaluation, flushed
summary.json   at the end
STATUS         running | finished | stopped: by what | failed: why
checkpoints/   round-00000040/ ...
"""

import json
import math
import os
import platform
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ist_hpc import __version__, config
from ist_hpc.config import Config
from ist_hpc.errors import InputError
from ist_hpc.files import write_text
from ist_hpc.meters import KINDS


class RunFolder:
    """Paths and files of one run; written by rank 0, but for STATUS by a rank that fails."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"

    def create(self, resume: bool) -> None:
        """Make the folder; raises `InputError` if it is there and this is no resume."""
        try:
            self.path.mkdir(parents=True, exist_ok=resume)
        except FileExistsError:
            raise self.exists_error() from None
        except OSError as error:
            raise InputError(f"cannot make the run folder {self.path}: {error.strerror}") from None
        self.checkpoints.mkdir(exist_ok=True)

    def exists_error(self) -> InputError:
        """The answer to a run that would write into the folder of another."""
        return InputError(
            f"the run folder {self.path} exists; go on with it by --resume, or give another --name"
        )

    def status(self) -> str:
        """The first line of STATUS; empty if there is none."""
        path = self.path / "STATUS"
        return path.read_text(encoding="utf-8").strip() if path.exists() else ""

    def set_status(self, status: str) -> None:
        """Replace STATUS."""
        write_text(self.path / "STATUS", status + "\n")

    def record_start(self, settings: Config, facts: dict[str, Any]) -> None:
        """Write config.yaml and add this start to run.json."""
        write_text(self.path / "config.yaml", config.dump(settings))
        path = self.path / "run.json"
        starts = json.loads(path.read_text(encoding="utf-8"))["starts"] if path.exists() else []
        write_text(path, json.dumps({"starts": [*starts, facts]}, indent=1) + "\n")

    def rewind_metrics(self, round_index: int) -> None:
        """Drop the rows of rounds that a resume from `round_index` trains again."""
        if not self.metrics.exists():
            return
        kept = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # a row cut off when the run was killed
            if row["round"] <= round_index:
                kept.append(line)
        write_text(self.metrics, "".join(line + "\n" for line in kept))

    def totals(self) -> dict[str, dict[str, Any]]:
        """Seconds by kind (means over ranks) and bytes of all rows, over all starts of the run."""
        seconds, sizes = dict.fromkeys(KINDS, 0.0), {"sent": 0, "received": 0, "averaged": 0}
        if self.metrics.exists():
            for line in self.metrics.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                for kind in KINDS:
                    seconds[kind] += row["seconds"].get(kind, 0.0)
                for direction in sizes:
                    sizes[direction] += row.get(f"bytes_{direction}", 0)
        return {"seconds": seconds, "bytes": sizes}

    def add_metrics(self, row: dict[str, Any]) -> None:
        """Append a row; numbers that are not finite, which JSON does not have, become null."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(row), allow_nan=False) + "\n")

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json."""
        text = json.dumps(_finite(summary), indent=1, allow_nan=False)
        write_text(self.path / "summary.json", text + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def facts_of_start(ranks: int, threads: int, mpi_library: str) -> dict[str, Any]:
    """What is worth knowing of a start, for run.json. Local."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {"ist_hpc": __version__, "python": platform.python_version()}
    for package in ("torch", "numpy", "h5py", "mpi4py", "horovod"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": socket.gethostname(),
        "command": shlex.join([sys.executable, *sys.orig_argv[1:]]),
        "folder": os.getcwd(),
        "ranks": ranks,
        "threads_a_rank": threads,
        "mpi": mpi_library.split("\n")[0].strip("\x00 "),
        "versions": versions,
        "git": _git_state(),
    }


def _git_state() -> str:
    """Commit of the package's checkout, with `-dirty` if it was changed; empty if it is none."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""

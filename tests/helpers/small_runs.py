"""Small runs on the digits that something happens to, and looking at them meanwhile."""

import contextlib
import subprocess
import time
from pathlib import Path

SMALL = ["data.path=digits", "model.hidden=[21,14]", "train.local_steps=6", "seed=4"]
SMALL += ["optimizer.momentum=0.9", "evaluate.every_epochs=0"]
LONG = [*SMALL, "train.rounds=100000"]


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


def number_of(name: str) -> int:
    """Of round-00000012 the 12."""
    return int(name.removeprefix("round-"))

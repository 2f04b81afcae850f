"""A real Slurm cluster for tests: one machine's network namespaces are its nodes, h1 to h4."""

import atexit
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tests.helpers import launching
from tests.helpers.launching import ROOT

HOSTS = str(ROOT / "bench" / "hosts.sh")
NODES = 4
LIMIT_S = 300.0
"""For what comes in seconds on a quiet machine."""

ONE_A_NODE = ["--ntasks-per-node=1", "--cpus-per-task=1", "--mem=1500M"]
GPUS_LEFT_OUT = ["--gpus-per-node=0"]
SMALL = ["model.inputs=null", "model.outputs=null", "model.hidden=[32]"]
SMALL += ["data.batch_size=32", "data.verify=false"]


@functools.cache
def venv_of_forks() -> str:
    """An environment for jobs whose bin/ has a Python that forks; all else is on PATH."""
    folder = Path(tempfile.mkdtemp(prefix="ist_hpc-tests-venv-"))
    atexit.register(shutil.rmtree, folder)
    launching.python_of_forks(folder / "bin")
    return str(folder)


def every_node_is_idle() -> bool:
    """Whether all nodes can take jobs."""
    return on_h1("sinfo", "-h", "-N", "-o", "%t").split() == ["idle"] * NODES


def on_h1(*command: str, check: bool = True, fresh: bool = False, **settings: str) -> str:
    """What a command prints that runs on the first node; with stderr unless it is to end well.

    Its jobs have as VENV an environment whose Python starts as forks do (`forking`), or `fresh`.
    """
    # PMIX_MCA_psec: Open MPI's wheel has no munge in its PMIx, and would say so on every rank
    ours = {"PMIX_MCA_psec": "native", "VENV": sys.prefix if fresh else venv_of_forks()}
    environment = {**launching.environment(ours), **settings}
    done = subprocess.run(
        [HOSTS, "on", "h1", *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0 or not check, done.stderr
    return done.stdout + (done.stderr if not check else "")


def wait_until(is_so: Callable[[], object], limit_s: float = LIMIT_S) -> None:
    """Fail if it is not so within these seconds."""
    end_s = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < end_s, f"not within {limit_s:g} s"
        time.sleep(0.2)


def submit(
    template: Path,
    folder: Path,
    *arguments: str,
    options: Sequence[str] = (*ONE_A_NODE, f"--nodes={NODES}"),
    fresh: bool = False,
    **settings: str,
) -> str:
    """Submit a template with its data and runs in `folder`; the job's number."""
    ours = {
        "DEVICE": "cpu",
        "DATA": str(folder / "data"),
        "RUNS": str(folder / "runs"),
        "NAME": "small",
    }
    gpus = GPUS_LEFT_OUT if "--gpus" in template.read_text(encoding="utf-8") else []
    words = [*gpus, *options, f"--output={folder}/%j.out", str(template), *arguments]
    return on_h1("sbatch", "--parsable", *words, fresh=fresh, **{**ours, **settings}).strip()


def state(job: str) -> str:
    """The state that Slurm gives a job."""
    found = re.search(r"JobState=(\w+)", on_h1("scontrol", "show", "job", job))
    assert found is not None
    return found[1]


def end(folder: Path, job: str, final: str = "COMPLETED") -> str:
    """Wait for the end of a job, which must be in this state; what it printed."""
    wait_until(lambda: state(job) not in ("PENDING", "RUNNING", "COMPLETING"))
    printed = (folder / f"{job}.out").read_text(encoding="utf-8")
    assert state(job) == final, printed
    return printed


def rounds(folder: Path) -> list[int]:
    """The rounds that the run in `folder` has reported."""
    path = folder / "runs/small/metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [row["round"] for row in map(json.loads, lines) if row["kind"] == "round"]


def starts(folder: Path) -> list[dict[str, object]]:
    """The starts that the run notes in run.json."""
    run = folder / "runs/small/run.json"
    found: list[dict[str, object]] = json.loads(run.read_text(encoding="utf-8"))["starts"]
    return found


def status(folder: Path, name: str = "small") -> str:
    """What the run says of itself."""
    return (folder / f"runs/{name}/STATUS").read_text(encoding="utf-8").strip()


def write_text(folder: Path) -> str:
    """Rows in the repository's format whose labels can be read off their features."""
    folder.mkdir()
    for split, rows, seed in (("train", 2000, 1), ("test", 200, 2)):
        random = np.random.default_rng(seed)
        lines = [f"{rows} 90 40"]
        for _ in range(rows):
            labels = sorted(random.choice(40, 2, replace=False).tolist())
            features = [*labels, *(label + 40 for label in labels)]
            values = random.uniform(0.5, 1, len(features))
            pairs = sorted(zip(features, values, strict=True))
            words = " ".join(f"{f}:{v:.4f}" for f, v in pairs)
            lines.append(f"{','.join(map(str, labels))} {words}")
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder)


def restarts(job: str) -> int:
    """How often Slurm has started a job again."""
    found = re.search(r"Restarts=(\d+)", on_h1("scontrol", "show", "job", job))
    assert found is not None
    return int(found[1])


@contextmanager
def within(bound_s: float, case: str) -> Iterator[None]:
    """Fail unless the block takes less; FAULT_TIMES names a file that gets a line of each."""
    begin_s = time.monotonic()
    yield
    took_s = time.monotonic() - begin_s
    if times := os.environ.get("FAULT_TIMES"):
        with Path(times).open("a", encoding="utf-8") as file:
            file.write(f"{case}: {took_s:.1f} s, bound {bound_s:g} s\n")
    assert took_s < bound_s, case

"""Jobs on a real Slurm cluster that are queued again, and those beside them."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import slurm_cluster as slurm
from tests.helpers.job_site import (
    AMAZON,
    AMAZON_CPU,
)
from tests.helpers.launching import ROOT
from tests.helpers.slurm_cluster import LIMIT_S, ONE_A_NODE, SMALL

pytestmark = pytest.mark.long


def test_a_task_of_an_array_is_queued_again_without_the_others(cluster, shards, tmp_path):
    """The last one, whose SLURM_JOB_ID is the array's own number, by which all would go."""
    words = [
        "--set",
        *SMALL,
        "train.epochs=null",
        "train.rounds=100000",
        "train.local_steps=5",
    ]
    options = [*ONE_A_NODE, "--nodes=1", "--array=0-1"]
    ours = {"DATA": str(shards), "NAME": ""}
    array = slurm.submit(
        *(AMAZON_CPU, tmp_path, *words, "evaluate.every_epochs=0"), options=options, **ours
    )
    runs = [tmp_path / f"runs/amazon670k_cpu-{task}/metrics.jsonl" for task in (0, 1)]
    slurm.wait_until(lambda: all(path.exists() and path.read_text() for path in runs))
    job = json.loads((runs[1].parent / "run.json").read_text())["starts"][0]["slurm"]
    assert job["SLURM_JOB_ID"] == array
    slurm.on_h1("scancel", "--batch", "--signal=USR1", f"{array}_1")
    slurm.wait_until(lambda: slurm.restarts(f"{array}_1") == 1)
    assert (runs[1].parent / "requeues").read_text() == f"{array}_1 1\n"
    rounds = len(runs[0].read_text().splitlines())
    slurm.wait_until(lambda: len(runs[0].read_text().splitlines()) > rounds + 5)
    assert (slurm.state(f"{array}_0"), slurm.restarts(f"{array}_0")) == ("RUNNING", 0)
    slurm.on_h1("scancel", array)
    slurm.wait_until(lambda: not slurm.on_h1("squeue", "--noheader"))


def test_jobs_that_begin_without_shards_take_what_another_makes(cluster, tmp_path):
    """One converts, here one that has come to a halt; the others wait, until their time is over."""
    text = slurm.write_text(tmp_path / "text")
    data = tmp_path / "data"
    words = ["xmc", "--train", f"{text}/train.txt", "--test", f"{text}/test.txt"]
    converter = subprocess.Popen(
        [sys.executable, "-c", _HALT, *words, "--output", str(data)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        slurm.wait_until(lambda: _state_of_process(converter.pid) == "T")
        words = ["--set", *SMALL, "train.epochs=null", "train.rounds=2"]
        options = [*ONE_A_NODE, "--nodes=1"]
        jobs = {
            name: slurm.submit(AMAZON_CPU, tmp_path, *words, options=options, NAME=name, TEXT=text)
            for name in ("small", "wide", "gone")
        }
        printed = {name: tmp_path / f"{job}.out" for name, job in jobs.items()}
        for path in printed.values():
            slurm.wait_until(
                lambda path=path: path.exists() and "waiting for it" in path.read_text(),
                LIMIT_S,
            )
        slurm.on_h1("scancel", jobs["gone"])
        slurm.end(tmp_path, jobs["gone"], "CANCELLED")
        slurm.on_h1("scancel", "--batch", "--signal=USR1", jobs["small"])
        slurm.wait_until(lambda: slurm.restarts(jobs["small"]) == 1)
        assert "the time is over before training began; requeued" in printed["small"].read_text()
        assert (tmp_path / "runs/small/requeues").read_text() == f"{jobs['small']} 1\n"
    finally:
        converter.send_signal(signal.SIGCONT)
    made, _ = converter.communicate(timeout=60)
    assert "2000 train and 200 test rows" in made
    for name in ("wide", "small"):
        assert "2000 train and 200 test rows of" not in slurm.end(tmp_path, jobs[name])
        assert slurm.status(tmp_path, name) == "finished"


# A converter that stops, as Ctrl-Z stops it, when it has begun to write.
_HALT = """
import os, signal, sys
from ist_hpc.data.writing import writer as writing
from ist_hpc.prepare.__main__ import main
enter = writing.DatasetWriter.__enter__
def halt(writer):
    entered = enter(writer)
    os.kill(os.getpid(), signal.SIGSTOP)
    return entered
writing.DatasetWriter.__enter__ = halt
sys.exit(main(sys.argv[1:]))
"""


def _state_of_process(process: int) -> str:
    stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    return stat.rpartition(")")[2].split()[0]


def test_under_mpirun_a_run_that_is_saved_is_queued_again(healed, shards, tmp_path):
    """Which is not when mpirun ends: 50 s after ranks that ended with a code of their own."""
    options = ["--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1", "--mem=3G"]
    words = [
        "--set",
        *SMALL,
        "train.epochs=null",
        "train.rounds=100000",
        "train.local_steps=5",
    ]
    ours = {"DATA": str(shards), "LAUNCHER": "mpirun"}
    job = slurm.submit(AMAZON, tmp_path, *words, "evaluate.every_epochs=0", options=options, **ours)
    printed = tmp_path / f"{job}.out"
    slurm.wait_until(lambda: max(slurm.rounds(tmp_path), default=0) > 5)
    with slurm.within(30, "under mpirun, Slurm's warning: saved and requeued"):
        slurm.on_h1("scancel", "--batch", "--signal=USR1", job)
        slurm.wait_until(lambda: "the run saved; requeued" in printed.read_text(), 60)
    slurm.wait_until(lambda: len(slurm.starts(tmp_path)) == 2)
    before = re.fullmatch(
        r"stopped: SIGUSR1, saved after round (\d+)", slurm.starts(tmp_path)[1]["before"]
    )
    assert before
    slurm.wait_until(lambda: max(slurm.rounds(tmp_path)) > int(before[1]) + 5)
    with slurm.within(60, "under mpirun, `scancel`: saved and ended"):
        slurm.on_h1("scancel", job)
        slurm.end(tmp_path, job, "CANCELLED")
    assert slurm.status(tmp_path).startswith("stopped: SIGTERM, saved after round")

"""Starting the runs of a study, and what their ends say: real processes."""

import signal
import subprocess
import sys
import time

import pytest

from ist_hpc.common.errors import InputError
from ist_hpc.studies.launches import Hosts, Launcher, RunError, refuse_ranks, run_program
from ist_hpc.studies.state import opened
from tests.helpers.launching import run_python


def test_a_launcher_is_a_template():
    command = Launcher("env A={ranks} true").command(4, ["python", "-m", "x{ranks}"])
    assert command == ["env", "A=4", "true", "python", "-m", "x{ranks}"]
    for bad in ("mpirun -np 4", "", "env {other}", "env '{ranks}"):
        with pytest.raises(InputError, match="--launcher"):
            Launcher(bad)
    with pytest.raises(InputError, match="no program"):
        Launcher("no-such-program-here {ranks}")


def test_bad_rates_are_refused():
    for rate in ("fast", "1 gbit", "-1gbit", "1gbit;reboot"):
        with pytest.raises(InputError, match="--hosts wants"):
            Hosts(rate)


def test_a_rank_starts_no_study():
    with pytest.raises(InputError, match="PMIX_RANK is set"):
        refuse_ranks({"PMIX_RANK": "0"})
    refuse_ranks({"SLURM_PROCID": "0"})  # of a batch script


def test_how_a_program_failed(tmp_path):
    log = tmp_path / "a.log"
    log.write_text("train: error: of an earlier start\n")
    with pytest.raises(RunError, match="train: error: no such file") as failed:
        run_program(["sh", "-c", "echo train: error: no such file; echo ----; exit 2"], log, 1, 20)
    assert failed.value.code == 2
    with pytest.raises(RunError, match=r"exit code 3; the last line .*: words"):
        run_program(["sh", "-c", "echo words; echo ---; exit 3"], log, 1, 20)
    assert run_program(["sh", "-c", 'test "$OMP_NUM_THREADS"'], log, 1, 20) < 20


def test_a_program_is_ended_after_its_time(tmp_path):
    """With what it started."""
    mark = tmp_path / "later"
    command = ["sh", "-c", f"(sleep 1; touch {mark}) & sleep 30"]
    with pytest.raises(RunError, match="time limit"):
        run_program(command, tmp_path / "a.log", 1, 0.5)
    time.sleep(1.2)
    assert not mark.exists()


def test_a_signal_while_a_program_starts_ends_it(tmp_path, monkeypatch):
    start = subprocess.Popen

    def interrupted(*arguments, **options):
        process = start(*arguments, **options)
        signal.raise_signal(signal.SIGINT)
        return process

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    mark = tmp_path / "later"
    with pytest.raises(KeyboardInterrupt):
        run_program(["sh", "-c", f"sleep 1; touch {mark}"], tmp_path / "a.log", 1, 20)
    time.sleep(1.2)
    assert not mark.exists()


def test_ranks_that_outlive_a_study_keep_its_folder(tmp_path):
    """A second study would start others that write into the same run folder."""
    killed = """
import os, signal, threading
from pathlib import Path
from ist_hpc.studies.launches import run_program
from ist_hpc.studies.state import opened

with opened(Path("."), "scaling", "repeat") as state:
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGKILL)).start()
    run_program(["sleep", "4"], Path("log"), 1, 60.0, state.lock)
"""
    assert run_python(["-c", killed], tmp_path, check=False).returncode == -signal.SIGKILL
    with (
        pytest.raises(InputError, match=r"another study is at work in .*, or ranks of one"),
        opened(tmp_path, "scaling", "repeat"),
    ):
        pass


def test_the_process_of_a_study_loads_neither_mpi_nor_torch():
    code = (
        "import sys\nfrom ist_hpc.bench.__main__ import main\n"
        "try:\n    main(['convergence', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'mpi4py', 'horovod', 'matplotlib', 'h5py'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--seconds-from" in done.stdout

"""The end of a process: what it still had to do is done, and no more."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

END = """
import atexit, sys
from ist_hpc.runtime.ending import run
class Loaded:
    def __del__(self):
        print("taken apart")
loaded = Loaded()
atexit.register(print, "registered")
def main():
    print("said")
    return int(sys.argv[1])
run("it", main)
"""


def run(code: int, stdout=subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", END, str(code)],
        env={**os.environ, "PYTHONUNBUFFERED": ""},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("code", [0, 3])
def test_all_is_said_and_nothing_is_taken_apart(code):
    done = run(code)
    assert (done.returncode, done.stdout, done.stderr) == (code, "said\nregistered\n", "")


@pytest.mark.parametrize(("code", "given"), [(0, 1), (3, 3)])
def test_what_could_not_be_said_is_a_failure(code, given):
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = run(code, stdout=full)
    lost = "it: error: cannot write to standard output: No space left on device\n"
    assert (done.returncode, done.stderr) == (given, lost)


IMPORTED = """
import os, signal, sys
sys.argv = ["-m", *sys.argv[1:]]  # as Python has it while it loads what `-m` names
{before}
import ist_hpc
print(signal.getsignal(signal.SIGINT), flush=True)
os.kill(os.getpid(), signal.SIGINT)
from ist_hpc.runtime.ending import run
def main():
    os.kill(os.getpid(), signal.SIGINT)
    return 0
run("it", main)
"""


def interrupted(before: str) -> subprocess.CompletedProcess[str]:
    text = IMPORTED.format(before=before)
    command = [sys.executable, "-c", text]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_an_interrupt_as_modules_are_loaded_ends_the_process_and_prints_nothing():
    done = interrupted("")
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_an_interrupt_that_is_ignored_stays_so():
    """As a shell has it for what it starts in the background."""
    done = interrupted("signal.signal(signal.SIGINT, signal.SIG_IGN)")
    assert (done.returncode, done.stderr) == (0, "")


def test_an_interrupt_of_a_command_is_said():
    text = IMPORTED.format(before="").replace("os.kill(os.getpid(), signal.SIGINT)\nfrom", "from")
    command = [sys.executable, "-c", text]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (130, "it: interrupted\n")


@pytest.mark.parametrize("module", ["plan", "show", "prepare"])
def test_a_folder_that_was_removed_is_said(module, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    package = Path(__file__).resolve().parents[2]
    command = f'rmdir "$PWD"; exec "$0" -m ist_hpc.{module} digits --output x'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable],
        cwd=gone,
        env={**os.environ, "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"{module}: error: the folder that this was started in was removed; change to one that is "
        "there\n"
    )

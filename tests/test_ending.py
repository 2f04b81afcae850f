"""The end of a process: what it still had to do is done, and no more."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

END = """
import atexit, sys
from ist_hpc.ending import run
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

"""Does every way of starting that the README names work here? The program of `make check`.

Each starts `ist_hpc.check`, whose report is printed once, and gets a line: right, what is wrong, or
why it was not tried. The very last line is `check: ok`, exit code 0; or `check: ` and what is
wrong, exit code 1. It writes no files.
"""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress

from ist_hpc.runtime.ending import run

WAYS = {
    "mpirun": ("mpirun", "-np", "2"),
    "horovodrun": ("horovodrun", "-np", "2"),
    "srun": ("srun", "--mpi=pmix", "-n", "2"),
    "python": (),
}
"""The words before `python`."""

_LIMIT_S = 100.0  # longer than ist_hpc.check waits for a missing rank
_GRACE_S = 5.0
# by which horovodrun has Open MPI and MPICH mark lines
_OF_HOROVODRUN = re.compile(r"\[\d+,\d+\]<std(?:out|err)>:|^\[\d+\] ", re.MULTILINE)
_OK = "check: ok"


def main() -> int:
    """Try all ways, print the lines and return the exit code."""
    problems: list[str] = []
    works: list[str] = []
    for name, words in WAYS.items():
        way = " ".join((*words, "python"))
        reason = _why_not(name, os.environ)
        if reason:
            print(f"start      {way}: not tried, {reason}", flush=True)
            continue
        code, lines = _run([*words, "python", "-m", "ist_hpc.check", *_options(name)])
        problem = _problem(code, lines)
        if problem or not works:
            for line in lines:
                if not line.startswith("check: "):
                    print(line)
        print(f"start      {way}: {'not right' if problem else 'right'}", flush=True)
        if problem:
            problems.append(f"{way}: {problem}")
        else:
            works.append(name)
    if not problems and set(works) <= {"python"}:
        problems.append("nothing here starts several ranks: load the module of your MPI")
    for problem in problems:
        print(f"check: {problem}")
    if not problems:
        print(_OK)
    return 1 if problems else 0


def _options(name: str) -> tuple[str, ...]:
    return ("--alone",) if name == "python" else ()


def _why_not(name: str, environment: Mapping[str, str]) -> str:
    """Why a way is not tried here; "" if it is tried."""
    if not shutil.which(name):
        return f"there is no {name} on PATH"
    if name == "horovodrun" and not shutil.which("mpirun"):
        return "there is no mpirun on PATH, which it calls"
    if name == "srun":
        if "SLURM_JOB_ID" not in environment:
            return "outside a Slurm job; inside: salloc -n 2 make check"
        if environment.get("SLURM_NTASKS", "1") == "1":
            return "the Slurm job has one task; with two: salloc -n 2 make check"
    return ""


def _run(command: list[str]) -> tuple[int | None, list[str]]:
    """The exit code of a command (None after the time limit) and its output."""
    environment = dict(os.environ)
    if "SLURM_STEP_ID" in environment:  # else srun would wait for this step to end
        environment.setdefault("SLURM_OVERLAP", "1")
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    code: int | None = None
    try:
        printed, _ = process.communicate(timeout=_LIMIT_S)
        code = process.returncode
    except subprocess.TimeoutExpired:
        printed = _end(process)
    except BaseException:
        _end(process)
        raise
    lines = _OF_HOROVODRUN.sub("", printed).splitlines()
    return code, [line.rstrip() for line in lines if line.strip()]


def _end(process: subprocess.Popen[str]) -> str:
    """End a command, with a request first; return its output."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=_GRACE_S)[0]
    return ""


def _problem(code: int | None, lines: list[str]) -> str:
    """What is wrong; "" if nothing is."""
    if code is None:
        return f"did not end within {_LIMIT_S:.0f} s; its words are above"
    said = [line.removeprefix("check: ") for line in lines if line.startswith("check: ")]
    if _OK in lines and code == 0:
        return ""
    if said and _OK not in lines:
        return said[0]
    return f"does not start or end well (exit code {code}); its words are above"


if __name__ == "__main__":
    run("check", main)

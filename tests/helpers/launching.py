"""Starting the commands of the package as users do: real processes, under mpirun, with a limit.

A program that hangs is ended with all its processes, and the test fails with what it had printed.
"""

import atexit
import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.helpers import forking

ROOT = Path(__file__).resolve().parents[2]
_GRACE_S = 5.0  # for mpirun to end its ranks, and for pipes to be closed
_SHOWN_CHARACTERS = 6000
# What Python and the libraries that `forking` has loaded read as they are loaded.
_READ_AT_LOAD = (
    "PYTHON",
    "TORCH_",
    "LD_",
    "LANG",
    "LC_",
    "OMP_NUM",
    "KMP_",
    "CUDA_",
    "MALLOC_",
    "OPAL_",
)
# Open MPI starts no orted for a process without mpirun, which took a third of a start's time.
_ALONE = {"OMPI_MCA_ess_singleton_isolated": "1"}

Text = subprocess.CompletedProcess[str]


def run_ranks(
    ranks: int,
    args: Sequence[str | os.PathLike[str]],
    cwd: Path,
    timeout_s: float = 120,
    env: Mapping[str, str] | None = None,
    check: bool = True,
    fresh: bool = False,
) -> Text:
    """Run `python ARGS` on `ranks` ranks under mpirun, one thread each; wait for it.

    args   of Python, such as ["-m", "ist_hpc.train", "--name", "a"]
    env    set beside the environment of the tests
    check  fail the test unless the exit code is 0
    fresh  start Python anew on every rank, as a user does; otherwise `forking` does it in a tenth
           of the time, unless `env` has what is read as Python or a library is loaded

    The result has `returncode`, `stdout` and `stderr` of all ranks together. Fails the test after
    `timeout_s`, when every process that was started has been killed.
    """
    mpirun = [ROOT / "tools" / "mpirun.sh", "--quiet", "-np", str(ranks)]
    return _run([*mpirun, *_python(args, env, fresh)], cwd, timeout_s, env, check)


@contextlib.contextmanager
def started(
    ranks: int, args: Sequence[str | os.PathLike[str]], cwd: Path, fresh: bool = False
) -> Iterator[subprocess.Popen[str]]:
    """`python ARGS` on so many ranks under mpirun, going on while the context lasts.

    The process is mpirun, the leader of the session of all ranks; whatever is left of them is
    killed at the end. `fresh` as for `run_ranks`.
    """
    mpirun = [ROOT / "tools" / "mpirun.sh", "--quiet", "-np", str(ranks)]
    words = [*mpirun, *_python(args, None, fresh)]
    process = _popen([os.fspath(word) for word in words], cwd, {})
    try:
        yield process
    finally:
        _end_session(process)


def run_python(
    args: Sequence[str | os.PathLike[str]],
    cwd: Path,
    timeout_s: float = 120,
    env: Mapping[str, str] | None = None,
    check: bool = True,
    fresh: bool = False,
) -> Text:
    """Run `python ARGS` in one process, without mpirun; otherwise as `run_ranks`.

    Unless it is `fresh`, no daemon of Open MPI's is beside it.
    """
    words = _python(args, env, fresh)
    return _run(words, cwd, timeout_s, env if fresh else {**_ALONE, **(env or {})}, check)


def python_of_forks(folder: Path) -> Path:
    """A `bin/python` in this folder for scripts that start Python by name; the folder, for PATH.

    It does as `run_python` does: a fork where that makes no difference, else Python itself.
    """
    folder.mkdir()
    script = f"""\
#!/bin/sh
case $1 in
    -m | -c | [!-]*)
        export {forking.SOCKET}={_forks()}
        exec {sys.executable} -I -S {forking.__file__} "$@" ;;
esac
exec {sys.executable} "$@"
"""
    path = folder / "python"
    path.write_text(script, encoding="utf-8")
    path.chmod(0o755)
    return folder


def one_error_line(done: Text, code: int = 2) -> str:
    """The one line on stderr with which a command ended; fails the test if it is not one line."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == code, _report(done.args, f"exit code {done.returncode}", done)
    assert len(lines) == 1, _report(done.args, f"{len(lines)} lines on stderr, one wanted", done)
    return lines[0]


def _python(
    args: Sequence[str | os.PathLike[str]], env: Mapping[str, str] | None, fresh: bool
) -> list[str]:
    """The words that run `python ARGS`, by a fork where that makes no difference."""
    words = [os.fspath(word) for word in args]
    differs = any(name.startswith(_READ_AT_LOAD) for name in env or {})
    if fresh or differs or not forking.can_become(words):
        return [sys.executable, *words]
    os.environ[forking.SOCKET] = _forks()
    return [sys.executable, "-I", "-S", forking.__file__, *words]


@functools.cache
def _forks() -> str:
    """Start the server of `forking`, once in this process, which it outlives by no moment."""
    folder = tempfile.mkdtemp(prefix="ist_hpc-tests-")
    path = str(Path(folder) / "forks")
    server = subprocess.Popen(
        [sys.executable, forking.__file__, "--serve", path],
        env=environment({}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"

    def end() -> None:
        server.communicate()  # closes its stdin
        shutil.rmtree(folder)

    atexit.register(end)
    return path


def _run(
    command: Sequence[str | os.PathLike[str]],
    cwd: Path,
    timeout_s: float,
    env: Mapping[str, str] | None,
    check: bool,
) -> Text:
    words = [os.fspath(word) for word in command]
    process = _popen(words, cwd, env or {})
    late = False
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        late = True
    finally:
        _end_session(process)
    if late:
        stdout, stderr = process.communicate()
    done = subprocess.CompletedProcess(words, process.returncode, stdout, stderr)
    if late:
        raise AssertionError(_report(words, f"killed after {timeout_s:g} s", done))
    if check and done.returncode != 0:
        raise AssertionError(_report(words, f"exit code {done.returncode}", done))
    return done


def _popen(words: Sequence[str], cwd: Path, env: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        words,
        cwd=cwd,
        env=environment(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def outside_make() -> dict[str, str]:
    """This environment without what a make that runs the tests hands on to a make within them."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of the tests, fit to start mpirun, even from a rank of another mpirun."""
    inherited = dict(os.environ)
    if "OMPI_COMM_WORLD_SIZE" in inherited or "PMIX_RANK" in inherited or "PMI_RANK" in inherited:
        of_job = ("OMPI_", "PMIX_", "PMI_", "PRTE_", "HYDRA_", "MPI_LOCAL")
        inherited = {key: value for key, value in inherited.items() if not key.startswith(of_job)}
    tools = str(Path(sys.executable).parent)
    return {
        **inherited,
        "PATH": os.pathsep.join([tools, inherited.get("PATH", os.defpath)]),
        "OMP_NUM_THREADS": "1",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_mpi_yield_when_idle": "1",  # ranks may be more than cores
        "PYTHONUNBUFFERED": "1",  # what a killed rank printed is not lost
        "PYTHONDONTWRITEBYTECODE": "",  # or each of a thousand starts would compile the package
        **extra,
    }


def _end_session(process: subprocess.Popen[str]) -> None:
    """Kill whatever is left of what was started; mpirun is first asked to end its ranks.

    mpirun gives each rank a process group of its own, but all stay in the session of `process`.
    """
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
    for pid in _processes_of_session(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _processes_of_session(session: int) -> list[int]:
    """The processes of a session that run still (Linux: from /proc)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        state, of_session = fields[0], int(fields[3])
        if of_session == session and state != "Z":
            found.append(int(stat.parent.name))
    return found


def _report(command: Sequence[str], what: str, done: Text) -> str:
    parts = [f"{what}: {' '.join(command)}"]
    for name, text in (("stdout", done.stdout), ("stderr", done.stderr)):
        parts.append(f"--- {name}\n{text[-_SHOWN_CHARACTERS:]}")
    return "\n".join(parts)

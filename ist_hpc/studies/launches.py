"""Starts the runs of a study: on this machine, by a cluster's launcher, or on limited hosts.

The process of a study is not a rank: a process that has started MPI must not fork a launcher.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

import ist_hpc
from ist_hpc.common.disk.names import expanded
from ist_hpc.common.errors import InputError
from ist_hpc.common.mpi_environment import variable_of_a_rank

DEFAULT_LAUNCHER = "mpirun -np {ranks}"
HOSTS_SCRIPT = Path(ist_hpc.__file__).resolve().parent.parent / "bench" / "hosts.sh"

_GRACE_S = 15.0  # for a launcher to end its ranks
# gloo would listen at the address of the host's name; each host's interface has another name.
_ON_A_HOST = (
    'host=$(uname -n); export OMP_NUM_THREADS={threads} GLOO_SOCKET_IFNAME=e${{host#h}}; exec "$@"'
)


class RunError(Exception):
    """A run ended with `code`, or None after its time limit; `line` is its last line."""

    def __init__(self, code: int | None, line: str, log: Path) -> None:
        self.code, self.line = code, line
        how = "was ended after its time limit" if code is None else f"ended with exit code {code}"
        super().__init__(f"{how}; the last line of {log}: {line}")


class LaunchPlace(ABC):
    """Where the ranks of runs are.

    rate  rate of the links between hosts, in the words of tc; "none" if they are not limited
    """

    rate: str

    @abstractmethod
    def command(self, ranks: int, program: Sequence[str]) -> list[str]:
        """The command that starts the program on this many ranks."""

    def up(self, count: int) -> AbstractContextManager[None]:
        """Provide this many hosts for the block. Raises `InputError` if they cannot be made."""
        return nullcontext()

    def received_bytes(self, ranks: int) -> list[int] | None:
        """Bytes that each host's interface has received so far; None if nobody counts them."""
        return None


class Launcher(LaunchPlace):
    """A command line such as `mpirun -np {ranks}` or `srun --mpi=pmix -n {ranks}`."""

    rate = "none"

    def __init__(self, template: str) -> None:
        try:
            words = shlex.split(template)
        except ValueError:  # a quote that does not end
            words = []
        if not any("{ranks}" in word for word in words):
            raise InputError(
                f"--launcher wants a command with {{ranks}} in it, such as {DEFAULT_LAUNCHER!r}, "
                f"got {template!r}"
            )
        # A shell does it at the beginning of a word, but not within the quotes of the whole.
        self._words = [expanded(word) if word.startswith("~") else word for word in words]
        if not shutil.which(self._words[0]):
            raise InputError(f"--launcher: there is no program {self._words[0]!r} on this machine")

    def command(self, ranks: int, program: Sequence[str]) -> list[str]:
        """The command that starts the program on this many ranks."""
        return [*(word.replace("{ranks}", str(ranks)) for word in self._words), *program]


class Hosts(LaunchPlace):
    """One rank on each host of bench/hosts.sh."""

    def __init__(self, rate: str) -> None:
        self.rate = rate
        self._threads = os.environ.get("OMP_NUM_THREADS", "1")
        if not re.fullmatch(r"[0-9]+(\.[0-9]+)?[kmg]?(bit|bps)", rate):
            raise InputError(f"--hosts wants none or a rate as tc takes it, 1gbit, got {rate!r}")
        if os.geteuid() != 0:
            raise InputError("--hosts makes network namespaces, which only root can; or: none")
        for tool in ("ip", "tc", "nsenter", "mpirun"):
            if not shutil.which(tool):
                raise InputError(f"--hosts needs {tool}, which is not on this machine; or: none")
        if not HOSTS_SCRIPT.exists():
            raise InputError(f"--hosts is of a source checkout: there is no {HOSTS_SCRIPT}")
        if self._call("on", "h1", "true") is not None:
            raise InputError(
                "the hosts of bench/hosts.sh are up, for another study? if not: bench/hosts.sh down"
            )

    @contextmanager
    def up(self, count: int) -> Iterator[None]:
        """Provide this many hosts for the block. Raises `InputError` if they cannot be made."""
        try:
            if self._call("up", str(count), self.rate) is None:
                raise InputError(f"bench/hosts.sh up {count} {self.rate} failed; try it by hand")
            yield
        finally:
            self._call("down")

    def command(self, ranks: int, program: Sequence[str]) -> list[str]:
        """The command that starts the program on the first `ranks` hosts."""
        wrapper = _ON_A_HOST.format(threads=self._threads)
        return [str(HOSTS_SCRIPT), "mpirun", str(ranks), "sh", "-c", wrapper, "sh", *program]

    def received_bytes(self, ranks: int) -> list[int] | None:
        """Bytes that the interfaces of the first `ranks` hosts have received."""
        counts = []
        for host in range(1, ranks + 1):
            text = self._call("on", f"h{host}", "cat", "/proc/net/dev")  # /sys has the machine's
            found = re.search(rf"^\s*e{host}:\s*([0-9]+)", text or "", re.MULTILINE)
            if not found:
                return None
            counts.append(int(found[1]))
        return counts

    def _call(self, *words: str) -> str | None:
        """The output of hosts.sh, None if it fails."""
        done = subprocess.run(
            [HOSTS_SCRIPT, *words], capture_output=True, text=True, check=False, timeout=120
        )
        return done.stdout if done.returncode == 0 else None


def refuse_ranks(environment: Mapping[str, str] = os.environ) -> None:
    """Raise `InputError` if this process was itself started as a rank."""
    found = variable_of_a_rank(environment)
    if found is not None:
        raise InputError(
            "a study starts the ranks of its runs itself: start it without mpirun or srun "
            f"({found} is set)"
        )


def choose_place(hosts: str, launcher: str) -> LaunchPlace:
    """Where to run: `hosts` is "none" or the rate of the links. Raises `InputError`."""
    return Launcher(launcher) if hosts == "none" else Hosts(hosts)


def run_program(
    command: Sequence[str], log: Path, ranks: int, limit_s: float, lock: int | None = None
) -> float:
    """Run a command to its end, with its output added to `log`; return the seconds it took.

    lock  a file descriptor that the command keeps open, and with it a lock. Whatever ends this
          process also ends the command and its ranks, except a SIGKILL
    Raises `RunError`.
    """
    environment = {"OMP_NUM_THREADS": "1"} | os.environ | _for_few_cores(ranks)
    begin = time.monotonic()
    with log.open("a", encoding="utf-8") as file:
        start = file.tell()
        process: subprocess.Popen[bytes] | None = None
        code: int | None
        try:
            with (
                _signals_wait()
            ):  # a signal before the process has a name here would leave it alive
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                    pass_fds=() if lock is None else (lock,),
                )
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process is not None:
                _end(process)
    if code != 0:
        raise RunError(code, _last_line(log, start), log)
    return time.monotonic() - begin


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Delay signals that would end this process to the end of the block."""
    caught: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {
        number: signal.signal(number, lambda number, _: caught.append(number)) for number in numbers
    }
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
    for number in caught:
        signal.raise_signal(number)


def _for_few_cores(ranks: int) -> dict[str, str]:
    """Settings that Open MPI needs if ranks share cores; settings that exist stay."""
    wanted = {
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "OMPI_MCA_hwloc_base_binding_policy": "none",
        "OMPI_MCA_mpi_yield_when_idle": "1",
    }
    if ranks <= len(os.sched_getaffinity(0)):
        return {}
    return {name: value for name, value in wanted.items() if name not in os.environ}


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a command: ask its launcher to end, and kill it if it does not."""
    if process.poll() is not None and _is_gone(process, _GRACE_S):
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        if _is_gone(process, _GRACE_S):
            return


def _is_gone(process: subprocess.Popen[bytes], within_s: float) -> bool:
    """Whether the command's process group ends in time, including a launcher behind a script."""
    until = time.monotonic() + within_s
    while _is_there(process):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def _is_there(process: subprocess.Popen[bytes]) -> bool:
    process.poll()  # reaps the first of them, which would remain as a zombie
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def _last_line(log: Path, start: int) -> str:
    """The best line about a command's end: an error of ours, else of Python, else its last line."""
    with log.open("rb") as file:
        file.seek(start)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    for telling in (r"[a-z]+: error: ", r"[\w.]*(Error|Exception|Interrupt)\b", r".*\w"):
        found = [line for line in lines if re.match(telling, line)]
        if found:
            return found[-1]
    return "(nothing)"


def train_command(
    config: Path | None, settings: Sequence[str], runs: Path, name: str, resume: bool
) -> list[str]:
    """The program of a run, the same on every rank."""
    return [
        *(sys.executable, "-m", "ist_hpc.train"),
        *(("--config", str(config)) if config else ()),
        *("--runs", str(runs), "--name", name),
        *(("--resume",) if resume else ()),
        *("--set", *settings),
    ]

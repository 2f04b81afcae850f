"""Starts MPI and Horovod, refuses what would hang or mislead, and ends all ranks together.

Only entry points call `launch`; every other module receives a communicator.
"""

import argparse
import contextlib
import io
import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from ist_hpc.common import mpi_environment
from ist_hpc.common.disk.files import refuse_vds_prefix
from ist_hpc.common.errors import EXIT_BAD_INPUT, EXIT_FAILED, InputError, UnreadableError
from ist_hpc.common.standard_streams import complain
from ist_hpc.runtime import last_resort

if TYPE_CHECKING:
    from mpi4py import MPI

log = logging.getLogger("ist_hpc")
Result = TypeVar("Result")

_START_S = 900.0


class Stopped(KeyboardInterrupt):
    """A signal asked the job to end."""


class AgreedInputError(InputError):
    """An `InputError` that every rank raises: the job ends in order, without an abort.

    unreadable  whether the cause is an `UnreadableError`
    """

    unreadable = False


class AgreedRunError(Exception):
    """An error that every rank finds while running: the job ends in order, with exit code 1.

    The message is one line: what, where, and what may help.
    """


@dataclass(frozen=True)
class Runtime:
    """The argument of an entry point's body.

    comm     all ranks
    threads  threads that torch uses on this rank; 0 before `with_threads`
    """

    comm: "MPI.Comm"
    rank: int
    ranks: int
    threads: int = 0

    def with_threads(self, threads: int) -> "Runtime":
        """The same with torch's threads set to this number, or by default (0); see `set_threads`.

        Collective. It loads torch, which takes longer than reporting a wrong command.
        """
        return replace(self, threads=set_threads(self.comm, threads))


def launch(
    program: str,
    parse: Callable[[], argparse.Namespace],
    body: Callable[[Runtime, argparse.Namespace], int | None],
    watched: bool = False,
) -> int:
    """Parse the command line, start MPI, run `body` on every rank; the exit code. Collective.

    If MPI does not start within 15 minutes, because a rank or a host is missing, the process ends;
    with `watched` the same limit holds for the body until it enters a `Watchdog`.

    An error on one rank ends all ranks: an `InputError` that all ranks raise is printed once and
    gives exit code 2; a single rank prints its own `InputError` and aborts the job with 2; any
    other exception is printed with its traceback and aborts the job with 1.
    """
    # Megabytes of weights are allocated and freed each round and step: with 4 KiB pages a virtual
    # machine spends more on page faults than on copies. Torch reads it at its first allocation.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # We report errors of torch's networking in one line; its own log has frames of C++. Torch reads
    # this variable as it is loaded.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    try:
        arguments = parse()
        _refuse_gloo()
        mpi_environment.find_wheel()
        mpi_environment.refuse_step_without_pmix()
        last_resort.exit_after(_START_S)
        mpi = _start_mpi()
        comm = mpi.COMM_WORLD
        _start_log(comm.Get_rank(), comm.Get_size())
        _refuse_bad_mpi(mpi, comm)
    except InputError as error:
        if mpi_environment.rank_of_launcher() == 0:
            _refuse(f"{program}: error: {error}")
        return EXIT_BAD_INPUT
    rank, ranks = comm.Get_rank(), comm.Get_size()
    try:
        check_on_all(comm, _refuse_environment)
        if not watched:
            last_resort.disarm()
        return body(Runtime(comm, rank, ranks), arguments) or 0
    except AgreedInputError as error:
        if rank == 0:
            _refuse(f"{program}: error: {error}")
        return EXIT_BAD_INPUT
    except AgreedRunError as failure:
        if rank == 0:
            say(f"{program}: failed: {failure}")
        return EXIT_FAILED
    except InputError as error:
        place = f" (rank {rank} of {ranks} on {socket.gethostname()})" if ranks > 1 else ""
        _refuse(f"{program}: error: {error}{place}")
        return _end_all(comm, EXIT_BAD_INPUT)
    except KeyboardInterrupt as stopped:
        if rank == 0:
            reason = str(stopped) or "interrupted"
            say(f"{program}: stopped: {reason}")
        return _end_all(comm, 130)
    except BaseException:
        report = io.StringIO()
        traceback.print_exc(file=report)
        header = f"{program}: rank {rank} of {ranks} on {socket.gethostname()} failed:\n"
        say(header + report.getvalue())
        return _end_all(comm, EXIT_FAILED)


def _start_mpi() -> Any:
    """Load mpi4py's `MPI`, which starts MPI. Raises `InputError` if it cannot be loaded."""
    try:
        with mpi_environment.as_started():
            from mpi4py import MPI
    except (ImportError, OSError, RuntimeError) as error:
        raise InputError(
            f"MPI does not load ({error}): use the python of .venv, load the modules that were "
            "loaded at make setup, and unset LD_PRELOAD; make check tells more"
        ) from None
    return MPI


def _end_all(comm: "MPI.Comm", code: int) -> int:
    """Abort the job, so that no rank waits for this one; alone, just return the code."""
    logging.shutdown()
    sys.stdout.flush()
    if comm.Get_size() > 1:
        last_resort.exit_after(last_resort.ABORT_S)
        comm.Abort(code)
    return code


def check_on_all(comm: "MPI.Comm", action: Callable[[], Result]) -> Result:
    """Run a local `action` on every rank; if any rank finds bad input, all raise it. Collective.

    All raise the error of the lowest such rank. Use it wherever ranks may find different errors
    before training starts.
    """
    result: Result | None = None
    message = None
    try:
        result = action()
    except InputError as error:
        message = str(error), isinstance(error, UnreadableError)
    messages = [found for found in comm.allgather(message) if found is not None]
    if messages:
        agreed = AgreedInputError(messages[0][0])
        agreed.unreadable = any(unreadable for _, unreadable in messages)
        raise agreed
    return result  # type: ignore[return-value]


def write_on_all(comm: "MPI.Comm", what: str, action: Callable[[], Result]) -> Result:
    """Run a local `action` that writes files on every rank. Collective.

    If any rank cannot (a full disk, a folder it may not write to), all raise `AgreedRunError`,
    which begins with `what` and has the reason of the lowest such rank.
    """
    result: Result | None = None
    message = None
    try:
        result = action()
    except OSError as error:
        message = _reason(error)
    messages = comm.allgather(message)
    for rank, found in enumerate(messages):
        if found is not None:
            raise AgreedRunError(f"{what}: {found} (rank {rank})")
    return result  # type: ignore[return-value]


def _reason(error: OSError) -> str:
    """The system's message and the file; HDF5's own message is longer."""
    reason = os.strerror(error.errno) if error.errno else str(error).splitlines()[0]
    return f"{reason}: {error.filename}" if error.filename else reason


def on_root(comm: "MPI.Comm", action: Callable[[], Result]) -> Result:
    """Run `action` on rank 0 alone and give its (small, picklable) result to all. Collective.

    All ranks raise its `InputError`.
    """
    result = check_on_all(comm, lambda: action() if comm.Get_rank() == 0 else None)
    return comm.bcast(result, root=0)


def stop_on_sigterm() -> None:
    """Make SIGTERM, which launchers and schedulers send, end the job as Ctrl-C does. Local."""

    def stop(number: int, frame: object) -> None:
        raise Stopped(signal.Signals(number).name)

    signal.signal(signal.SIGTERM, stop)


def _refuse_gloo() -> None:
    environment = os.environ
    gloo = "HOROVOD_GLOO_RENDEZVOUS_ADDR" in environment
    if gloo or environment.get("HOROVOD_CONTROLLER", "mpi").lower() == "gloo":
        raise InputError(
            "started by horovodrun on the Gloo controller, where every process would be alone in "
            "MPI; start it with MPI: horovodrun --mpi -np N ..., mpirun -np N ... or srun "
            "--mpi=pmix ..."
        )


def _refuse_environment() -> None:
    refuse_vds_prefix()
    if os.environ.get("HOROVOD_MPI_THREADS_DISABLE", "0") not in ("", "0"):
        raise InputError(
            "HOROVOD_MPI_THREADS_DISABLE is set, which takes from MPI the thread support that "
            "Horovod beside mpi4py needs; unset it"
        )
    level = os.environ.get("TORCH_DISTRIBUTED_DEBUG", "OFF")
    if level.upper() not in ("OFF", "INFO", "DETAIL"):  # torch does not even load
        raise InputError(
            f"TORCH_DISTRIBUTED_DEBUG is '{level}', torch takes OFF, INFO or DETAIL; unset it"
        )


def _refuse_bad_mpi(mpi: Any, comm: "MPI.Comm") -> None:
    levels = {
        mpi.THREAD_SINGLE: "MPI_THREAD_SINGLE",
        mpi.THREAD_FUNNELED: "MPI_THREAD_FUNNELED",
        mpi.THREAD_SERIALIZED: "MPI_THREAD_SERIALIZED",
        mpi.THREAD_MULTIPLE: "MPI_THREAD_MULTIPLE",
    }
    got = mpi.Query_thread()
    if got < mpi.THREAD_MULTIPLE:
        raise InputError(
            f"MPI runs with {levels.get(got, got)}, MPI_THREAD_MULTIPLE is needed (Horovod's "
            "thread talks to MPI beside this program's); unset MPI4PY_RC_THREADS and "
            "MPI4PY_RC_THREAD_LEVEL, or use an MPI built with thread support"
        )
    mpi_environment.refuse_alone(comm.Get_size())


def set_threads(comm: "MPI.Comm", threads: int) -> int:
    """Set torch's threads; by default (0) the node's cores divided by the ranks that share them.

    Collective. Returns the threads of this rank.
    """
    import torch
    from mpi4py import MPI

    cores = frozenset(os.sched_getaffinity(0))
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    sharing = node.allgather(cores).count(cores)
    node.Free()
    # The environment may differ from rank to rank, so it decides only after the collective calls.
    if not threads and not os.environ.get("OMP_NUM_THREADS"):
        threads = max(1, len(cores) // sharing)
    if threads:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def say(text: str) -> None:
    """Write the reason that ended a run to stderr, with the time. Local."""
    complain(f"{time.strftime(_time_format())} {text}")


def _refuse(text: str) -> None:
    """Write why a command is refused: plainly to a terminal, with the time into a job's log."""
    if "SLURM_JOB_ID" in os.environ and not sys.stderr.isatty():
        say(text)
    else:
        complain(text)


def _time_format() -> str:
    """With the day for a log, which grows for days; without it for a terminal."""
    return "%H:%M:%S" if sys.stderr.isatty() else "%Y-%m-%d %H:%M:%S"


class _Formatter(logging.Formatter):
    """Time and message; on ranks other than 0 also the rank."""

    def __init__(self, rank: int, ranks: int) -> None:
        place = "" if rank == 0 else f"[rank {rank}/{ranks}@{socket.gethostname()}] "
        super().__init__(f"%(asctime)s {place}%(message)s", datefmt=_time_format())


def _start_log(rank: int, ranks: int) -> None:
    """Let rank 0 report progress, and the others only errors."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(rank, ranks))
    log.handlers = [handler]
    log.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    log.propagate = False
    with contextlib.suppress(AttributeError, ValueError):
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]

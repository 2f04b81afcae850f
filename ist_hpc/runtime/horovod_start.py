"""Starts Horovod over the ranks of a communicator, after a check of its variables."""

import importlib.util
import os
import socket
from types import ModuleType
from typing import TYPE_CHECKING

from ist_hpc.common.errors import InputError
from ist_hpc.runtime.launch import check_on_all

if TYPE_CHECKING:
    from mpi4py import MPI

_MOST = 2**31 - 1  # for values that Horovod keeps as an int
_WORDS = {
    "HOROVOD_CONTROLLER": ("mpi",),
    "HOROVOD_CPU_OPERATIONS": ("mpi", "gloo", "ccl"),  # those not built do not matter
}
_NUMBERS = {
    "HOROVOD_ADASUM_MPI_CHUNK_SIZE": _MOST,
    "HOROVOD_AUTOTUNE": 1,
    "HOROVOD_AUTOTUNE_BAYES_OPT_MAX_SAMPLES": _MOST,
    "HOROVOD_AUTOTUNE_STEPS_PER_SAMPLE": _MOST,
    "HOROVOD_AUTOTUNE_WARMUP_SAMPLES": _MOST,
    "HOROVOD_CACHE_CAPACITY": 10**6,  # tensors; room for all of them is made at the start
    "HOROVOD_FUSION_THRESHOLD": _MOST,
    "HOROVOD_HIERARCHICAL_ALLGATHER": 1,
    "HOROVOD_HIERARCHICAL_ALLREDUCE": 1,
    "HOROVOD_STALL_CHECK_DISABLE": 1,
    "HOROVOD_STALL_CHECK_TIME_SECONDS": _MOST,
    "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": _MOST,
    "HOROVOD_TORUS_ALLREDUCE": 1,
}
"""The maximum of each."""


def is_installed() -> bool:
    """Whether Horovod can be imported, without importing it."""
    return importlib.util.find_spec("horovod") is not None


def start_horovod(comm: "MPI.Comm", silence_s: float) -> ModuleType:
    """Initialise Horovod over the same ranks and return `horovod.torch`. Collective.

    A rank that waits longer than `silence_s` for the others raises instead of hanging. Raises
    `AgreedInputError` if Horovod was built without MPI, sees other ranks, or would abort or fail
    because of one of its variables, such as those of another job.
    """
    node_ranks = comm.allgather(socket.gethostname()).count(socket.gethostname())
    check_on_all(comm, lambda: refuse_settings(comm.Get_rank(), node_ranks, silence_s))
    os.environ.setdefault("HOROVOD_STALL_CHECK_TIME_SECONDS", str(max(1, int(silence_s / 2))))
    os.environ.setdefault("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", str(max(2, int(silence_s))))

    def start() -> ModuleType:
        try:
            import horovod.torch as hvd
        except (ImportError, OSError) as error:  # the latter from a library that it loads
            raise InputError(f"Horovod cannot be imported ({error}); see INSTALL.md") from None
        if not hvd.mpi_built():
            raise InputError("this Horovod was built without MPI; see INSTALL.md")
        return hvd

    hvd = check_on_all(comm, start)
    hvd.init(comm=comm)
    expected = (comm.Get_rank(), comm.Get_size())

    def check() -> None:
        seen = (hvd.rank(), hvd.size())
        if seen != expected:
            raise InputError(f"Horovod sees (rank, ranks) {seen}, MPI {expected}; see INSTALL.md")

    check_on_all(comm, check)
    return hvd


def refuse_settings(rank: int, node_ranks: int, silence_s: float) -> None:
    """Raise `InputError` for a variable at which Horovod aborts, or which it misreads.

    Where Horovod expects a number it reads a word as 0, which here means no limit or no buffer. An
    empty variable is removed. Harmless variables are left: `HOROVOD_RANK` and `..._SIZE` of
    another job, `HOROVOD_GLOO_...`, an unknown `HOROVOD_LOG_LEVEL`.
    """
    for name in list(os.environ):
        if name.startswith("HOROVOD_") and not os.environ[name].strip():
            del os.environ[name]
    for name, allowed in _WORDS.items():
        given = os.environ.get(name, allowed[0])
        if given.lower() not in allowed:
            raise InputError(f"{name} is {given}, allowed: {', '.join(allowed)}; unset it")
    for name, most in _NUMBERS.items():
        given = os.environ.get(name, "0").strip()
        number = _whole(given)
        if number is None or number > most:
            raise InputError(
                f"{name} is {given}, a whole number from 0 to {most} is wanted; unset it"
            )
    _refuse_cycle(silence_s)
    _refuse_affinity(node_ranks)
    timeline = os.environ.get("HOROVOD_TIMELINE", "dynamic")
    if rank == 0 and timeline.lower() != "dynamic":  # only rank 0 writes it
        folder = os.path.dirname(os.path.abspath(timeline))
        if os.path.isdir(timeline) or not os.access(folder, os.W_OK):
            raise InputError(
                f"HOROVOD_TIMELINE is {timeline}, a file that cannot be written: is {folder} a "
                "folder that is there, and yours to write to? make it, or unset the variable"
            )


def _whole(text: str) -> int | None:
    """The whole number in a text, of at most 18 digits."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


def _refuse_cycle(silence_s: float) -> None:
    given = os.environ.get("HOROVOD_CYCLE_TIME", "0")
    try:
        cycle_s = float(given) / 1e3
    except ValueError:
        cycle_s = -1.0
    if not 0 <= cycle_s < silence_s:
        raise InputError(
            f"HOROVOD_CYCLE_TIME is {given}, the milliseconds between two looks at what there is "
            f"to average are wanted, less than runtime.silence_s ({silence_s:g} s); unset it"
        )


def _refuse_affinity(node_ranks: int) -> None:
    given = os.environ.get("HOROVOD_THREAD_AFFINITY")
    if given is None:
        return
    words, cores = given.split(","), os.cpu_count() or 1
    if any(_whole(word) not in range(cores) for word in words) or len(words) < node_ranks:
        raise InputError(
            f"HOROVOD_THREAD_AFFINITY is {given}, wanted is the number of a core for each of the "
            f"{node_ranks} rank(s) on {socket.gethostname()}, from 0 to {cores - 1}, with commas "
            "between; unset it"
        )

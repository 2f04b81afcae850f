"""Do Python, MPI, Horovod and HDF5 work together on these ranks?

Run it on two ranks, `mpirun -np 2 python -m ist_hpc.check`: rank 0 prints the versions, then the
ranks do an Alltoallv and a Horovod allreduce and compare the results with the expected ones. The
last line is `check: ok`, exit code 0; or one line that says what is wrong and how to cure it,
exit code 1. `--alone` expects one rank. `make check` starts it in every way that there is.
"""

from __future__ import annotations

import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ist_hpc import __version__
from ist_hpc.common import mpi_environment
from ist_hpc.common.errors import InputError
from ist_hpc.common.mpi_environment import rank_of_launcher
from ist_hpc.runtime import horovod_start
from ist_hpc.runtime.ending import run

if TYPE_CHECKING:
    from mpi4py import MPI

# Longer than any healthy machine takes, and shorter than the limit of `make check`.
SILENCE_S = 60.0


class CheckError(Exception):
    """Something does not work here; the message is one line with the likely cure."""


def import_or_explain(name: str, cure: str) -> ModuleType:
    """Import a module, or say in one line why that failed and how to cure it."""
    try:
        __import__(name)
    except Exception as error:  # a library that does not load may raise anything
        reason = " ".join(str(error).split())
        raise CheckError(f"{name} does not load ({reason}): {cure}") from error
    return sys.modules[name]


def say(rank: int, what: str, value: str) -> None:
    """Print one line of the report, on rank 0."""
    if rank == 0:
        print(f"{what:<10} {value}", flush=True)


def agree(comm: MPI.Comm, problem: str) -> None:
    """Raise on every rank if any rank has a problem (collective over comm)."""
    for rank, text in enumerate(comm.allgather(problem)):
        if text:
            raise CheckError(f"{text} (rank {rank})")


class TimeLimit:
    """Ends the process with one line if a step that waits for the other ranks takes too long."""

    def __init__(self, what: str, cure: str) -> None:
        message = f"check: {what} did not end within {SILENCE_S:.0f} s: {cure}"

        def give_up() -> None:
            if rank_of_launcher() == 0:
                print(message, flush=True)
            os._exit(1)  # the main thread is inside MPI and will not come back

        self._timer = threading.Timer(SILENCE_S, give_up)
        self._timer.daemon = True

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


def report_libraries(rank: int) -> None:
    """Print the versions of libraries that do not communicate; fail if any is missing."""
    say(rank, "python", f"{platform.python_version()} ({sys.executable})")
    say(rank, "ist_hpc", __version__)
    again = "use the python of .venv, or make that anew with `rm -r .venv; make setup`"
    numpy = import_or_explain("numpy", again)
    torch = import_or_explain("torch", again)
    h5py = import_or_explain("h5py", again)
    gpus = f"{torch.cuda.device_count()} GPUs" if torch.cuda.is_available() else "no GPU in use"
    say(rank, "torch", f"{torch.__version__} ({gpus})")
    say(rank, "numpy", str(numpy.__version__))
    parallel = "parallel" if h5py.get_config().mpi else "serial: one file a rank"
    say(rank, "h5py", f"{h5py.__version__}, HDF5 {h5py.version.hdf5_version} ({parallel})")


def check_mpi(alone: bool) -> MPI.Comm:
    """Start MPI, print its version, and return its world (collective)."""
    mpi_environment.find_wheel()
    mpi_environment.refuse_step_without_pmix()
    with mpi_environment.as_started():
        import_or_explain(
            "mpi4py.MPI",
            "the MPI library was not found or is not the one of the set-up; load the module that "
            "was loaded then, or make .venv anew with `rm -r .venv; make setup`",
        )
    import mpi4py
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    mpi_environment.refuse_alone(comm.size)
    if (comm.size < 2) != alone:
        raise CheckError(
            f"MPI has {comm.size} rank(s), and {'one is' if alone else 'several are'} wanted: run "
            f"`make check`, or this {'without' if alone else 'under'} mpirun"
        )
    library = " ".join(MPI.Get_library_version().splitlines()[0].strip("\x00").split())
    say(comm.rank, "mpi4py", mpi4py.__version__)
    say(comm.rank, "MPI", f"{library} (MPI {MPI.VERSION}.{MPI.SUBVERSION})")
    names = {
        MPI.THREAD_SINGLE: "MPI_THREAD_SINGLE",
        MPI.THREAD_FUNNELED: "MPI_THREAD_FUNNELED",
        MPI.THREAD_SERIALIZED: "MPI_THREAD_SERIALIZED",
        MPI.THREAD_MULTIPLE: "MPI_THREAD_MULTIPLE",
    }
    level = MPI.Query_thread()
    say(comm.rank, "threads", names[level])
    if level != MPI.THREAD_MULTIPLE:
        raise CheckError(
            f"MPI gives {names[level]}, and Horovod beside mpi4py needs MPI_THREAD_MULTIPLE: use "
            "an MPI built with it, and leave MPI4PY_RC_THREAD_LEVEL unset"
        )
    return comm


def check_alltoallv(comm: MPI.Comm) -> None:
    """Exchange blocks of uneven length and compare the results (collective over comm)."""
    import numpy as np

    # rank s sends 3 s + 5 q + 1 numbers to rank q; each number encodes both ranks
    def block(source: int, target: int) -> Any:
        return (source * comm.size + target) * 1000.0 + np.arange(3 * source + 5 * target + 1)

    send = [block(comm.rank, target) for target in range(comm.size)]
    expected = [block(source, comm.rank) for source in range(comm.size)]
    received = np.full(sum(map(len, expected)), np.nan)
    with TimeLimit(
        "the Alltoallv",
        "the ranks do not reach each other; try OMPI_MCA_btl=self,vader,tcp, and "
        "OMPI_MCA_btl_tcp_if_include=<the right interface> across hosts",
    ):
        comm.Alltoallv(
            [np.concatenate(send), [len(part) for part in send]],
            [received, [len(part) for part in expected]],
        )
        right = np.array_equal(received, np.concatenate(expected))
        agree(comm, "" if right else "an Alltoallv brought wrong numbers: use another MPI")
    say(comm.rank, "Alltoallv", f"{comm.size} ranks, uneven counts: right")


def mpi_libraries() -> list[str]:
    """Return the MPI libraries that this process has loaded, as far as the system shows."""
    try:
        with open("/proc/self/maps", encoding="utf-8") as maps:
            paths = {line.split()[-1] for line in maps if "/libmpi.so" in line}
    except OSError:
        return []
    return sorted({os.path.realpath(path) for path in paths})


def check_allreduce(comm: MPI.Comm) -> None:
    """Check an allreduce by MPI, which replaces Horovod (collective over comm)."""
    import numpy as np

    say(comm.rank, "Horovod", "not installed: what ranks share is averaged by MPI.Allreduce")
    got = np.empty(1000, np.float32)
    with TimeLimit("MPI's allreduce", "the ranks do not reach each other"):
        comm.Allreduce(np.arange(1000, dtype=np.float32) + comm.rank, got)
        others = comm.size * (comm.size - 1) / 2
        right = np.array_equal(got, comm.size * np.arange(1000, dtype=np.float32) + others)
        agree(comm, "" if right else "an allreduce gave wrong numbers: use another MPI")
    say(comm.rank, "allreduce", f"MPI, {comm.size} ranks: right")


def check_horovod(comm: MPI.Comm) -> None:
    """Start Horovod on this communicator and check an allreduce (collective over comm).

    If no rank has Horovod, MPI does the allreduce.
    """
    rebuild = "build it again with `make distclean setup`, and see INSTALL.md"
    hvd, problem = None, ""
    missing = comm.allgather(not horovod_start.is_installed())
    if all(missing):
        check_allreduce(comm)
        return
    try:
        hvd = import_or_explain("horovod.torch", rebuild)
    except CheckError as error:
        problem = str(error)
    agree(comm, problem)
    assert hvd is not None
    import horovod
    import torch

    def built(names: dict[str, Callable[[], object]]) -> str:
        return ", ".join(name for name, question in names.items() if question()) or "none"

    controllers = built({"MPI": hvd.mpi_built, "Gloo": hvd.gloo_built})
    operations = built(
        {
            "MPI": hvd.mpi_built,
            "Gloo": hvd.gloo_built,
            "NCCL": hvd.nccl_built,
            "CCL": hvd.ccl_built,
            "DDL": hvd.ddl_built,
        }
    )
    say(
        comm.rank,
        "Horovod",
        f"{horovod.__version__} (controllers: {controllers}; operations: {operations})",
    )
    if not hvd.mpi_built():
        raise CheckError(f"Horovod was built without MPI: {rebuild}")
    libraries = mpi_libraries()
    if len(libraries) > 1:
        raise CheckError(
            f"Horovod and mpi4py load different MPI libraries ({', '.join(libraries)}): {rebuild}"
        )
    with TimeLimit("Horovod's allreduce", "see what HOROVOD_LOG_LEVEL=debug prints"):
        hvd.init(comm)
        if (hvd.rank(), hvd.size()) != (comm.rank, comm.size):
            problem = (
                f"Horovod counts this as rank {hvd.rank()} of {hvd.size()}, MPI as {comm.rank} of "
                f"{comm.size}: {rebuild}"
            )
        agree(comm, problem)
        mine = torch.arange(1000, dtype=torch.float32) + comm.rank
        got = hvd.allreduce(mine, op=hvd.Sum, name="ist_hpc.check")
        others = comm.size * (comm.size - 1) / 2
        right = torch.equal(got, comm.size * torch.arange(1000, dtype=torch.float32) + others)
        agree(comm, "" if right else f"Horovod's allreduce gave wrong numbers: {rebuild}")
        hvd.shutdown()
    say(comm.rank, "allreduce", f"Horovod, {comm.size} ranks: right")


def run_checks(rank: int, alone: bool) -> None:
    """Run all checks; raise if one fails on any rank (collective)."""
    problem = ""
    try:
        report_libraries(rank)
    except CheckError as error:
        problem = str(error)
    comm = check_mpi(alone)
    agree(comm, problem)
    check_alltoallv(comm)
    check_horovod(comm)


def main() -> int:
    """Run all checks, print the report on rank 0 and return the exit code (collective)."""
    rank = rank_of_launcher()
    try:
        run_checks(rank, alone="--alone" in sys.argv[1:])
    except Exception as error:
        text = " ".join(str(error).split())
        if not isinstance(error, CheckError | InputError):
            text = f"{type(error).__name__}: {text}: see INSTALL.md"
        # Rank 0 speaks for all, unless it did not fail: then it waits for this rank, which is still
        # alive after a while. Where both fail, rank 0 has ended the job by then.
        if rank != 0:
            time.sleep(3)
        print(f"check: {text}", flush=True)
        os._exit(1)  # without MPI_Finalize, which would wait for ranks that never call it
    if rank == 0:
        print("check: ok", flush=True)
    return 0


if __name__ == "__main__":
    run("check", main)

"""The frame of every command: streams that do not fail, and an end within a time limit."""

import atexit
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from ist_hpc.common import standard_streams
from ist_hpc.common.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_GO_ON, EXIT_INTERRUPTED
from ist_hpc.common.mpi_environment import rank_of_launcher
from ist_hpc.runtime import last_resort

_END_S = 900.0
"""Seconds for MPI to finalize: a rank may still be writing files that only it writes."""
_GO_ON_S = 20.0
"""The same if the run continues in another job: all ranks have met, and time is short."""


def run(program: str, main: Callable[[], int]) -> NoReturn:
    """Run a command to the end of its process: a whole entry point. Collective under MPI.

    program  its name in lines such as `show: error: ...`
    main     returns the exit code; prints the reason if that is not 0
    """
    standard_streams.mend()
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = main() if _has_folder(program) else EXIT_BAD_INPUT
    except SystemExit as asked:  # from argparse, for --help and --version
        code = asked.code if isinstance(asked.code, int) else int(asked.code is not None)
    except KeyboardInterrupt:  # before a command handles it in its own way
        standard_streams.complain(f"{program}: interrupted")
        code = EXIT_INTERRUPTED
    end(code, program)


def _has_folder(program: str) -> bool:
    """Whether the current folder, the base of relative paths, exists; print an error if not."""
    try:
        os.getcwd()
    except FileNotFoundError:
        if rank_of_launcher() == 0:
            standard_streams.complain(
                f"{program}: error: the folder that this was started in was removed; change to one "
                "that is there"
            )
        return False
    return True


def end(code: int, program: str = "ist_hpc") -> NoReturn:
    """End the process with this exit code. Collective under MPI.

    Calls registered functions, flushes output and finalises MPI. MPI waits for all ranks without a
    limit, so the process ends with exit code 1 after 15 minutes, or after 20 s if the run continues
    in another job, and prints where it is. Python's own end is skipped: it takes PyTorch apart
    object by object, which takes a third of the time of loading it, to free memory that the end of
    the process frees anyway.
    """
    last_resort.exit_after(_GO_ON_S if code == EXIT_GO_ON else _END_S)
    atexit._run_exitfuncs()  # Horovod's and gloo's threads end before MPI does
    logging.shutdown()
    if (mpi := sys.modules.get("mpi4py.MPI")) and mpi.Is_initialized() and not mpi.Is_finalized():
        mpi.Finalize()
    lost = standard_streams.unwritten()
    if lost:
        standard_streams.complain(f"{program}: error: {lost}")
        code = code or EXIT_FAILED
    os._exit(code)

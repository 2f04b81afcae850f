"""The end of a process that has done its work, however long others or Python would take."""

import atexit
import logging
import os
import sys
from typing import NoReturn

from ist_hpc import lastresort
from ist_hpc.errors import EXIT_FAILED, EXIT_GO_ON

_END_S = 900.0
"""That MPI is given to come to its end: a rank may still write what only it writes."""
_GO_ON_S = 20.0
"""The same of a run that is to go on in another job: all ranks have met, and time is short."""


def end(code: int) -> NoReturn:
    """End the process with this exit code; the last call of an entry point. Collective under MPI.

    Registered functions are called, output is flushed and MPI is finalised. As it waits for all
    ranks and knows no end of that, the process then ends with exit code 1 after 15 minutes, or 20
    s if the run is to go on in another job, and prints where it is. Python's own end is left out:
    it takes PyTorch apart object by object, which takes a third of the time that loading does and
    frees memory that goes with the process.
    """
    lastresort.exit_after(_GO_ON_S if code == EXIT_GO_ON else _END_S)
    atexit._run_exitfuncs()  # Horovod's and gloo's threads end before MPI does
    logging.shutdown()
    if (mpi := sys.modules.get("mpi4py.MPI")) and mpi.Is_initialized() and not mpi.Is_finalized():
        mpi.Finalize()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # nobody reads it any more, or the disk is full
            code = code or EXIT_FAILED
    os._exit(code)

"""Ends this process after a time, whatever it is doing: MPI calls may hold Python's lock.

A C thread (`faulthandler`) keeps one deadline at a time, prints where each thread is and exits with
code 1.
"""

import faulthandler
from contextlib import suppress

ABORT_S = 10.0
"""Seconds for MPI to end a job: it may wait for a lost host."""


def exit_after(seconds: float) -> None:
    """End the process after the given seconds, unless `disarm` is called before. Local."""
    with suppress(AttributeError, ValueError, OSError):  # a stderr that is no file cannot take it
        faulthandler.dump_traceback_later(seconds, exit=True)


def disarm() -> None:
    """Cancel the deadline. Local."""
    faulthandler.cancel_dump_traceback_later()

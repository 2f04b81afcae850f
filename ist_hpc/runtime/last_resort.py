"""Ending this process after a time, whatever it is in: calls of MPI may hold Python's lock.

One deadline at a time, kept by a thread of C (`faulthandler`), which prints where each thread is
and exits with code 1.
"""

import faulthandler
from contextlib import suppress

ABORT_S = 10.0
"""That MPI is given to end a job: it may wait for a host that is lost."""


def exit_after(seconds: float) -> None:
    """End the process after so many seconds, unless `disarm` comes first. Local."""
    with suppress(AttributeError, ValueError, OSError):  # a stderr that is no file has no room
        faulthandler.dump_traceback_later(seconds, exit=True)


def disarm() -> None:
    """Forget the deadline. Local."""
    faulthandler.cancel_dump_traceback_later()

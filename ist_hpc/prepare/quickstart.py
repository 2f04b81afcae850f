"""The data of the quickstart, made on first use."""

from pathlib import Path

from ist_hpc.common.errors import InputError
from ist_hpc.data.writing.target import AlreadyMadeError
from ist_hpc.prepare.digits import prepare_digits
from ist_hpc.runtime.launch import log
from ist_hpc.runtime.stopping import StopRequest

_LONGEST_WAIT_S = 300.0
"""Seconds to wait for another process that makes them; the whole start has 15 minutes."""


class _StoppedWaitingError(Exception):
    """A signal came while this process waited for another."""


def prepare_quickstart(path: Path, stop: StopRequest) -> int:
    """Make the digits, or wait for another process that does; return the signal that came, or 0."""

    def waiting(waited_s: float) -> None:
        if stop.number:
            raise _StoppedWaitingError
        if waited_s > _LONGEST_WAIT_S:
            raise InputError(
                f"another process has been making {path} for {waited_s:.0f} s, which takes seconds;"
                " end it, or start again later"
            )

    log.info("making the quickstart's data, %s", path)
    try:
        prepare_digits(path, if_missing=True, waiting=waiting)
    except AlreadyMadeError as made:
        log.info("%s", made)
    except _StoppedWaitingError:
        return stop.number
    return 0

"""Requests to end a process in order, by a signal.

In a run the signal sets a flag, and all ranks agree on it where they meet (`StopRequest`); a single
process ends at once, except in work that must not be torn (`EndRequest`).

Batch systems warn before they kill: Slurm by the signal of `sbatch --signal`, and by SIGTERM for
`scancel`, preemption and the end of the time limit.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mpi4py import MPI

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Whether this rank, or any, was asked to stop.

    Repeating a signal changes nothing, except for Ctrl-C: the second one ends the run at once.
    """

    def __init__(self) -> None:
        self.number = 0
        """The signal that this rank received, 0 if none."""

    def listen(self) -> None:
        """From now on record the signals. Local."""
        for number in SIGNALS:
            signal.signal(number, self._note)

    def leave(self) -> None:
        """From now on ignore the signals: the run has stopped. Local.

        When the first rank ends with an exit code other than 0, launchers end the others by
        SIGTERM, whose exit codes would then hide the one that means "go on".
        """
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == self.number == signal.SIGINT:
            raise KeyboardInterrupt("interrupted twice")
        self.number = number

    def agreed(self, comm: "MPI.Comm") -> int:
        """The signal that any rank received, the same on all; 0 if none did. Collective."""
        numbers = np.empty(comm.Get_size(), dtype=np.int64)
        comm.Allgather(np.array([self.number], dtype=np.int64), numbers)
        return int(numbers.max())


class EndRequest:
    """Turns SIGTERM, SIGHUP and Ctrl-C into one exception, so that a process tidies up and ends.

    It is SystemExit, or KeyboardInterrupt for Ctrl-C. Python loses an exception raised while it
    removes an object, and HDF5 crashes on one raised while it writes. So it is held back in blocks
    that must not be interrupted, and `look` raises it again where work continued all the same.
    """

    NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.number = 0
        """The first signal received, 0 if none."""
        self._holding = 0

    def listen(self) -> None:
        """From now on handle the signals, except those that are already ignored (nohup)."""
        for number in self.NUMBERS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:  # a second exception would end the tidying up
            return
        self.number = number
        if not self._holding:
            self.look()

    def look(self) -> None:
        """Raise the exception if a signal came and is not held back."""
        if not self.number or self._holding:
            return
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + self.number)

    @contextmanager
    def held_back(self, finishing: bool = False) -> Iterator[None]:
        """A block that raises nothing until its end, and not even there if `finishing`."""
        self._holding += 1
        try:
            yield
        finally:
            self._holding -= 1
        if not finishing:
            self.look()


end_request = EndRequest()
"""The one of this process. It does nothing in a process that does not listen."""


def name_of(number: int) -> str:
    """The name of a signal: SIGUSR1."""
    return signal.Signals(number).name

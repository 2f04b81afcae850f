"""Asking a process to end in order, by a signal.

In a run it sets a flag, and all ranks agree on it where they meet (`StopRequest`); a process that
is alone ends at once, but for what must not be torn (`EndRequest`).

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

    A signal that comes again changes nothing, but for Ctrl-C: the second one ends the run at once.
    """

    def __init__(self) -> None:
        self.number = 0
        """The signal that came, 0 if none did. Of this rank."""

    def listen(self) -> None:
        """From now on take note of the signals. Local."""
        for number in SIGNALS:
            signal.signal(number, self._note)

    def leave(self) -> None:
        """From now on ignore the signals: the run has stopped. Local.

        The first rank that ends with an exit code other than 0 makes launchers end the others by
        SIGTERM, whose exit codes would then hide the one that means "go on".
        """
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == self.number == signal.SIGINT:
            raise KeyboardInterrupt("interrupted twice")
        self.number = number

    def agreed(self, comm: "MPI.Comm") -> int:
        """The signal if one came to any rank, the same on all; 0 if none did. Collective."""
        numbers = np.empty(comm.Get_size(), dtype=np.int64)
        comm.Allgather(np.array([self.number], dtype=np.int64), numbers)
        return int(numbers.max())


class EndRequest:
    """SIGTERM, SIGHUP and Ctrl-C to a process that tidies up and ends: an exception, once.

    It is SystemExit, or KeyboardInterrupt for Ctrl-C. Python loses an exception that comes as it
    removes an object, and HDF5 crashes on one that comes as it writes. So it is held back in blocks
    that cannot have it, and `look` raises it again where work goes on all the same.
    """

    NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.number = 0
        """The first signal that came, 0 if none did."""
        self._holding = 0

    def listen(self) -> None:
        """From now on answer the signals, but those that are ignored already (nohup)."""
        for number in self.NUMBERS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:  # to be asked twice would end the tidying up
            return
        self.number = number
        if not self._holding:
            self.look()

    def look(self) -> None:
        """Raise the exception if a signal came, and it is not held back."""
        if not self.number or self._holding:
            return
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + self.number)

    @contextmanager
    def held_back(self, finishing: bool = False) -> Iterator[None]:
        """A block within which nothing is raised; it is at its end, unless all is `finishing`."""
        self._holding += 1
        try:
            yield
        finally:
            self._holding -= 1
        if not finishing:
            self.look()


end_request = EndRequest()
"""This process's. Of a process that does not listen nothing comes."""


def name_of(number: int) -> str:
    """The name of a signal: SIGUSR1."""
    return signal.Signals(number).name

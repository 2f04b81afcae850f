"""Asking a run to end in order: a signal sets a flag, and all ranks agree on it where they meet.

Batch systems warn before they kill: Slurm by the signal of `sbatch --signal`, and by SIGTERM for
`scancel`, preemption and the end of the time limit.
"""

import signal
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


def name_of(number: int) -> str:
    """The name of a signal: SIGUSR1."""
    return signal.Signals(number).name

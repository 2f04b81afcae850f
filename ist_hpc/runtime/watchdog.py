"""Ends a run that makes no progress: a host, a link or a rank is lost, or hangs.

MPI waits for ever for a rank on a lost host. In each rank a thread checks when the rank last began
something else, and ends the job if that was too long ago.
"""

import os
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from ist_hpc.common.errors import EXIT_FAILED
from ist_hpc.runtime import last_resort
from ist_hpc.runtime.meters import START, Meter

if TYPE_CHECKING:
    from mpi4py import MPI

_LOOKS = 20  # checks within the time of silence
_LONGEST_LOOK_S = 5.0
_START_FACTOR = 6  # a start checks whole files, and no rank knows how far the others are
_SUSPENDED_FACTOR = 3  # times the time between two checks


class Watchdog:
    """Watches this rank's meter while the context lasts.

    silence_s  seconds that a rank may spend on one thing, mostly waiting for the slowest rank: a
               round, a checkpoint; six times that at the start
    report     called with the reason, one line, before the job ends; it must not communicate
    """

    def __init__(
        self, comm: "MPI.Comm", meter: Meter, silence_s: float, report: Callable[[str], None]
    ) -> None:
        self._comm, self._meter = comm, meter
        self._silence_s, self._report = silence_s, report
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        last_resort.disarm()  # the deadline of MPI's start
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        look_s = min(_LONGEST_LOOK_S, self._silence_s / _LOOKS)
        looked_s = awake_since_s = time.perf_counter()
        while not self._done.wait(look_s):
            now_s = time.perf_counter()
            if now_s - looked_s > _SUSPENDED_FACTOR * look_s:
                awake_since_s = now_s  # the process was suspended, which does not count
            looked_s = now_s
            silent_s = now_s - max(self._meter.changed_s, awake_since_s)
            factor = _START_FACTOR if self._meter.doing == START else 1
            if silent_s > factor * self._silence_s:
                self._end(silent_s)

    def _end(self, silent_s: float) -> None:
        rank, ranks = self._comm.Get_rank(), self._comm.Get_size()
        last_resort.exit_after(last_resort.ABORT_S)
        self._report(
            f"rank {rank} of {ranks} on {socket.gethostname()} has made no progress in "
            f"`{self._meter.doing}` for {silent_s:.0f} s (runtime.silence_s: {self._silence_s:g}): "
            "a rank, a host or a link is lost or hangs; if it only takes that long, raise that key"
        )
        self._comm.Abort(EXIT_FAILED)
        os._exit(EXIT_FAILED)

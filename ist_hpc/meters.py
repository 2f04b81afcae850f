"""What a run spends: seconds by kind, bytes, memory; of one rank, and of all together."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from ist_hpc.devices import CPU, peak_gpu_mib
from ist_hpc.exchange import ExchangeReport

if TYPE_CHECKING:
    from mpi4py import MPI

KINDS = ("data", "train", "exchange", "average", "evaluate", "save")
"""What the seconds of a run are spent on."""


def peak_rss_mib() -> float:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Meter:
    """What one rank, computing on `device`, used since the meter was last read."""

    def __init__(self, device: torch.device = CPU) -> None:
        self._device = device
        self._clear()

    def _clear(self) -> None:
        self._seconds = dict.fromkeys(KINDS, 0.0)
        self._loss_sum, self._steps = 0.0, 0
        self._bytes_sent, self._bytes_received = 0, 0

    @contextmanager
    def timing(self, kind: str) -> Iterator[None]:
        """Add the seconds of the block to `kind`."""
        begin = time.perf_counter()
        yield
        self._seconds[kind] += time.perf_counter() - begin

    def count_exchange(self, report: ExchangeReport) -> None:
        """Add the bytes of an exchange."""
        self._bytes_sent += report.bytes_sent
        self._bytes_received += report.bytes_received

    def count_losses(self, losses: list[float]) -> None:
        """Add the losses of local steps."""
        self._loss_sum += sum(losses)
        self._steps += len(losses)

    def read(self, comm: "MPI.Comm") -> "Reading":
        """The meters of all ranks, the same on all; begins anew. Collective (a few numbers)."""
        own = np.array(
            [
                *(self._seconds[kind] for kind in KINDS),
                *(self._loss_sum, self._steps, self._bytes_sent, self._bytes_received),
                *(peak_rss_mib(), peak_gpu_mib(self._device), time.monotonic()),
            ]
        )
        table = np.empty((comm.Get_size(), len(own)))
        comm.Allgather(own, table)
        self._clear()
        return Reading(table)


class Reading:
    """The meters of all ranks over some time."""

    def __init__(self, table: npt.NDArray[np.float64]) -> None:
        columns = table.T
        means = columns[: len(KINDS)].mean(axis=1)
        self.seconds = {kind: round(float(s), 6) for kind, s in zip(KINDS, means, strict=True)}
        """Of each kind, the mean over ranks."""
        losses, steps, sent, received, rss, gpu, clocks = columns[len(KINDS) :]
        self.loss = float(losses.sum() / max(1.0, steps.sum()))
        """Mean loss of the local steps of all ranks."""
        self.bytes_sent = int(sent.sum())
        self.bytes_received = int(received.sum())
        self.peak_rss_mib = [round(float(value), 1) for value in rss]
        """Of each rank."""
        self.peak_gpu_mib = [round(float(value), 1) for value in gpu]
        """Of each rank's tensors, zeros on the CPU."""
        self.clock_s = float(clocks[0])
        """The clock of rank 0, for decisions by time that all ranks must make alike."""

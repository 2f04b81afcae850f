"""What a run uses: seconds by kind, bytes, memory; of one rank, and of all together."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from ist_hpc.common.sizes import ELEMENT_BYTES, allreduce_bytes
from ist_hpc.runtime.devices import CPU, peak_gpu_mib

if TYPE_CHECKING:
    from mpi4py import MPI

TIMED = ("data", "train", "exchange", "average", "evaluate", "save", "wait")
START = "start"
KINDS = (*TIMED, "other")
"""The kinds of seconds of a run: `wait` is the wait for the slowest rank at the previous reading of
the meters, so it belongs to the time read then; `other` is the rest."""

_DIVERGED_LOSS = 1e9  # an untrained network with 670,091 labels has 464,000


def has_diverged(loss: float) -> bool:
    """Whether a mean loss is not finite, or larger than that of any network that learns."""
    return not abs(loss) < _DIVERGED_LOSS


def peak_rss_mib() -> float:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@dataclass
class ExchangeReport:
    """Cost of an exchange on this rank, in seconds and in bytes of the buffers passed to MPI.

    `pack_s` counts packing, unpacking, copies within the rank and copies between a GPU and the
    host; `transfer_s` counts the wait for Alltoallv, and so for the slowest rank. With several
    chunks the next one is packed, and the previous one unpacked, while a chunk is on its way.
    """

    plan_s: float = 0.0
    pack_s: float = 0.0
    transfer_s: float = 0.0
    bytes_sent: int = 0
    bytes_received: int = 0
    chunks: int = 0

    @property
    def seconds(self) -> float:
        """The sum of all seconds."""
        return self.plan_s + self.pack_s + self.transfer_s

    def __add__(self, other: "ExchangeReport") -> "ExchangeReport":
        """What both cost together."""
        both = zip(astuple(self), astuple(other), strict=True)
        return ExchangeReport(*(one + more for one, more in both))


class Meter:
    """What one rank, computing on `device`, used since the meter was last read."""

    def __init__(self, device: torch.device = CPU) -> None:
        self.device = device
        self.doing, self.changed_s = START, time.perf_counter()
        """The kind being timed, and since when: for a watchdog in another thread."""
        self._clear()

    def _clear(self) -> None:
        self._since = time.perf_counter()
        self._inner_s = 0.0  # already counted within the current block
        self._seconds = dict.fromkeys(TIMED, 0.0)
        self._loss_sum, self._steps = 0.0, 0
        self._bytes_sent, self._bytes_received, self._bytes_averaged = 0, 0, 0.0

    @contextmanager
    def timing(self, kind: str) -> Iterator[None]:
        """Add the seconds of the block to `kind`, without those of blocks timed within it."""
        begin, outer_s, outer = time.perf_counter(), self._inner_s, self.doing
        self._inner_s = 0.0
        self.doing, self.changed_s = kind, begin
        yield
        self.doing, self.changed_s = outer, time.perf_counter()
        spent = time.perf_counter() - begin
        self._seconds[kind] += spent - self._inner_s
        self._inner_s = outer_s + spent

    def beat(self) -> None:
        """Report progress in a long block: a batch or a part of it is done."""
        self.changed_s = time.perf_counter()

    def count_exchange(self, report: ExchangeReport) -> None:
        """Add the bytes of an exchange."""
        self._bytes_sent += report.bytes_sent
        self._bytes_received += report.bytes_received

    def count_average(self, elements: int, ranks: int, element_bytes: int = 4) -> None:
        """Add the bytes that this rank receives in an allreduce, counted as a ring's."""
        self._bytes_averaged += allreduce_bytes(elements, ranks) * element_bytes / ELEMENT_BYTES

    def count_losses(self, losses: list[float]) -> None:
        """Add the losses of local steps."""
        self._loss_sum += sum(losses)
        self._steps += len(losses)

    def read(self, comm: "MPI.Comm", flag: int = 0) -> "Reading":
        """The meters of all ranks, the same on all; resets them. Collective (a few numbers).

        `flag` travels with them: a number other than 0 is a message to the other ranks.
        """
        begin = time.perf_counter()
        self.doing, self.changed_s = "wait", begin
        other_s = begin - self._since - sum(self._seconds.values())
        own = np.array(
            [
                *(*self._seconds.values(), other_s, self._loss_sum, self._steps),
                *(self._bytes_sent, self._bytes_received, self._bytes_averaged),
                *(peak_rss_mib(), peak_gpu_mib(self.device), time.monotonic(), flag),
            ]
        )
        table = np.empty((comm.Get_size(), len(own)))
        comm.Allgather(own, table)
        self._clear()
        self._since = begin
        self._seconds["wait"] = time.perf_counter() - begin  # of the next reading
        self.doing, self.changed_s = "other", time.perf_counter()
        return Reading(table)


class Reading:
    """The meters of all ranks over some time."""

    def __init__(self, table: npt.NDArray[np.float64]) -> None:
        columns = table.T
        means = columns[: len(KINDS)].mean(axis=1)
        self.seconds = {kind: round(float(s), 6) for kind, s in zip(KINDS, means, strict=True)}
        """The mean over ranks, by kind."""
        losses, steps, sent, received, averaged, rss, gpu, clocks, flags = columns[len(KINDS) :]
        self.loss = float(losses.sum() / max(1.0, steps.sum()))
        """Mean loss of the local steps of all ranks."""
        means_of_ranks = losses / np.maximum(steps, 1.0)
        self.diverged = [rank for rank, loss in enumerate(means_of_ranks) if has_diverged(loss)]
        """Ranks whose loss is not finite, or too large."""
        self.flag = int(flags.max())
        """The largest of the ranks' flags."""
        self.bytes_sent = int(sent.sum())
        self.bytes_received = int(received.sum())
        self.bytes_averaged = round(float(averaged.sum()))
        """Counted as a ring's allreduce, not measured."""
        self.peak_rss_mib = [round(float(value), 1) for value in rss]
        """The peak of each rank."""
        self.peak_gpu_mib = [round(float(value), 1) for value in gpu]
        """The peak of each rank's tensors, zeros on the CPU."""
        self.clock_s = float(clocks[0])
        """The clock of rank 0, for decisions by time that must be equal on all ranks."""

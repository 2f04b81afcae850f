"""Several ranks in one process, for properties that are to be tried at many sizes quickly.

The exchange under test is the real one; only Alltoallv is a copy between threads here. The same
properties run over real MPI in tests/mpi.
"""

import threading
from collections.abc import Callable

import numpy as np


class ThreadRanks:
    """`ranks` threads that meet in collective calls."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self.barrier = threading.Barrier(ranks, timeout=60)
        self.sent: list = [None] * ranks

    def run(self, body: Callable) -> list:
        """`body(comm)` on every rank; the results in the order of the ranks."""
        results: list = [None] * self.ranks
        errors: list = []

        def call(rank: int) -> None:
            try:
                results[rank] = body(ThreadComm(self, rank))
            except BaseException as error:
                errors.append(error)
                self.barrier.abort()

        threads = [threading.Thread(target=call, args=(rank,)) for rank in range(self.ranks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        broken = threading.BrokenBarrierError
        for error in sorted(errors, key=lambda error: isinstance(error, broken)):
            raise error
        return results


class ThreadComm:
    def __init__(self, job: ThreadRanks, rank: int) -> None:
        self.job, self.rank = job, rank
        self.calls = 0

    def Get_rank(self) -> int:  # noqa: N802
        return self.rank

    def Get_size(self) -> int:  # noqa: N802
        return self.job.ranks

    def Ialltoallv(self, send, receive):  # noqa: N802
        """Nothing is copied before `Wait`, so a buffer that is used again too early shows."""
        self.calls += 1
        return ThreadRequest(self, send, receive)

    def Allgather(self, own, gathered) -> None:  # noqa: N802
        self.job.sent[self.rank] = own
        self.job.barrier.wait()
        for rank, part in enumerate(self.job.sent):
            gathered[rank] = part
        self.job.barrier.wait()

    def Alltoallv(self, send, receive) -> None:  # noqa: N802
        self.calls += 1
        self._exchange(send, receive)

    def _exchange(self, send, receive) -> None:
        self.job.sent[self.rank] = send
        self.job.barrier.wait()
        into, (counts, displacements) = receive
        assert int(np.sum(counts)) == len(into)
        for peer in range(self.job.ranks):
            data, (peer_counts, peer_displacements) = self.job.sent[peer]
            assert peer_counts[self.rank] == counts[peer], (peer, self.rank)
            start, count = peer_displacements[self.rank], counts[peer]
            part = data[start : start + count]
            into[displacements[peer] : displacements[peer] + count] = part
        self.job.barrier.wait()


class ThreadRequest:
    def __init__(self, comm: ThreadComm, send, receive) -> None:
        self.comm, self.send, self.receive = comm, send, receive

    def Test(self) -> bool:  # noqa: N802
        return False

    def Wait(self) -> None:  # noqa: N802
        self.comm._exchange(self.send, self.receive)

"""Moving weights: the only place where partitioned tensors travel between ranks.

`exchange` moves every element from its holder in one placement to its holder in another: the next
round, evaluation, checkpoint and resume all use this operation. It needs one packed buffer per
peer, one Alltoallv per chunk, no metadata and no handshake (paper, section 3.2, without its
coordinator). Only rows that a rank needs by its batches are asked for (`ask`), and given back.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ist_hpc.common.blocks import Units
from ist_hpc.common.sizes import ELEMENT_BYTES
from ist_hpc.exchange.demand import Demand, split_by_home
from ist_hpc.exchange.giving_back import plan_giving_back, plan_numbers
from ist_hpc.exchange.landing import HomeLanding, Landing, add_numbers
from ist_hpc.exchange.placement import Placement, TensorSpec
from ist_hpc.exchange.plan import SLOTS, Chunk, Piece, Plan, plan_exchange
from ist_hpc.exchange.settling import plan_settling
from ist_hpc.exchange.staging import MpiBuffer, Staging, staging_of
from ist_hpc.exchange.tensors import Held, State, add, divide, gather, scatter
from ist_hpc.runtime.devices import CPU, synchronise
from ist_hpc.runtime.meters import ExchangeReport

if TYPE_CHECKING:
    from mpi4py import MPI


class Exchanger:
    """Moves weights between placements over one communicator, and keeps its buffers.

    Parameters
    ----------
    comm
        The ranks that hold the weights.
    buffer_mib
        Bound of all send and receive buffers together. An exchange that needs more goes in chunks,
        with two buffers of each kind. On a GPU there is one more, to pack in.
    staging
        Where the weights are, and how MPI accesses them; by default on the CPU.
    """

    def __init__(self, comm: "MPI.Comm", buffer_mib: float, staging: Staging | None = None) -> None:
        self.comm = comm
        self.rank = comm.Get_rank()
        self.buffer_bytes = max(1, int(buffer_mib * 2**20))
        self.staging = staging or staging_of(CPU, cuda_aware=False)
        self.device = self.staging.device

    def plan(self, specs: Sequence[TensorSpec], source: Placement, target: Placement) -> Plan:
        """The plan that `exchange` follows. Local."""
        return plan_exchange(specs, source, target, self.rank, self.buffer_bytes)

    def exchange(
        self,
        specs: Sequence[TensorSpec],
        source: Placement,
        target: Placement,
        state: State,
        keep_source: bool = False,
    ) -> ExchangeReport:
        """Move `specs` in `state` from `source` to `target`. Collective.

        With `keep_source` the tensors of the source placement are kept beside those of the target:
        after such a visit home the round can continue as if nothing had happened.
        """
        start = time.perf_counter()
        plan = self.plan(specs, source, target)
        report = ExchangeReport(plan_s=time.perf_counter() - start, chunks=len(plan.chunks))
        landing = Landing(plan, state, keep_source, self.device)
        self._carry_out(plan, landing, state, report)
        return report

    def ask(self, size: int, rows: Units) -> tuple[Demand, ExchangeReport]:
        """Ask the homes of demanded rows for what this rank needs in a round. Collective.

        size  of all rows
        rows  global, ascending, each once; int64
        """
        begin = time.perf_counter()
        ranks = self.comm.Get_size()
        counts = np.empty((ranks, ranks), dtype=np.int64)
        by_home = split_by_home(rows, size, ranks)
        self.comm.Allgather(np.array([len(part) for part in by_home], dtype=np.int64), counts)
        going, coming = counts[self.rank], counts[:, self.rank]
        asked = np.empty(int(coming.sum()), dtype=np.int32)
        self.comm.Alltoallv(
            [rows.astype(np.int32), (going, np.cumsum(going) - going)],
            [asked, (coming, np.cumsum(coming) - coming)],
        )
        of_ranks = np.split(asked.astype(np.int64), np.cumsum(coming)[:-1])
        report = ExchangeReport(
            transfer_s=time.perf_counter() - begin,
            bytes_sent=asked.itemsize * int(going.sum() - going[self.rank]),
            bytes_received=asked.itemsize * int(coming.sum() - coming[self.rank]),
        )
        return Demand(self.rank, size, rows, tuple(of_ranks), counts), report

    def give_back(
        self, specs: Sequence[TensorSpec], placement: Placement, state: State
    ) -> ExchangeReport:
        """Bring the demanded tensors among `specs` home at a round's end. Collective.

        Of a number a row, of which several ranks have one, the home takes s + the sum over these
        ranks, ascending, of (units / all units) x (s_rank - s): what each changed, by the part of
        the units that it has. These numbers go in one call, whatever the buffer limit. Does nothing
        for one rank, which has demanded tensors at home.
        """
        begin = time.perf_counter()
        plan = plan_giving_back(specs, placement, self.rank, self.buffer_bytes)
        numbers = plan_numbers(specs, placement, self.rank)
        chunks = len(plan.chunks) + len(numbers.chunks)
        report = ExchangeReport(plan_s=time.perf_counter() - begin, chunks=chunks)
        self._carry_out(plan, HomeLanding(plan, state), state, report)
        for chunk in numbers.chunks:
            send = self._pack(chunk, 0, state, report, None)
            arrived = self._send_off(chunk, 0, send, report)
            arrived.wait(report)
            begin = time.perf_counter()
            received = self.staging.arrived(0, arrived.elements)
            values = [part for _, part in _parts(chunk.recv_pieces, received)]
            add_numbers(numbers, placement, state, values)
            synchronise(self.device)
            report.pack_s += time.perf_counter() - begin
        return report

    def settle(
        self, specs: Sequence[TensorSpec], placement: Placement, state: State
    ) -> ExchangeReport:
        """Replace each unit that several ranks trained by the mean of its copies, at its holder.

        The other copies are stale afterwards. Each sum begins with the holder's copy and continues
        by rank, so it is the same in every run. The buffers are those of an exchange, but always
        have room for all copies of a unit of one tensor. Does nothing if no unit is shared.
        Collective.
        """
        begin = time.perf_counter()
        plans = plan_settling(specs, placement, self.rank, self.buffer_bytes)
        report = ExchangeReport(plan_s=time.perf_counter() - begin, chunks=len(plans))
        for plan in plans:
            send = self._pack(plan.chunk, 0, state, report, None)
            arrived = self._send_off(plan.chunk, 0, send, report)
            arrived.wait(report)
            begin = time.perf_counter()
            received = self.staging.arrived(0, arrived.elements)
            for piece, part in _parts(plan.chunk.recv_pieces, received):
                add(state[piece.spec.key].place("subnet"), piece, part)
            for key, copies in plan.copies.items():
                divide(state[key].place("subnet"), copies)
            synchronise(self.device)
            report.pack_s += time.perf_counter() - begin
        return report

    def _carry_out(
        self, plan: Plan, landing: Landing | HomeLanding, state: State, report: ExchangeReport
    ) -> None:
        """Send and receive what a plan says, chunk by chunk."""
        in_flight: _Flight | None = None
        for index, chunk in enumerate(plan.chunks):
            send = self._pack(chunk, index, state, report, in_flight)
            arrived = in_flight
            if arrived is not None:
                arrived.wait(report)
            in_flight = self._send_off(chunk, index, send, report)
            if arrived is not None:
                self._unpack(arrived, landing, report, in_flight)
        if in_flight is not None:
            in_flight.wait(report)
            self._unpack(in_flight, landing, report, None)
        begin = time.perf_counter()
        landing.finish()
        synchronise(self.device)
        report.pack_s += time.perf_counter() - begin

    def _pack(
        self,
        chunk: Chunk,
        index: int,
        state: State,
        report: ExchangeReport,
        in_flight: "_Flight | None",
    ) -> MpiBuffer:
        """Fill the send buffer of a chunk while the previous chunk is on its way."""
        begin = time.perf_counter()
        packed = self.staging.packing(index % SLOTS, int(chunk.send_counts.sum()))
        for piece, part in _parts(chunk.send_pieces, packed):
            gather(state[piece.spec.key].place(piece.place), piece, part)
            if in_flight is not None:
                in_flight.progress()
        send = self.staging.outgoing(index % SLOTS, packed)
        report.pack_s += time.perf_counter() - begin
        return send

    def _send_off(
        self, chunk: Chunk, index: int, send: MpiBuffer, report: ExchangeReport
    ) -> "_Flight":
        elements = int(chunk.recv_counts.sum())
        begin = time.perf_counter()
        receive = self.staging.receiving(index % SLOTS, elements)
        going = [send, (chunk.send_counts, chunk.send_displacements)]
        coming = [receive, (chunk.recv_counts, chunk.recv_displacements)]
        request: MPI.Request | None = None
        if self.staging.overlaps:
            request = self.comm.Ialltoallv(going, coming)
        else:
            self.comm.Alltoallv(going, coming)
        report.transfer_s += time.perf_counter() - begin
        report.bytes_sent += int(chunk.send_counts.sum()) * ELEMENT_BYTES
        report.bytes_received += elements * ELEMENT_BYTES
        return _Flight(chunk, index, elements, request)

    def _unpack(
        self,
        arrived: "_Flight",
        landing: Landing | HomeLanding,
        report: ExchangeReport,
        in_flight: "_Flight | None",
    ) -> None:
        """Empty the receive buffer of a chunk while the next chunk is on its way."""
        begin = time.perf_counter()
        received = self.staging.arrived(arrived.index % SLOTS, arrived.elements)
        for piece, part in _parts(arrived.chunk.recv_pieces, received):
            scatter(landing.tensor(piece), piece, part)
            if in_flight is not None:
                in_flight.progress()
        landing.finish_chunk(arrived.index)
        report.pack_s += time.perf_counter() - begin


@dataclass
class _Flight:
    """A chunk on its way, or already complete if the call blocked (`request` is None).

    elements  how many float32 the rank receives
    """

    chunk: Chunk
    index: int
    elements: int
    request: "MPI.Request | None"

    def progress(self) -> None:
        """Let MPI move data: without a thread of its own MPI does so only inside calls."""
        if self.request is not None:
            self.request.Test()

    def wait(self, report: ExchangeReport) -> None:
        """Wait until everything in the chunk is sent and received."""
        begin = time.perf_counter()
        if self.request is not None:
            self.request.Wait()
        report.transfer_s += time.perf_counter() - begin


def _parts(pieces: Iterable[Piece], buffer: Tensor) -> Iterable[tuple[Piece, Tensor]]:
    """Yield each piece with its part of the buffer; the pieces follow one another."""
    offset = 0
    for piece in pieces:
        yield piece, buffer[offset : offset + piece.size]
        offset += piece.size
    assert offset == buffer.numel()


def drop_home_copies(specs: Iterable[TensorSpec], placement: Placement, state: State) -> None:
    """Free the home blocks that `placement` does not use, after a visit home. Local."""
    for spec in specs:
        if not placement.keeps_home_block(spec):
            state[spec.key].home = None


def allocate_home(
    specs: Iterable[TensorSpec], rank: int, ranks: int, device: torch.device = CPU
) -> State:
    """Uninitialised home blocks, to be filled with initial values or from a checkpoint. Local."""
    return {
        spec.key: Held(home=torch.empty(spec.home_shape(rank, ranks), device=device))
        for spec in specs
    }

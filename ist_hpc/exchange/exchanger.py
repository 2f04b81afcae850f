"""Moving weights: the only place where partitioned tensors travel between ranks.

`exchange` moves every element from its holder in one placement to its holder in another: the next
round, evaluation, checkpoint and resume all use this operation. It needs one packed buffer per
peer, one Alltoallv per chunk, no metadata and no handshake (paper, section 3.2, without its
coordinator).
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ist_hpc.common.sizes import ELEMENT_BYTES
from ist_hpc.exchange.placement import Placement, TensorSpec
from ist_hpc.exchange.plan import SLOTS, Chunk, Piece, Plan, plan_exchange
from ist_hpc.exchange.settling import plan_settling
from ist_hpc.exchange.staging import MpiBuffer, Staging, staging_of
from ist_hpc.exchange.tensors import Held, State, add, divide, gather, move, scatter
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
        landing = _Landing(plan, state, keep_source, self.device)
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
        landing: "_Landing",
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


class _Landing:
    """The tensors that receive, and when the old ones can be freed.

    Old and new tensor exist together only from the first chunk that writes the new one to the last
    chunk that touches either, so an exchange in many chunks doubles few tensors at a time
    (`Plan.doubled_bytes`).
    """

    def __init__(self, plan: Plan, state: State, keep_source: bool, device: torch.device) -> None:
        self.plan, self.state, self.keep_source, self.device = plan, state, keep_source, device
        self.new: dict[str, Tensor] = {}
        self.local: dict[str, list[tuple[Piece, Piece]]] = {spec.key: [] for spec in plan.specs}
        for source, target in plan.local_moves:
            self.local[source.spec.key].append((source, target))
        self.specs = {spec.key: spec for spec in plan.specs}
        self.done_at: dict[int, list[str]] = {}
        for key, index in plan.last_chunks.items():
            self.done_at.setdefault(index, []).append(key)

    def tensor(self, piece: Piece) -> Tensor:
        """The tensor that a received piece is written to."""
        self._open(piece.spec)
        if piece.place == "home":
            return self.state[piece.spec.key].place("home")
        return self.new[piece.spec.key]

    def _open(self, spec: TensorSpec) -> None:
        if spec.key in self.new:
            return
        target, held = self.plan.target, self.state[spec.key]
        if target.is_home:
            if held.home is None:
                shape = spec.home_shape(self.plan.rank, target.ranks)
                held.home = torch.empty(shape, device=self.device)
            self.new[spec.key] = held.home
        else:
            shape = spec.subnet_shape(self.plan.rank, target.ranks)
            self.new[spec.key] = torch.empty(shape, device=self.device)
        for source, landing in self.local[spec.key]:
            written = held.place("home") if landing.place == "home" else self.new[spec.key]
            move(held.place(source.place), source, written, landing)

    def finish_chunk(self, index: int) -> None:
        """Close the tensors that no later chunk touches."""
        for key in self.done_at.get(index, ()):
            self._close(self.specs.pop(key))

    def finish(self) -> None:
        """Close the tensors that moved only within this rank."""
        for spec in self.specs.values():
            if self.local[spec.key]:
                self._close(spec)

    def _close(self, spec: TensorSpec) -> None:
        self._open(spec)
        held, new = self.state[spec.key], self.new.pop(spec.key)
        if self.plan.target.is_home:
            if not self.keep_source:
                held.subnet = None
        else:
            held.subnet = new
            if not self.keep_source and not self.plan.target.keeps_home_block(spec):
                held.home = None


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

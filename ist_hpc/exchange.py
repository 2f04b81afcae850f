"""Moving weights: the only place where partitioned tensors travel between ranks.

`exchange` takes every element from its holder in one placement to its holder in another: the next
round, evaluation, checkpoint and resume are all this one operation. One packed buffer a peer, one
Alltoallv a chunk, no metadata and no handshake (paper, section 3.2, without its coordinator).
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ist_hpc.held import Held, State, gather, move, scatter
from ist_hpc.placement import Placement, TensorSpec
from ist_hpc.transfer import ELEMENT_BYTES, Chunk, Piece, Plan, plan_exchange

if TYPE_CHECKING:
    from mpi4py import MPI


@dataclass
class ExchangeReport:
    """What one exchange cost this rank; seconds and bytes. Bytes are of the buffers passed to MPI.

    `pack_s` counts packing, unpacking and the copies that stay on the rank; `transfer_s` counts
    Alltoallv, which includes waiting for the slowest rank.
    """

    plan_s: float = 0.0
    pack_s: float = 0.0
    transfer_s: float = 0.0
    bytes_sent: int = 0
    bytes_received: int = 0
    chunks: int = 0

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.plan_s + self.pack_s + self.transfer_s


class Exchanger:
    """Exchanges between placements over one communicator, with buffers that it keeps.

    buffer_mib  bound of the send and the receive buffer together
    """

    def __init__(self, comm: "MPI.Comm", buffer_mib: float) -> None:
        self.comm = comm
        self.rank = comm.Get_rank()
        self.buffer_bytes = max(1, int(buffer_mib * 2**20))
        self._send = torch.empty(0)
        self._receive = torch.empty(0)

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

        With `keep_source` what the source placement held stays beside the target's: a visit home,
        after which the round can go on as if nothing had happened.
        """
        start = time.perf_counter()
        plan = self.plan(specs, source, target)
        report = ExchangeReport(plan_s=time.perf_counter() - start, chunks=len(plan.chunks))
        landing = _Landing(plan, state, keep_source)
        for index, chunk in enumerate(plan.chunks):
            self._move_chunk(chunk, state, landing, report)
            begin = time.perf_counter()
            landing.finish_chunk(index)
            report.pack_s += time.perf_counter() - begin
        begin = time.perf_counter()
        landing.finish()
        report.pack_s += time.perf_counter() - begin
        return report

    def _move_chunk(
        self, chunk: Chunk, state: State, landing: "_Landing", report: ExchangeReport
    ) -> None:
        begin = time.perf_counter()
        send = self._buffer("_send", int(chunk.send_counts.sum()))
        receive = self._buffer("_receive", int(chunk.recv_counts.sum()))
        for piece, part in _parts(chunk.send_pieces, send):
            gather(state[piece.spec.key].place(piece.place), piece, part)
        packed = time.perf_counter()
        self.comm.Alltoallv(
            [send.numpy(), (chunk.send_counts, chunk.send_displacements)],
            [receive.numpy(), (chunk.recv_counts, chunk.recv_displacements)],
        )
        moved = time.perf_counter()
        for piece, part in _parts(chunk.recv_pieces, receive):
            scatter(landing.tensor(piece), piece, part)
        report.pack_s += packed - begin + time.perf_counter() - moved
        report.transfer_s += moved - packed
        report.bytes_sent += send.numel() * ELEMENT_BYTES
        report.bytes_received += receive.numel() * ELEMENT_BYTES

    def _buffer(self, name: str, elements: int) -> Tensor:
        """A flat buffer kept from exchange to exchange, since fresh pages cost as much as a copy.

        It grows a little beyond what is asked for: counts differ from round to round, and a buffer
        that grew by a few bytes each time would be fresh each time.
        """
        buffer: Tensor = getattr(self, name)
        if buffer.numel() < elements:
            buffer = torch.empty(0)
            setattr(self, name, buffer)  # the old one goes before the new one is there
            limit = self.buffer_bytes // (2 * ELEMENT_BYTES)
            buffer = torch.empty(max(elements, min(elements + elements // 8, limit)))
            setattr(self, name, buffer)
        return buffer[:elements]


def _parts(pieces: Iterable[Piece], buffer: Tensor) -> Iterable[tuple[Piece, Tensor]]:
    """Each piece with its part of the buffer; pieces lie one behind the other."""
    offset = 0
    for piece in pieces:
        yield piece, buffer[offset : offset + piece.size]
        offset += piece.size
    assert offset == buffer.numel()


class _Landing:
    """The tensors that receive, and when the ones that sent can go.

    A tensor is doubled only from the first chunk that writes it to the last chunk that touches it,
    so an exchange in many chunks holds old and new of few tensors at a time.
    """

    def __init__(self, plan: Plan, state: State, keep_source: bool) -> None:
        self.plan, self.state, self.keep_source = plan, state, keep_source
        self.new: dict[str, Tensor] = {}
        self.local: dict[str, list[tuple[Piece, Piece]]] = {spec.key: [] for spec in plan.specs}
        for source, target in plan.local_moves:
            self.local[source.spec.key].append((source, target))
        self.specs = {spec.key: spec for spec in plan.specs}
        last_chunk = {
            piece.spec.key: index
            for index, chunk in enumerate(plan.chunks)
            for piece in (*chunk.send_pieces, *chunk.recv_pieces)
        }
        self.done_at: dict[int, list[str]] = {}
        for key, index in last_chunk.items():
            self.done_at.setdefault(index, []).append(key)

    def tensor(self, piece: Piece) -> Tensor:
        """The tensor a received piece is written to."""
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
                held.home = torch.empty(spec.home_shape(self.plan.rank, target.ranks))
            self.new[spec.key] = held.home
        else:
            shape = spec.subnet_shape(self.plan.rank, target.ranks)
            self.new[spec.key] = torch.empty(shape)
        for source, landing in self.local[spec.key]:
            written = held.place("home") if landing.place == "home" else self.new[spec.key]
            move(held.place(source.place), source, written, landing)

    def finish_chunk(self, index: int) -> None:
        """Let go of what the chunk was the last to need."""
        for key in self.done_at.get(index, ()):
            self._close(self.specs.pop(key))

    def finish(self) -> None:
        """The tensors of which nothing came from or went to another rank."""
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
    """After a visit home: free the home blocks that `placement` does not use. Local."""
    for spec in specs:
        if not placement.keeps_home_block(spec):
            state[spec.key].home = None


def allocate_home(specs: Iterable[TensorSpec], rank: int, ranks: int) -> State:
    """Uninitialised home blocks, to be filled by initial values or from a checkpoint. Local."""
    return {spec.key: Held(home=torch.empty(spec.home_shape(rank, ranks))) for spec in specs}

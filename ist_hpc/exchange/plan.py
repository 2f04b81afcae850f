"""The plan of an exchange for one rank: pieces, counts, displacements and chunks; no data, no MPI.

An exchange needs one packed buffer per peer. Its plan follows from two placements, so both sides of
every pair agree on order and counts without a message. A limit on the buffers cuts the plan into
chunks; their number is computed from the counts of all pairs, so that all ranks agree on it, too.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ist_hpc.common.blocks import Units
from ist_hpc.common.sizes import ELEMENT_BYTES
from ist_hpc.exchange.geometry import (
    Place,
    Rectangle,
    Selection,
    TensorGeometry,
    compact,
    selection_size,
)
from ist_hpc.exchange.placement import Placement, TensorSpec

MOST_ELEMENTS = 2**28
"""The maximum in a buffer, 1 GiB: before MPI 4 counts and displacements are C ints, and some
libraries use them to count bytes. A larger exchange goes in chunks, whatever the buffer limit."""

SLOTS = 2
"""Number of send and of receive buffers: a chunk is packed while the previous one is on its way."""


@dataclass(frozen=True, eq=False)
class Piece:
    """Rows x columns of one tensor on this rank, in local units of its home block or subnet.

    The buffer has its elements in storage order: column by column for a transposed tensor.
    """

    spec: TensorSpec
    place: Place
    rows: Selection
    columns: Selection

    @property
    def size(self) -> int:
        """The number of elements."""
        across = selection_size(self.rows) * selection_size(self.columns)
        return across * self.spec.element_width


@dataclass(frozen=True, eq=False)
class Chunk:
    """One Alltoallv. Counts and displacements are in elements; int64, shape [ranks]."""

    send_pieces: tuple[Piece, ...]
    send_counts: npt.NDArray[np.int64]
    recv_pieces: tuple[Piece, ...]
    recv_counts: npt.NDArray[np.int64]

    @property
    def send_displacements(self) -> npt.NDArray[np.int64]:
        """The offset of each peer's part in the send buffer."""
        return np.cumsum(self.send_counts) - self.send_counts

    @property
    def recv_displacements(self) -> npt.NDArray[np.int64]:
        """The offset of each peer's part in the receive buffer."""
        return np.cumsum(self.recv_counts) - self.recv_counts


@dataclass(frozen=True, eq=False)
class Plan:
    """What one rank does to get from one placement to another.

    specs        the tensors that move
    local_moves  (from, to) pieces that this rank holds before and after
    chunks       as many on every rank; at least one unless no rank moves anything
    """

    rank: int
    source: Placement
    target: Placement
    specs: tuple[TensorSpec, ...]
    local_moves: tuple[tuple[Piece, Piece], ...]
    chunks: tuple[Chunk, ...]

    @property
    def bytes_sent(self) -> int:
        """Bytes this rank sends."""
        return sum(int(c.send_counts.sum()) for c in self.chunks) * ELEMENT_BYTES

    @property
    def bytes_received(self) -> int:
        """Bytes this rank receives."""
        return sum(int(c.recv_counts.sum()) for c in self.chunks) * ELEMENT_BYTES

    @cached_property
    def last_chunks(self) -> dict[str, int]:
        """By key, the last chunk that touches a tensor: after it the old tensor can be freed."""
        return {
            piece.spec.key: index
            for index, chunk in enumerate(self.chunks)
            for piece in (*chunk.send_pieces, *chunk.recv_pieces)
        }

    @property
    def doubled_bytes(self) -> int:
        """The largest size of old tensors held beside new ones, on the way to another round.

        A tensor is doubled from the first chunk that writes it to the last that touches it. Tensors
        that no chunk touches are doubled one at a time.
        """
        size = {
            spec.key: math.prod(spec.subnet_shape(self.rank, self.target.ranks))
            for spec in self.specs
            if spec.demanded is None  # what the round before held of it went home
        }
        first_chunks: dict[str, int] = {}
        for index, chunk in enumerate(self.chunks):
            for piece in chunk.recv_pieces:
                if piece.place == "subnet":
                    first_chunks.setdefault(piece.spec.key, index)
        last_chunks = self.last_chunks
        moved = {source.spec.key for source, _ in self.local_moves} | last_chunks.keys()
        peak = max((size.get(key, 0) for key in moved), default=0)
        for index in range(len(self.chunks)):
            doubled = (k for k, first in first_chunks.items() if first <= index <= last_chunks[k])
            peak = max(peak, sum(size.get(key, 0) for key in doubled))
        return peak * ELEMENT_BYTES


_Alike = tuple[TensorGeometry, list[TensorSpec]]
"""Tensors that move in the same way, and their geometry."""


def pair_counts(
    specs: Sequence[TensorSpec], source: Placement, target: Placement
) -> npt.NDArray[np.int64]:
    """Elements that s sends to q, for all pairs, zero on the diagonal; int64, [ranks, ranks]."""
    return _pair_counts(_by_geometry(specs, source, target), source.ranks)


def _pair_counts(geometries: Sequence[_Alike], ranks: int) -> npt.NDArray[np.int64]:
    total = np.zeros((ranks, ranks), dtype=np.int64)
    for geometry, members in geometries:
        total += geometry.pair_counts() * len(members)
    np.fill_diagonal(total, 0)
    return total


def plan_exchange(
    specs: Sequence[TensorSpec],
    source: Placement,
    target: Placement,
    rank: int,
    buffer_bytes: int,
) -> Plan:
    """Plan the exchange of `specs` from `source` to `target` for `rank`. Local.

    `buffer_bytes` bounds all send and receive buffers together (to within one element per peer, and
    the slack of buffers that are kept).
    """
    geometries = _by_geometry(specs, source, target)
    count = chunk_count(_pair_counts(geometries, source.ranks), buffer_bytes)
    sends: list[list[Piece]] = [[] for _ in range(source.ranks)]
    receives: list[list[Piece]] = [[] for _ in range(source.ranks)]
    local_moves: list[tuple[Piece, Piece]] = []
    rectangles = {
        id(member): (geometry.sent_by(rank), geometry.received_by(rank))
        for geometry, members in geometries
        for member in members
    }
    for spec in specs:
        sent, received = rectangles[id(spec)]
        for peer, rectangle in sent:
            piece = _localise(spec, rectangle, rectangle.source, source, rank)
            if peer == rank:
                landing = _localise(spec, rectangle, rectangle.target, target, rank)
                local_moves.append((piece, landing))
            else:
                sends[peer].append(piece)
        for peer, rectangle in received:
            if peer != rank:
                receives[peer].append(_localise(spec, rectangle, rectangle.target, target, rank))
    chunks = chunks_of(sends, receives, count)
    return Plan(rank, source, target, tuple(specs), tuple(local_moves), chunks)


def _by_geometry(specs: Sequence[TensorSpec], source: Placement, target: Placement) -> list[_Alike]:
    groups: dict[object, _Alike] = {}
    for spec in specs:
        key = (spec.shape, spec.axes, spec.least, spec.demanded)
        if key not in groups:
            groups[key] = (TensorGeometry(spec, source, target), [])
        groups[key][1].append(spec)
    return list(groups.values())


def _localise(
    spec: TensorSpec, rectangle: Rectangle, place: Place, placement: Placement, rank: int
) -> Piece:
    """The rectangle in the local units of its place on `rank` in `placement`."""
    if place == "home":
        start, _ = spec.home_rows(rank, placement.ranks)
        if isinstance(rectangle.rows, slice):
            rows: Selection = slice(rectangle.rows.start - start, rectangle.rows.stop - start)
        else:
            rows = rectangle.rows - start
        return Piece(spec, place, rows, rectangle.columns)
    columns = _positions(rectangle.columns, spec.column_axis, placement, rank)
    if spec.demanded is not None:
        held = placement.demands[spec.demanded].rows
        rows = compact(np.searchsorted(held, _units(rectangle.rows)))
    else:
        rows = _positions(rectangle.rows, spec.row_axis, placement, rank)
    return Piece(spec, place, rows, columns)


def _positions(
    selection: Selection, axis: str | None, placement: Placement, rank: int
) -> Selection:
    if axis is None:
        return selection
    return compact(placement.deals[axis].positions(rank, _units(selection)))


def _units(selection: Selection) -> Units:
    return np.arange(selection.start, selection.stop) if isinstance(selection, slice) else selection


def chunk_count(counts: npt.NDArray[np.int64], buffer_bytes: int) -> int:
    """The number of chunks of an exchange with these counts between all pairs; equal on all ranks.

    One, with a send and a receive buffer, if these fit in `buffer_bytes`. Else as many as two
    buffers of each kind require, since one chunk is packed while another is on its way.
    """
    busiest = int(max(counts.sum(axis=0).max(), counts.sum(axis=1).max()))
    alone = buffer_bytes // (2 * ELEMENT_BYTES)
    limit = alone if busiest <= alone else buffer_bytes // (2 * SLOTS * ELEMENT_BYTES)
    return -(-busiest // max(1, min(limit, MOST_ELEMENTS)))


def with_slack(elements: int) -> int:
    """The size of a buffer for `elements` now, and for slightly larger counts in later rounds."""
    return elements + elements // 64


def chunks_of(
    sends: list[list[Piece]], receives: list[list[Piece]], count: int
) -> tuple[Chunk, ...]:
    """Cut the pieces to and from each peer into `count` chunks."""
    if count == 0:
        return ()
    cut_sends = [_cut(pieces, count) for pieces in sends]
    cut_receives = [_cut(pieces, count) for pieces in receives]
    chunks = []
    for index in range(count):
        going = [parts[index] for parts in cut_sends]
        coming = [parts[index] for parts in cut_receives]
        chunks.append(
            Chunk(
                send_pieces=tuple(piece for pieces in going for piece in pieces),
                send_counts=np.array([sum(p.size for p in pieces) for pieces in going]),
                recv_pieces=tuple(piece for pieces in coming for piece in pieces),
                recv_counts=np.array([sum(p.size for p in pieces) for pieces in coming]),
            )
        )
    return tuple(chunks)


def _cut(pieces: list[Piece], chunk_count: int) -> list[list[Piece]]:
    """Cut one pair's pieces into `chunk_count` runs of nearly equal size.

    The cuts depend only on sizes and shapes, which both sides of the pair know, so sender and
    receiver cut at the same elements.
    """
    if chunk_count == 1:
        return [pieces]
    total = sum(piece.size for piece in pieces)
    runs: list[list[Piece]] = [[] for _ in range(chunk_count)]
    index, done = 0, 0
    pending = pieces[::-1]
    while pending:
        piece = pending.pop()
        room = total * (index + 1) // chunk_count - done
        if piece.size <= room or index == chunk_count - 1:
            runs[index].append(piece)
            done += piece.size
            continue
        parts = _split(piece, room // piece.spec.element_width)
        if parts is None:
            index += 1
            pending.append(piece)
        else:
            head, *tail = parts
            runs[index].append(head)
            done += head.size
            pending.extend(tail[::-1])
    return runs


def parts_of_at_most(piece: Piece, elements: int) -> Iterator[Piece]:
    """Cut a piece into parts of at most `elements` numbers, in storage order; never a kernel.

    A part has whole lines if a line is no longer than that. As in `_cut` only sizes decide, so two
    pieces of the same rectangle are cut in the same way wherever they lie.
    """
    room = max(1, elements // piece.spec.element_width)
    pending = [piece]
    while pending:
        piece = pending.pop()
        fits = piece.size <= room * piece.spec.element_width
        parts = None if fits else _split(piece, room)
        if parts is None:
            yield piece
        else:
            pending.extend(parts[::-1])


def _split(piece: Piece, elements: int) -> list[Piece] | None:
    """Split into parts, the first with at most `elements` whole elements; None if `elements` < 1.

    In storage order: the first part has whole major lines (rows; columns of a transposed tensor),
    or else a part of the first line.
    """
    transposed = piece.spec.transposed
    major, minor = (piece.columns, piece.rows) if transposed else (piece.rows, piece.columns)
    line = selection_size(minor)

    def part(majors: Selection, minors: Selection) -> Piece:
        rows, columns = (minors, majors) if transposed else (majors, minors)
        return Piece(piece.spec, piece.place, rows, columns)

    if elements <= 0:
        return None
    if elements >= line:
        head, tail = _halves(major, elements // line)
        return [part(head, minor), part(tail, minor)]
    first, others = _halves(major, 1)
    head, tail = _halves(minor, elements)
    parts = [part(first, head), part(first, tail)]
    return [*parts, part(others, minor)] if selection_size(others) else parts


def _halves(selection: Selection, count: int) -> tuple[Selection, Selection]:
    if isinstance(selection, slice):
        middle = selection.start + count
        return slice(selection.start, middle), slice(middle, selection.stop)
    return selection[:count], selection[count:]

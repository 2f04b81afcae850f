"""The plan of an exchange for one rank: pieces, counts, displacements and chunks; no data, no MPI.

An exchange is one packed buffer a peer. Its plan follows from two placements, so the two sides of
every pair agree on order and counts without a message. A limit on the buffers cuts the plan into
chunks; their number is computed from the counts of all pairs, so that all ranks agree on it too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
from ist_hpc.exchange.placement import Deal, Placement, TensorSpec

MOST_ELEMENTS = 2**28
"""In a buffer, 1 GiB: counts and displacements are C ints before MPI 4, and some libraries count
bytes in them too. A larger exchange goes in chunks, whatever the buffer limit."""


@dataclass(frozen=True, eq=False)
class Piece:
    """Rows x columns of one tensor on this rank, in local units of its home block or subnet.

    Its elements lie in the buffer in storage order: column by column for a transposed tensor.
    """

    spec: TensorSpec
    place: Place
    rows: Selection
    columns: Selection

    @property
    def size(self) -> int:
        """Elements."""
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
        """Where in the send buffer each peer's part begins."""
        return np.cumsum(self.send_counts) - self.send_counts

    @property
    def recv_displacements(self) -> npt.NDArray[np.int64]:
        """Where in the receive buffer each peer's part begins."""
        return np.cumsum(self.recv_counts) - self.recv_counts


@dataclass(frozen=True, eq=False)
class Plan:
    """What one rank does to get from one placement to another.

    specs        the tensors that move
    local_moves  (from, to) pieces whose holder is this rank before and after
    chunks       the same number on every rank; at least one unless nothing moves anywhere
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


_Alike = tuple[TensorGeometry, list[TensorSpec]]
"""Tensors that move alike, and how."""


def pair_counts(
    specs: Sequence[TensorSpec], source: Placement, target: Placement
) -> npt.NDArray[np.int64]:
    """Elements sent from s to q, for all pairs, zero on the diagonal; int64, [ranks, ranks]."""
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

    `buffer_bytes` bounds all send and receive buffers together (to within one element a peer, and
    the slack of buffers that are kept).
    """
    geometries = _by_geometry(specs, source, target)
    chunk_count = _chunk_count(_pair_counts(geometries, source.ranks), buffer_bytes)
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
    chunks = _chunks(sends, receives, chunk_count)
    return Plan(rank, source, target, tuple(specs), tuple(local_moves), chunks)


@dataclass(frozen=True, eq=False)
class Settling:
    """What brings the copies of shared units together: one Alltoallv for all of some tensors.

    chunk   copies of other ranks to the holder of each unit; pieces of the same peer one behind
            the other, peers ascending
    copies  of each tensor by key, for each of this rank's units how many ranks trained it, if it
            holds the unit, else 1; int64 [local units]
    """

    chunk: Chunk
    copies: dict[str, npt.NDArray[np.int64]]


def plan_settling(
    specs: Sequence[TensorSpec], placement: Placement, rank: int, buffer_bytes: int
) -> list[Settling]:
    """Plan the means of what several ranks trained in a round, for `rank`; the same number on all.

    Each call moves what fits into `buffer_bytes`, or the copies of one unit of one tensor. All
    copies of a unit are in one call, so that they are added in the order of the ranks.
    """
    lots = _settling_lots(specs, placement, buffer_bytes)
    return [_settling(lot, placement, rank) for lot, _ in lots]


def settling_buffers(
    specs: Sequence[TensorSpec], placement: Placement, buffer_bytes: int
) -> tuple[int, int]:
    """(sent, received): the most elements of any rank in one call of `plan_settling`."""
    sent, received = 0, 0
    for _, counts in _settling_lots(specs, placement, buffer_bytes):
        sent = max(sent, int(counts.sum(axis=1).max()))
        received = max(received, int(counts.sum(axis=0).max()))
    return sent, received


def settling_counts(specs: Sequence[TensorSpec], placement: Placement) -> npt.NDArray[np.int64]:
    """Elements that go from s to q to settle a round's shared units; int64, [ranks, ranks]."""
    total = np.zeros((placement.ranks, placement.ranks), dtype=np.int64)
    return sum((_copied(spec, placement, _shared_units(spec, placement)) for spec in specs), total)


_Lot = dict[str, tuple[TensorSpec, list[Units]]]
"""By key: a tensor, and which of its shared units are brought together."""


def _settling_lots(
    specs: Sequence[TensorSpec], placement: Placement, buffer_bytes: int
) -> list[tuple[_Lot, npt.NDArray[np.int64]]]:
    """What each call brings together, and its elements from s to q; int64 [ranks, ranks]."""
    lots: list[tuple[_Lot, npt.NDArray[np.int64]]] = []
    for spec in specs:
        shared = _shared_units(spec, placement)
        if not len(shared):
            continue
        fits = _chunk_count(_copied(spec, placement, shared), buffer_bytes) == 1
        for units in [shared] if fits else np.split(shared, len(shared)):
            counts = _copied(spec, placement, units)
            if not lots or _chunk_count(lots[-1][1] + counts, buffer_bytes) > 1:
                lots.append(({}, np.zeros_like(counts)))
            lot, filled = lots[-1]
            lot.setdefault(spec.key, (spec, []))[1].append(units)
            filled += counts
    return lots


def _shared_units(spec: TensorSpec, placement: Placement) -> Units:
    """The units of a tensor that several ranks train, ascending; int64 [units]."""
    if spec.row_axis is None or spec.column_axis is not None:  # such units are never shared
        return np.empty(0, dtype=np.int64)
    return np.unique(placement.deals[spec.row_axis].copies[0])


def _copies_of(dealt: Deal, units: Units) -> tuple[Units, Units]:
    """(units, ranks) of the copies of some units."""
    chosen = np.isin(dealt.copies[0], units)
    return dealt.copies[0][chosen], dealt.copies[1][chosen]


def _copied(spec: TensorSpec, placement: Placement, units: Units) -> npt.NDArray[np.int64]:
    """Elements that go from s to q as copies of units that q holds; int64 [ranks, ranks]."""
    ranks = placement.ranks
    if not len(units):
        return np.zeros((ranks, ranks), dtype=np.int64)
    dealt = placement.deals[spec.row_axis or ""]
    copied, takers = _copies_of(dealt, units)
    pairs = np.bincount(takers * ranks + dealt.holder[copied], minlength=ranks * ranks)
    across = spec.columns * spec.element_width
    return pairs.reshape(ranks, ranks).astype(np.int64) * across


def _settling(lot: _Lot, placement: Placement, rank: int) -> Settling:
    ranks = placement.ranks
    sends: list[list[Piece]] = [[] for _ in range(ranks)]
    receives: list[list[Piece]] = [[] for _ in range(ranks)]
    copies: dict[str, npt.NDArray[np.int64]] = {}
    for key, (spec, parts) in lot.items():
        dealt = placement.deals[spec.row_axis or ""]
        units, takers = _copies_of(dealt, np.concatenate(parts))
        holders, own = dealt.holder[units], dealt.units(rank)
        copies[key] = np.where(
            dealt.holder[own] == rank, 1 + np.bincount(units, minlength=len(dealt.holder))[own], 1
        )
        for peer in range(ranks):
            for mine, theirs, pieces in ((takers, holders, sends), (holders, takers, receives)):
                moved = units[(mine == rank) & (theirs == peer)]
                if len(moved):
                    rows = compact(dealt.positions(rank, moved))
                    pieces[peer].append(Piece(spec, "subnet", rows, slice(0, spec.columns)))
    (chunk,) = _chunks(sends, receives, 1)
    return Settling(chunk, copies)


def _by_geometry(specs: Sequence[TensorSpec], source: Placement, target: Placement) -> list[_Alike]:
    groups: dict[object, _Alike] = {}
    for spec in specs:
        key = (spec.shape, spec.axes, spec.least)
        if key not in groups:
            groups[key] = (TensorGeometry(spec, source, target), [])
        groups[key][1].append(spec)
    return list(groups.values())


def _localise(
    spec: TensorSpec, rectangle: Rectangle, place: Place, placement: Placement, rank: int
) -> Piece:
    """The rectangle in the local units of the place where `rank` has it in `placement`."""
    if place == "home":
        start, _ = spec.home_rows(rank, placement.ranks)
        if isinstance(rectangle.rows, slice):
            rows: Selection = slice(rectangle.rows.start - start, rectangle.rows.stop - start)
        else:
            rows = rectangle.rows - start
        return Piece(spec, place, rows, rectangle.columns)
    rows = _positions(rectangle.rows, spec.row_axis, placement, rank)
    columns = _positions(rectangle.columns, spec.column_axis, placement, rank)
    return Piece(spec, place, rows, columns)


def _positions(
    selection: Selection, axis: str | None, placement: Placement, rank: int
) -> Selection:
    if axis is None:
        return selection
    if isinstance(selection, slice):
        selection = np.arange(selection.start, selection.stop)
    return compact(placement.deals[axis].positions(rank, selection))


def _chunk_count(counts: npt.NDArray[np.int64], buffer_bytes: int) -> int:
    """Chunks of the exchange with these counts between all pairs; the same on all ranks.

    One, with a send and a receive buffer, if these fit in `buffer_bytes`; else as many as two
    buffers of either kind need, since one chunk is packed while another is on its way.
    """
    busiest = int(max(counts.sum(axis=0).max(), counts.sum(axis=1).max()))
    alone = buffer_bytes // (2 * ELEMENT_BYTES)
    limit = alone if busiest <= alone else buffer_bytes // (4 * ELEMENT_BYTES)
    return -(-busiest // max(1, min(limit, MOST_ELEMENTS)))


def with_slack(elements: int) -> int:
    """The size of a buffer for `elements` now, and for slightly other counts in later rounds."""
    return elements + elements // 64


def _chunks(
    sends: list[list[Piece]], receives: list[list[Piece]], chunk_count: int
) -> tuple[Chunk, ...]:
    if chunk_count == 0:
        return ()
    cut_sends = [_cut(pieces, chunk_count) for pieces in sends]
    cut_receives = [_cut(pieces, chunk_count) for pieces in receives]
    chunks = []
    for index in range(chunk_count):
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

    Only the sizes and shapes of the pieces decide, which both sides of the pair know, so sender
    and receiver cut at the same elements.
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
    """A piece in parts of at most `elements` numbers, in storage order; a kernel's are never cut.

    Whole lines where a line is no longer than that. As in `_cut` only sizes decide, so two pieces
    of the same rectangle are cut alike wherever they lie.
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
    """Split into parts, the first of at most `elements` > 0 whole elements; None if it cannot be.

    In storage order: whole major lines first (rows; columns of a transposed tensor), else a part
    of the first line.
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

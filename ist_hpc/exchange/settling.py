"""The plan that settles a round: copies of shared units go to their holders; no data, no MPI.

At the end of a round, a unit that several ranks trained becomes the mean of its copies. As in
plan.py, both sides of every pair derive counts and order from the placement alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ist_hpc.common.blocks import Units
from ist_hpc.exchange.geometry import compact
from ist_hpc.exchange.placement import Deal, Placement, TensorSpec
from ist_hpc.exchange.plan import Chunk, Piece, chunk_count, chunks_of


@dataclass(frozen=True, eq=False)
class Settling:
    """One Alltoallv that brings copies of shared units of some tensors to their holders.

    chunk   the copies of other ranks to the holder of each unit; pieces of the same peer follow one
            another, peers ascending
    copies  by key of a tensor, for each of this rank's units: how many ranks trained it if this
            rank is its holder, else 1; int64 [local units]
    """

    chunk: Chunk
    copies: dict[str, npt.NDArray[np.int64]]


def plan_settling(
    specs: Sequence[TensorSpec], placement: Placement, rank: int, buffer_bytes: int
) -> list[Settling]:
    """Plan the calls that average shared units after a round, for `rank`; as many on all ranks.

    Each call moves as much as fits into `buffer_bytes`, but at least the copies of one unit of one
    tensor. All copies of a unit are in one call, so that they are added in the order of the ranks.
    """
    lots = _settling_lots(specs, placement, buffer_bytes)
    return [_settling(lot, placement, rank) for lot, _ in lots]


def settling_buffers(
    specs: Sequence[TensorSpec], placement: Placement, buffer_bytes: int
) -> tuple[int, int]:
    """(sent, received): the largest counts of elements of any rank in a call of `plan_settling`."""
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
"""By key: a tensor, and those of its shared units that one call brings together."""


def _settling_lots(
    specs: Sequence[TensorSpec], placement: Placement, buffer_bytes: int
) -> list[tuple[_Lot, npt.NDArray[np.int64]]]:
    """The lot of each call, and its elements from s to q; int64 [ranks, ranks]."""
    lots: list[tuple[_Lot, npt.NDArray[np.int64]]] = []
    for spec in specs:
        shared = _shared_units(spec, placement)
        if not len(shared):
            continue
        fits = chunk_count(_copied(spec, placement, shared), buffer_bytes) == 1
        for units in [shared] if fits else np.split(shared, len(shared)):
            counts = _copied(spec, placement, units)
            if not lots or chunk_count(lots[-1][1] + counts, buffer_bytes) > 1:
                lots.append(({}, np.zeros_like(counts)))
            lot, filled = lots[-1]
            lot.setdefault(spec.key, (spec, []))[1].append(units)
            filled += counts
    return lots


def _shared_units(spec: TensorSpec, placement: Placement) -> Units:
    """The units of a tensor that several ranks train, ascending; int64 [units]."""
    if spec.row_axis is None or spec.column_axis is not None:  # such units are not shared
        return np.empty(0, dtype=np.int64)
    return np.unique(placement.deals[spec.row_axis].copies[0])


def _copies_of(dealt: Deal, units: Units) -> tuple[Units, Units]:
    """(units, ranks) of the copies of `units`."""
    chosen = np.isin(dealt.copies[0], units)
    return dealt.copies[0][chosen], dealt.copies[1][chosen]


def _copied(spec: TensorSpec, placement: Placement, units: Units) -> npt.NDArray[np.int64]:
    """Elements that s sends to q as copies of units that q holds; int64 [ranks, ranks]."""
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
    (chunk,) = chunks_of(sends, receives, 1)
    return Settling(chunk, copies)

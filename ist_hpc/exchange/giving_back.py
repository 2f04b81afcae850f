"""The plan of what gives demanded rows back to their homes at a round's end; no data, no MPI.

The mirror image of how they came (geometry.py): what a rank asked for goes to where it is at home.
A number a row, of which every rank that asked has one, takes a way of its own: the home adds what
each of them changed, in the order of the ranks.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ist_hpc.exchange.geometry import compact
from ist_hpc.exchange.placement import Placement, TensorSpec, home
from ist_hpc.exchange.plan import Piece, Plan, chunk_count, chunks_of


def plan_giving_back(
    specs: Sequence[TensorSpec], placement: Placement, rank: int, buffer_bytes: int
) -> Plan:
    """Plan how demanded matrices of a round go home; others are left out. Local.

    buffer_bytes  as of `plan_exchange`
    """
    matrices = [spec for spec in specs if spec.demanded and not spec.is_number_a_row]
    count = chunk_count(giving_back_counts(matrices, placement), buffer_bytes)
    return _plan(matrices, placement, rank, count)


def plan_numbers(specs: Sequence[TensorSpec], placement: Placement, rank: int) -> Plan:
    """Plan how numbers of demanded rows go home: one chunk, or none where there are none. Local.

    Pieces that arrive lie in the order of the ranks, and of a rank in that of the tensors.
    """
    vectors = [spec for spec in specs if spec.is_number_a_row]
    return _plan(vectors, placement, rank, count=1)


def _plan(specs: Sequence[TensorSpec], placement: Placement, rank: int, count: int) -> Plan:
    sends: list[list[Piece]] = [[] for _ in range(placement.ranks)]
    receives: list[list[Piece]] = [[] for _ in range(placement.ranks)]
    local: list[tuple[Piece, Piece]] = []
    moved = tuple(specs) if placement.demands else ()
    for spec in moved:
        for peer, (going, coming) in enumerate(_pieces(spec, placement, rank)):
            if peer == rank:
                local.append((going, coming))
            else:
                sends[peer].append(going)
                receives[peer].append(coming)
    chunks = chunks_of(sends, receives, count if moved else 0)
    return Plan(rank, placement, home(placement.ranks), moved, tuple(local), chunks)


def giving_back_counts(specs: Sequence[TensorSpec], placement: Placement) -> npt.NDArray[np.int64]:
    """Elements of demanded tensors that go from s to q, zero on the diagonal; [ranks, ranks]."""
    total = np.zeros((placement.ranks, placement.ranks), dtype=np.int64)
    for spec in specs if placement.demands else ():
        if spec.demanded is None:
            continue
        total += placement.demands[spec.demanded].counts * _widths(spec, placement)[:, None]
    np.fill_diagonal(total, 0)
    return total


def _widths(spec: TensorSpec, placement: Placement) -> npt.NDArray[np.int64]:
    """Columns that each rank has of a demanded tensor; int64 [ranks]."""
    if spec.column_axis is None:
        return np.ones(placement.ranks, dtype=np.int64)
    return placement.deals[spec.column_axis].counts


def _pieces(spec: TensorSpec, placement: Placement, rank: int) -> list[tuple[Piece, Piece]]:
    """(what goes to a peer, what comes from it), by peer."""
    assert spec.demanded is not None
    demand = placement.demands[spec.demanded]
    start, _ = spec.home_rows(rank, placement.ranks)
    widths, axis = _widths(spec, placement), spec.column_axis
    bounds = np.cumsum([0, *(len(rows) for rows in demand.by_home)]).tolist()
    pieces = []
    for peer, asked in enumerate(demand.asked):
        columns = slice(0, 1) if axis is None else compact(placement.deals[axis].units(peer))
        going = Piece(spec, "subnet", slice(*bounds[peer : peer + 2]), slice(0, int(widths[rank])))
        pieces.append((going, Piece(spec, "home", compact(asked - start), columns)))
    return pieces

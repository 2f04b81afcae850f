"""Which rectangles of a tensor move between two placements; in global units, without data.

For a pair of ranks (s, q) the elements that s holds before and q holds after are, for one tensor, a
few rectangles (rows x columns): one where one dimension is dealt, up to 1 + 2N where both are.
Both sides derive the same rectangles in the same order from the two placements alone, and of
demanded rows from what the ranks asked for.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ist_hpc.common.blocks import Units, block_bounds, block_of
from ist_hpc.exchange.demand import Demand
from ist_hpc.exchange.placement import Placement, TensorSpec

Place = Literal["home", "subnet"]
Selection = slice | Units
"""Units of one dimension: a slice if they are contiguous (cheaper to copy), else indices."""


@dataclass(frozen=True, eq=False)
class Rectangle:
    """Rows x columns of one tensor that move together, in global units.

    source, target  whether they lie in the home block or in the subnet, before and after the move
    """

    source: Place
    target: Place
    rows: Selection
    columns: Selection


def selection_size(selection: Selection) -> int:
    """How many units a selection has."""
    if isinstance(selection, slice):
        return int(selection.stop - selection.start)
    return len(selection)


def compact(units: Units) -> Selection:
    """Ascending units as a slice if they are contiguous, else as they are."""
    if len(units) and units[-1] - units[0] + 1 == len(units):
        return slice(int(units[0]), int(units[-1]) + 1)
    return units


def _groups(units: Units, *keys: Units) -> Iterator[tuple[tuple[int, ...], Units]]:
    """Units grouped by their keys (first key slowest), in ascending order of the keys."""
    if not len(units):
        return
    order = np.lexsort(keys[::-1])
    ordered = np.stack([key[order] for key in keys])
    starts = np.flatnonzero(np.any(np.diff(ordered, axis=1), axis=0)) + 1
    for first, group in zip((0, *starts), np.split(units[order], starts), strict=True):
        yield tuple(int(value) for value in ordered[:, first]), group


class TensorGeometry:
    """What moves between two placements, for tensors of one shape with the same axes.

    Optimiser slots have the geometry of their weight, so one object serves them all.
    """

    def __init__(self, spec: TensorSpec, source: Placement, target: Placement) -> None:
        assert source.ranks == target.ranks
        self.spec, self.source, self.target = spec, source, target
        self.ranks = source.ranks
        self._all_rows, self._all_columns = slice(0, spec.rows), slice(0, spec.columns)
        one_rank_goes_on = self.ranks == 1 and not (source.is_home or target.is_home)
        stays = spec.demanded is not None and (target.is_home or self.ranks == 1)
        self.nothing_moves = source.round_index == target.round_index or one_rank_goes_on or stays
        self._kept_columns: dict[tuple[str, int, int], Selection] = {}

    def sent_by(self, rank: int) -> list[tuple[int, Rectangle]]:
        """(receiver, rectangle) for all elements that `rank` holds in the source placement."""
        return self._rectangles(rank, sending=True)

    def received_by(self, rank: int) -> list[tuple[int, Rectangle]]:
        """(sender, rectangle) for all elements that move to `rank` in the target placement."""
        return self._rectangles(rank, sending=False)

    def _rectangles(self, rank: int, sending: bool) -> list[tuple[int, Rectangle]]:
        if self.nothing_moves:
            return []
        if self.spec.demanded is not None:
            return list(self._asked_for(rank, sending))
        if self.spec.has_two_axes:
            return list(self._two_axes(rank, sending))
        if self.spec.row_axis is not None or not (self.source.is_home or self.target.is_home):
            return list(self._whole_units(rank, sending))
        return list(self._home_visit_of_columns(rank, sending))

    # Demanded rows come from their homes, where they are between rounds.

    def _demand(self) -> Demand:
        assert self.spec.demanded is not None
        return self.target.demands[self.spec.demanded]

    def _asked_for(self, rank: int, sending: bool) -> Iterator[tuple[int, Rectangle]]:
        demand = self._demand()
        assert demand.rank == rank, "the demand of another rank"
        for peer, rows in enumerate(demand.asked if sending else demand.by_home):
            taker = peer if sending else rank
            if len(rows):
                columns = self._columns_of(taker)
                yield peer, Rectangle("home", "subnet", compact(rows), columns)

    def _columns_of(self, rank: int) -> Selection:
        """The columns that a rank trains in the target round; all of a vector."""
        axis = self.spec.column_axis
        return self._all_columns if axis is None else compact(self.target.deals[axis].units(rank))

    # One axis: a unit moves as a whole row or column.

    def _moves(self) -> tuple[Units, Units, Units]:
        """(units, holders before, receiving ranks): a unit may go to several ranks."""
        axis = self.spec.row_axis or self.spec.column_axis
        assert axis is not None
        homes = block_of(self.spec.rows, self.ranks)
        before = homes if self.source.is_home else self.source.deals[axis].holder
        if self.target.is_home:
            return np.arange(len(homes)), before, homes
        units, takers = self.target.deals[axis].trained
        return units, before[units], takers

    def _whole_units(self, rank: int, sending: bool) -> Iterator[tuple[int, Rectangle]]:
        units, before, after = self._moves()
        mine, theirs = (before, after) if sending else (after, before)
        of_rank = mine == rank
        units, theirs = units[of_rank], theirs[of_rank]
        source: Place = "home" if self.source.is_home else "subnet"
        target: Place = "home" if self.target.is_home else "subnet"
        for (peer,), group in _groups(units, theirs):
            if self.spec.row_axis is not None:
                yield peer, Rectangle(source, target, compact(group), self._all_columns)
            else:
                yield peer, Rectangle(source, target, self._all_rows, compact(group))

    # One axis that is not the output dimension: home blocks are rows, subnets are columns.

    def _home_visit_of_columns(self, rank: int, sending: bool) -> Iterator[tuple[int, Rectangle]]:
        axis = self.spec.column_axis
        assert axis is not None
        going_home = self.target.is_home
        deal = (self.source if going_home else self.target).deals[axis]
        for peer in range(self.ranks):
            subnet_rank, home_rank = (rank, peer) if sending == going_home else (peer, rank)
            rows = slice(*self.spec.home_rows(home_rank, self.ranks))
            columns = compact(deal.units(subnet_rank))
            if rows.stop == rows.start:
                continue
            if going_home:
                yield peer, Rectangle("subnet", "home", rows, columns)
            else:
                yield peer, Rectangle("home", "subnet", rows, columns)

    # Two axes: subnet to subnet, subnet to home, home to subnet (home to home never moves).

    def _holders(self, placement: Placement) -> tuple[Units, Units]:
        """Row and column holders; for home, values that match no rank and not each other."""
        if placement.is_home:
            return np.full(self.spec.rows, -1), np.full(self.spec.columns, -2)
        assert self.spec.row_axis is not None
        assert self.spec.column_axis is not None
        rows, columns = (placement.deals[a] for a in (self.spec.row_axis, self.spec.column_axis))
        return rows.holder, columns.holder

    def _two_axes(self, rank: int, sending: bool) -> Iterator[tuple[int, Rectangle]]:
        rows_before, columns_before = self._holders(self.source)
        rows_after, columns_after = self._holders(self.target)
        row_home = block_of(self.spec.rows, self.ranks)
        if sending:
            rows_mine, rows_theirs = rows_before, rows_after
            columns_mine, columns_theirs = columns_before, columns_after
        else:
            rows_mine, rows_theirs = rows_after, rows_before
            columns_mine, columns_theirs = columns_after, columns_before
        trained = np.flatnonzero(rows_mine == rank)
        at_home = np.arange(*self.spec.home_rows(rank, self.ranks), dtype=np.int64)

        if not (self.source.is_home or self.target.is_home):
            columns = np.flatnonzero(columns_mine == rank)
            columns_of = {key: g for (key,), g in _groups(columns, columns_theirs[columns])}
            for (peer,), rows in _groups(trained, rows_theirs[trained]):
                if peer in columns_of:
                    chosen = compact(columns_of[peer])
                    yield peer, Rectangle("subnet", "subnet", compact(rows), chosen)

        # Elements that a rank trained and no rank will train return to the homes of their rows. The
        # columns depend on who trains the row next, hence the second key. The receiver is the home.
        if not self.source.is_home:
            units = trained if sending else at_home
            peers = row_home if sending else rows_before
            for (peer, after), rows in _groups(units, peers[units], rows_after[units]):
                trainer = rank if sending else peer
                left = self._columns_left("before", trainer, after)
                if selection_size(left):
                    yield peer, Rectangle("subnet", "home", compact(rows), left)

        # The mirror image: elements that no rank trained come from the homes of their rows.
        if not self.target.is_home:
            units = at_home if sending else trained
            peers = rows_after if sending else row_home
            for (peer, before), rows in _groups(units, peers[units], rows_before[units]):
                trainer = peer if sending else rank
                left = self._columns_left("after", trainer, before)
                if selection_size(left):
                    yield peer, Rectangle("home", "subnet", compact(rows), left)

    def _columns_left(self, when: str, trainer: int, other: int) -> Selection:
        """Columns of `trainer` at `when`, except those dealt to `other` in the other round."""
        key = (when, trainer, other)
        if key not in self._kept_columns:
            before, after = self._holders(self.source)[1], self._holders(self.target)[1]
            mine, theirs = (before, after) if when == "before" else (after, before)
            self._kept_columns[key] = compact(np.flatnonzero((mine == trainer) & (theirs != other)))
        return self._kept_columns[key]

    # How much moves, for all pairs at once.

    def pair_counts(self) -> npt.NDArray[np.int64]:
        """Elements that move from s to q, for all pairs; int64, shape [ranks, ranks].

        The diagonal counts elements that are copied within a rank. The counts come from histograms
        of the deals, not from the rectangles; a test compares both.
        """
        n = self.ranks
        counts = np.zeros((n, n), dtype=np.int64)
        if self.nothing_moves:
            return counts
        if self.spec.demanded is not None:
            takers = [selection_size(self._columns_of(taker)) for taker in range(n)]
            counts = (self._demand().counts * np.array(takers)[:, None]).T
        elif self.spec.has_two_axes:
            counts = self._two_axes_counts()
        elif self.spec.row_axis is not None or not (self.source.is_home or self.target.is_home):
            _, before, after = self._moves()
            pair = before * n + after
            across = self.spec.columns if self.spec.row_axis is not None else self.spec.rows
            counts = np.bincount(pair, minlength=n * n).reshape(n, n) * across
        else:
            assert self.spec.column_axis is not None
            blocks = np.diff(block_bounds(self.spec.rows, n))
            if self.target.is_home:
                counts = np.outer(self.source.deals[self.spec.column_axis].counts, blocks)
            else:
                counts = np.outer(blocks, self.target.deals[self.spec.column_axis].counts)
        return counts.astype(np.int64) * self.spec.element_width

    def _two_axes_counts(self) -> npt.NDArray[np.int64]:
        n = self.ranks
        counts = np.zeros((n, n), dtype=np.int64)
        rows_before, columns_before = self._holders(self.source)
        rows_after, columns_after = self._holders(self.target)
        row_home = block_of(self.spec.rows, n)
        both = not (self.source.is_home or self.target.is_home)
        if both:
            joint_rows = np.bincount(rows_before * n + rows_after, minlength=n * n).reshape(n, n)
            joint = np.bincount(columns_before * n + columns_after, minlength=n * n).reshape(n, n)
            counts += joint_rows * joint
        else:
            joint = np.zeros((n, n), dtype=np.int64)
        # One term per row: its columns in the trainer's subnet, less those also in the other
        # round's subnet.
        if not self.source.is_home:
            trained = np.bincount(columns_before, minlength=n)[rows_before]
            leaving = trained - (joint[rows_before, rows_after] if both else 0)
            np.add.at(counts, (rows_before, row_home), leaving)
        if not self.target.is_home:
            trained = np.bincount(columns_after, minlength=n)[rows_after]
            arriving = trained - (joint[rows_before, rows_after] if both else 0)
            np.add.at(counts, (row_home, rows_after), arriving)
        return counts

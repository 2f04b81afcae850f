"""Who holds what: axes, deals, homes and holders.

A network is described by partitioned tensors whose dimensions carry axes. A deal gives each unit of
an axis to the rank that trains it for one round. A placement gives every element of every
partitioned tensor its holder: *home* (contiguous blocks of the output dimension) or *round t* (an
element whose every axis is dealt to one rank is held by that rank, every other one by its home).
Nothing here communicates: every rank computes the same placements from the same seed (paper,
section 3.1; the shared seed is its idea of avoiding messages about partitions). Only of *demanded*
tensors a rank holds no more than the rows it asked for (demand.py), which others do not know.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ist_hpc.common import random_streams
from ist_hpc.common.blocks import Units, block_bounds, block_of
from ist_hpc.common.errors import InputError
from ist_hpc.exchange.demand import Demand


@dataclass(frozen=True)
class Axis:
    """A set of units that is dealt out.

    size   the number of units
    least  the minimum that a rank trains; if an even deal gives fewer, ranks share units
    """

    size: int
    least: int = 1

    def count(self, rank: int, ranks: int) -> int:
        """How many units `rank` trains, the same in every round."""
        own = self.size // ranks + (rank < self.size % ranks)  # units of its block
        return max(own, min(self.least, self.size))


_NONE = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Deal:
    """One axis dealt out for one round.

    holder  for each unit the rank that trains it; if several do, the one that holds the mean of
            their copies after the round; int64, shape [axis size]
    copies  (units, ranks): the units that other ranks also train, and those ranks, ascending by
            unit and then by rank; int64, shape [copies] each
    """

    axis: str
    ranks: int
    holder: Units
    copies: tuple[Units, Units] = (_NONE, _NONE)

    @cached_property
    def trained(self) -> tuple[Units, Units]:
        """(units, ranks) that train them, units ascending; int64, [axis size + copies] each."""
        if not len(self.copies[0]):
            return np.arange(len(self.holder), dtype=np.int64), self.holder
        units = np.concatenate([np.arange(len(self.holder)), self.copies[0]])
        ranks = np.concatenate([self.holder, self.copies[1]])
        order = np.argsort(units, kind="stable")
        return units[order].astype(np.int64), ranks[order]

    @cached_property
    def _ordered(self) -> tuple[Units, Units]:
        units, ranks = self.trained
        order = np.argsort(ranks, kind="stable")
        bounds = np.searchsorted(ranks[order], np.arange(self.ranks + 1))
        return units[order], bounds.astype(np.int64)

    def units(self, rank: int) -> Units:
        """The units that `rank` trains, ascending; int64, shape [count]."""
        order, bounds = self._ordered
        return order[bounds[rank] : bounds[rank + 1]]

    @property
    def counts(self) -> Units:
        """How many units each rank trains; int64, shape [ranks]."""
        return np.diff(self._ordered[1])

    def positions(self, rank: int, units: Units) -> Units:
        """The indices of `units` among those that `rank` trains; int64, same shape."""
        if len(self.copies[0]):
            return np.searchsorted(self.units(rank), units).astype(np.int64)
        return self._position[units]

    @cached_property
    def _position(self) -> Units:
        """The index of each unit among its holder's units; int64, shape [axis size]."""
        order, bounds = self._ordered
        position = np.empty_like(order)
        position[order] = np.arange(len(order)) - np.repeat(bounds[:-1], np.diff(bounds))
        return position


def deal(name: str, axis: Axis, ranks: int, seed: int, round_index: int) -> Deal:
    """Deal the units of an axis to the ranks, uniformly at random and balanced to within one unit.

    The first size % ranks ranks always get the extra unit, so a rank's tensors keep their shapes
    through the run. A rank whose part is smaller than `axis.least` also trains the units that
    follow its part in the order of the deal. Raises `InputError` if a rank would get no unit.
    """
    size = axis.size
    if size < ranks:
        raise InputError(
            f"axis `{name}` has {size} units, too few for {ranks} ranks: each rank needs at least "
            f"one; start at most {size} ranks, or take a larger network (`model.hidden`, or "
            "`model.sections` of a residual one)"
        )
    order = random_streams.permutation(f"deal/{name}", seed, round_index, size)
    holder = np.empty(size, dtype=np.int64)
    holder[order] = block_of(size, ranks)
    if min(axis.least, size) <= size // ranks:
        return Deal(name, ranks, holder)
    ends = block_bounds(size, ranks)[1:]
    trained = np.array([axis.count(rank, ranks) for rank in range(ranks)], dtype=np.int64)
    more = trained - np.diff(ends, prepend=0)
    after = np.concatenate([np.arange(end, end + n) for end, n in zip(ends, more, strict=True)])
    units, takers = order[after % size].astype(np.int64), np.repeat(np.arange(ranks), more)
    by_unit = np.lexsort((takers, units))
    return Deal(name, ranks, holder, (units[by_unit], takers[by_unit]))


@dataclass(frozen=True)
class TensorSpec:
    """A partitioned tensor: a weight, or the optimiser slot of a weight.

    key         unique name, such as `fc1.weight` or `momentum/fc1.weight`
    shape       global shape, the logical output dimension first
    axes        the axis of each dimension, or None; dimensions after the second are never dealt
    transposed  whether the subnet is stored with its first two dimensions exchanged. This makes the
                dealt axis of an output layer dimension 0, so that a neuron is one long contiguous
                row. Home blocks always keep the logical order, output dimension first.
    least       the minimum of units of the output dimension that a rank trains, as in its axis
    demanded    name of the demand by which its rows are held in a round, such as `labels`; None:
                a rank holds all rows of its units
    mean_over   of a demanded vector, a number a row: the axis over whose units it is a mean
    """

    key: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    transposed: bool = False
    least: int = 1
    demanded: str | None = None
    mean_over: str | None = None

    def __post_init__(self) -> None:
        assert len(self.axes) == len(self.shape)
        if self.demanded is None:
            assert any(self.axes), f"{self.key} has no axis: it is shared, not partitioned"
        else:
            assert self.axes[0] is None, f"{self.key}: demanded rows are not dealt out"
            assert (self.mean_over is None) == (len(self.shape) > 1)
            assert not self.transposed
        assert not any(self.axes[2:]), f"{self.key}: only the first two dimensions can be dealt"
        assert not self.transposed or len(self.shape) >= 2
        assert self.least == 1 or (self.axes[0] and not any(self.axes[1:]) and not self.transposed)

    @property
    def rows(self) -> int:
        """Size of the logical output dimension."""
        return self.shape[0]

    @property
    def columns(self) -> int:
        """Size of the logical input dimension; 1 for a vector."""
        return self.shape[1] if len(self.shape) > 1 else 1

    @property
    def element_width(self) -> int:
        """Numbers at one (row, column): the product of the dimensions after the second."""
        return int(np.prod(self.shape[2:], dtype=np.int64))

    @property
    def row_axis(self) -> str | None:
        """Axis of the output dimension."""
        return self.axes[0]

    @property
    def column_axis(self) -> str | None:
        """Axis of the input dimension."""
        return self.axes[1] if len(self.axes) > 1 else None

    @property
    def is_number_a_row(self) -> bool:
        """Whether it is a vector over demanded rows, of which several ranks have a number."""
        return self.mean_over is not None

    @property
    def has_two_axes(self) -> bool:
        """Whether both dimensions are dealt, so that part of the tensor stays home in a round."""
        return self.row_axis is not None and self.column_axis is not None

    def home_rows(self, rank: int, ranks: int) -> tuple[int, int]:
        """First and last + 1 of the global rows whose home is `rank`."""
        bounds = block_bounds(self.rows, ranks)
        return int(bounds[rank]), int(bounds[rank + 1])

    def home_shape(self, rank: int, ranks: int) -> tuple[int, ...]:
        """Shape of the home block of `rank`."""
        start, stop = self.home_rows(rank, ranks)
        return (stop - start, *self.shape[1:])

    def subnet_shape(self, rank: int, ranks: int) -> tuple[int, ...]:
        """Shape, as stored, of the subnet part of `rank`; the same in every round.

        Of a demanded tensor with all its rows: see `Placement.subnet_shape`.
        """
        dims = [
            Axis(size, self.least).count(rank, ranks) if axis else size
            for size, axis in zip(self.shape, self.axes, strict=True)
        ]
        if self.transposed:
            dims[0], dims[1] = dims[1], dims[0]
        return tuple(dims)


@dataclass(frozen=True, eq=False)
class Placement:
    """The rule that assigns every element a holder: by the deals of a round, or home without deals.

    round_index  the round, or None for home
    deals        one deal per axis, by name; empty for home
    demands      a demand for each name in `TensorSpec.demanded`; empty for home, and for one rank,
                 which trains demanded tensors in its home block
    """

    ranks: int
    round_index: int | None
    deals: Mapping[str, Deal]
    demands: Mapping[str, Demand] = field(default_factory=dict)

    @property
    def is_home(self) -> bool:
        """Whether every element is at home."""
        return self.round_index is None

    def keeps_home_block(self, spec: TensorSpec) -> bool:
        """Whether elements of the tensor stay at home in this placement.

        An element of a tensor with one axis is in some subnet every round, if it is not demanded.
        """
        return self.is_home or spec.has_two_axes or spec.demanded is not None

    def subnet_shape(self, spec: TensorSpec, rank: int) -> tuple[int, ...]:
        """Shape, as stored, of the subnet part of `rank` in a round.

        Of a demanded tensor it is that of the rank whose demand it is; one rank has none.
        """
        shape = spec.subnet_shape(rank, self.ranks)
        if spec.demanded is None:
            return shape
        return (len(self.demands[spec.demanded].rows) if self.demands else 0, *shape[1:])

    def trains_at_home(self, spec: TensorSpec) -> bool:
        """Whether a round trains the tensor in the home block: one rank's, if it is demanded."""
        return spec.demanded is not None and self.ranks == 1

    def trained_shape(self, spec: TensorSpec, rank: int) -> tuple[int, ...]:
        """Shape, as stored, of what `rank` trains of a tensor in a round."""
        return spec.shape if self.trains_at_home(spec) else self.subnet_shape(spec, rank)

    def __str__(self) -> str:
        return "home" if self.is_home else f"round {self.round_index}"


def home(ranks: int) -> Placement:
    """The placement in which every element is at home."""
    return Placement(ranks, None, {})


def at_round(axes: Mapping[str, Axis], ranks: int, seed: int, round_index: int) -> Placement:
    """The placement of a round; `axes` by name. Raises `InputError` as `deal` does."""
    deals = {name: deal(name, axis, ranks, seed, round_index) for name, axis in axes.items()}
    return Placement(ranks, round_index, deals)


def elements(spec: TensorSpec) -> int:
    """The number of elements of a whole tensor."""
    return int(np.prod(spec.shape, dtype=np.int64))

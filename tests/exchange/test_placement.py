import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ist_hpc.common import random_streams
from ist_hpc.common.blocks import block_bounds, block_of
from ist_hpc.common.errors import InputError
from ist_hpc.exchange.placement import Axis, TensorSpec, at_round, deal

ranks_and_size = st.integers(1, 12).flatmap(
    lambda ranks: st.tuples(st.just(ranks), st.integers(ranks, 70))
)
seeds = st.integers(0, 2**64 - 1)

RECORDED_DEAL = [0, 2, 1, 1, 0, 2, 2, 0, 1, 2, 0, 1]
RECORDED_WORDS = [11876386108357168776, 11078769494087916592, 6037688187457767306]


@given(ranks_and_size, seeds, st.integers(0, 10**6))
def test_a_deal_covers_and_never_overlaps(ranks_size, seed, index):
    ranks, size = ranks_size
    dealt = deal("hidden1", Axis(size), ranks, seed, index)
    units = [dealt.units(rank) for rank in range(ranks)]
    assert sorted(np.concatenate(units).tolist()) == list(range(size))
    for rank, own in enumerate(units):
        assert (np.diff(own) > 0).all()
        assert (dealt.holder[own] == rank).all()
        assert (dealt.positions(rank, own) == np.arange(len(own))).all()
    assert dealt.counts.tolist() == [len(own) for own in units]
    assert dealt.counts.max() - dealt.counts.min() <= 1


@given(ranks_and_size, st.integers(1, 80), seeds)
@example((7, 10), 5, 0)
def test_ranks_share_units_where_an_even_deal_gives_too_few(ranks_size, least, seed):
    ranks, size = ranks_size
    axis = Axis(size, least)
    dealt = deal("blocks", axis, ranks, seed, 3)
    assert (dealt.holder == deal("blocks", Axis(size), ranks, seed, 3).holder).all()
    trainers = [{int(dealt.holder[unit])} for unit in range(size)]
    for unit, rank in zip(*dealt.copies, strict=True):
        assert rank not in trainers[unit]
        trainers[unit].add(int(rank))
    spec = TensorSpec("blocks.weight", (size, 2), ("blocks", None), least=least)
    for rank in range(ranks):
        own = dealt.units(rank)
        assert own.tolist() == [unit for unit in range(size) if rank in trainers[unit]]
        assert (dealt.positions(rank, own) == np.arange(len(own))).all()
        assert len(own) == dealt.counts[rank] == axis.count(rank, ranks)
        assert len(own) >= min(least, size)
        assert spec.subnet_shape(rank, ranks) == (len(own), 2)
    # A rank takes what follows in the order of the deal, and parts begin `part` or `part` + 1 units
    # apart: so many parts begin in as many units as a rank trains.
    part, trained = size // ranks, min(least, size)
    shared = [len(found) for found in trainers]
    assert min(shared) >= max(1, trained // (part + 1))
    assert max(shared) <= max(1, -(-trained // part))


@given(st.integers(0, 200), st.integers(1, 20))
def test_home_blocks_are_balanced_and_cover(size, ranks):
    bounds = block_bounds(size, ranks)
    assert bounds[0] == 0
    assert bounds[-1] == size
    assert np.diff(bounds).max() - np.diff(bounds).min() <= 1
    holder = block_of(size, ranks)
    assert all((holder[bounds[r] : bounds[r + 1]] == r).all() for r in range(ranks))
    assert len(holder) == size


def test_a_deal_depends_on_seed_round_and_axis_and_on_nothing_else():
    def holders(name, size, *args):
        return deal(name, Axis(size), *args).holder.tolist()

    base = holders("hidden1", 64, 4, 7, 3)
    assert base == holders("hidden1", 64, 4, 7, 3)
    assert base != holders("hidden2", 64, 4, 7, 3)
    assert base != holders("hidden1", 64, 4, 8, 3)
    assert base != holders("hidden1", 64, 4, 7, 4)


def test_deals_are_the_same_for_ever():
    """Recorded once: a change of any library that changes deals would break every resume."""
    assert deal("hidden1", Axis(12), 3, 0, 0).holder.tolist() == RECORDED_DEAL
    assert [int(word) for word in random_streams.words("x", 1, 2, 3)] == RECORDED_WORDS


def test_every_unit_is_dealt_to_every_rank_about_equally_often():
    counts = np.zeros((10, 4))
    for index in range(4000):
        holder = deal("a", Axis(10), 4, 5, index).holder
        counts[np.arange(10), holder] += 1
    expected = np.array([3, 3, 2, 2]) / 10 * 4000
    # Four standard deviations of a binomial count.
    assert (np.abs(counts - expected) < 4 * np.sqrt(expected)).all()


def test_too_narrow_an_axis_is_refused_and_says_what_to_do():
    with pytest.raises(InputError, match=r"`hidden2` has 3 units, too few for 4 ranks.*at most 3"):
        at_round({"hidden1": Axis(9), "hidden2": Axis(3)}, 4, 0, 0)


@given(ranks_and_size, st.integers(1, 30), seeds)
def test_shapes_of_a_rank_add_up_to_the_tensor(ranks_size, columns, seed):
    ranks, size = ranks_size
    spec = TensorSpec("out.weight", (columns, size), (None, "hidden1"), transposed=True)
    assert sum(spec.home_shape(rank, ranks)[0] for rank in range(ranks)) == columns
    dealt = deal("hidden1", Axis(size), ranks, seed, 0)
    for rank in range(ranks):
        assert spec.subnet_shape(rank, ranks) == (len(dealt.units(rank)), columns)


@given(st.integers(1, 40), st.integers(1, 40), seeds, st.data())
def test_initial_values_do_not_depend_on_the_division_of_the_rows(rows, columns, seed, data):
    whole = random_streams.uniform("w", seed, (0, rows), columns, 0.5)
    assert whole.dtype == np.float32
    assert (np.abs(whole) <= 0.5).all()
    cut = data.draw(st.integers(0, rows))
    parts = [
        random_streams.uniform("w", seed, bounds, columns, 0.5)
        for bounds in ((0, cut), (cut, rows))
    ]
    assert np.array_equal(np.concatenate(parts), whole)


def test_initial_values_are_uniform():
    values = random_streams.uniform("w", 0, (0, 500), 401, 0.25)
    assert abs(values.mean()) < 4 * 0.25 / np.sqrt(3 * values.size)
    assert abs(values.std() - 0.25 / np.sqrt(3)) < 0.001
    assert len(np.unique(values)) > 0.98 * values.size

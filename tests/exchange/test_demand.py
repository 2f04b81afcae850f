"""Rows that ranks ask for come from their homes and go back, at many sizes."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ist_hpc.exchange.demand import Demand, evenly, split_by_home
from ist_hpc.exchange.exchanger import Exchanger, allocate_home, drop_home_copies
from ist_hpc.exchange.giving_back import giving_back_counts
from ist_hpc.exchange.placement import Axis, Placement, TensorSpec, at_round, home
from ist_hpc.exchange.plan import pair_counts, plan_exchange
from tests.helpers.threads import ThreadRanks

SEED = 5


def layer(units: int, labels: int) -> tuple[dict[str, Axis], tuple[TensorSpec, ...]]:
    """A layer of which labels are held by demand, with slots, after one that is not."""
    rows = {"demanded": "labels"}
    return {"hidden": Axis(units)}, (
        TensorSpec("in", (units, 3), ("hidden", None)),
        TensorSpec("out", (labels, units), (None, "hidden"), **rows),
        TensorSpec("momentum/out", (labels, units), (None, "hidden"), **rows),
        TensorSpec("squares/out", (labels,), (None,), mean_over="hidden", **rows),
    )


def demand_of(rank: int, size: int, rows: Sequence[np.ndarray]) -> Demand:
    """The demand of a rank, from what each rank asks for."""
    by_home = [split_by_home(asked, size, len(rows)) for asked in rows]
    counts = np.array([[len(part) for part in parts] for parts in by_home], dtype=np.int64)
    return Demand(rank, size, rows[rank], tuple(parts[rank] for parts in by_home), counts)


def with_demand(placement: Placement, rank: int, labels: int, rows) -> Placement:
    return replace(placement, demands={"labels": demand_of(rank, labels, rows)})


def drawn_rows(generator: np.random.Generator, ranks: int, labels: int) -> list[np.ndarray]:
    """What each rank asks for: from nothing to all."""
    chances = generator.choice([0.0, 0.1, 0.5, 1.0], ranks)
    return [np.flatnonzero(generator.random(labels) < chance) for chance in chances]


sizes = st.integers(1, 5).flatmap(
    lambda ranks: st.tuples(st.just(ranks), st.integers(ranks, 11), st.integers(1, 14))
)
buffers = st.sampled_from([1 << 20, 600, 64, 1])


@settings(max_examples=60, deadline=None)
@given(sizes.filter(lambda size: size[0] > 1), buffers, st.integers(0, 1000))
def test_rows_come_when_asked_for_and_go_back_changed(size, buffer_bytes, draw):
    """Elements have one writer. Of a number a row the home adds what each rank changed."""
    ranks, units, labels = size
    axes, specs = layer(units, labels)
    generator = np.random.default_rng(draw)
    wanted = [drawn_rows(generator, ranks, labels) for _ in range(3)]
    torch.manual_seed(draw)
    start = {spec.key: torch.randn(spec.shape) for spec in specs}
    changes = [{spec.key: torch.randn(ranks, *spec.shape) for spec in specs} for _ in wanted]

    def body(comm):
        rank = comm.Get_rank()
        exchanger = Exchanger(comm, buffer_bytes / 2**20)
        state, source = allocate_home(specs, rank, ranks), home(ranks)
        whole = {key: tensor.clone() for key, tensor in start.items()}
        for spec in specs:
            state[spec.key].home = start[spec.key][slice(*spec.home_rows(rank, ranks))].clone()
        for index, rows in enumerate(wanted):
            demand, asking = exchanger.ask(labels, rows[rank])
            target = replace(at_round(axes, ranks, SEED, index), demands={"labels": demand})
            expected = with_demand(target, rank, labels, rows)
            _assert_same(demand, expected.demands["labels"])
            assert asking.bytes_sent == 4 * sum(
                demand.counts[rank, peer] for peer in range(ranks) if peer != rank
            )
            coming = exchanger.exchange(specs, source, target, state)
            assert coming.bytes_received == 4 * pair_counts(specs, source, target)[:, rank].sum()
            _assert_held(specs, state, whole, target, rank, rows[rank])
            for spec in specs:
                state[spec.key].subnet += _part(changes[index][spec.key][rank], spec, target, rank)
            going = exchanger.give_back(specs, target, state)
            counts = giving_back_counts(specs, target)
            assert going.bytes_sent == 4 * counts[rank].sum()
            _train_whole(specs, whole, target, rows, changes[index])
            exchanger.exchange(specs, target, home(ranks), state, keep_source=True)
            for spec in specs:
                own = whole[spec.key][slice(*spec.home_rows(rank, ranks))]
                assert torch.equal(state[spec.key].home, own), spec.key
                assert (state[spec.key].subnet is None) == (spec.demanded is not None)
            drop_home_copies(specs, target, state)
            source = target

    ThreadRanks(ranks).run(body)


def _assert_same(one, other) -> None:
    assert (one.rank, one.size) == (other.rank, other.size)
    assert np.array_equal(one.rows, other.rows)
    assert np.array_equal(one.counts, other.counts)
    assert all(map(np.array_equal, one.asked, other.asked))


def _part(whole, spec, placement, rank):
    """What a rank holds of a tensor, by plain indexing."""
    if spec.demanded is None:
        return whole[torch.from_numpy(placement.deals["hidden"].units(rank))]
    part = whole[torch.from_numpy(placement.demands["labels"].rows)]
    return (
        part[:, torch.from_numpy(placement.deals["hidden"].units(rank))] if part.dim() > 1 else part
    )


def _assert_held(specs, state, whole, placement, rank, rows) -> None:
    for spec in specs:
        assert torch.equal(state[spec.key].subnet, _part(whole[spec.key], spec, placement, rank))
        assert placement.subnet_shape(spec, rank) == tuple(state[spec.key].subnet.shape)
    assert len(state["out"].subnet) == len(rows)


def _train_whole(specs, whole, placement, rows, changes) -> None:
    deal = placement.deals["hidden"]
    for spec in specs:
        before = whole[spec.key].clone()
        for rank in range(placement.ranks):
            units, asked = torch.from_numpy(deal.units(rank)), torch.from_numpy(rows[rank])
            change = changes[spec.key][rank]
            if spec.demanded is None:
                whole[spec.key][units] += change[units]
            elif len(spec.shape) > 1:
                grid = torch.meshgrid(asked, units, indexing="ij")
                whole[spec.key][grid] += change[grid]
            else:
                part = len(units) / spec_units(deal)
                after = before[asked] + change[asked]
                whole[spec.key][asked] += (after - before[asked]) * part


def spec_units(deal) -> int:
    return len(deal.holder)


def test_one_rank_asks_nobody_and_trains_at_home():
    axes, specs = layer(4, 9)
    placement = at_round(axes, 1, SEED, 0)
    plan = plan_exchange(specs, home(1), placement, 0, 1 << 20)
    assert {source.spec.key for source, _ in plan.local_moves} == {"in"}
    assert not giving_back_counts(specs, placement).any()


@pytest.mark.parametrize(("rows", "held"), [(0, 0), (1, 1), (7, 7), (30, 20), (-3, 0)])
def test_a_demand_for_costs_asks_evenly(rows, held):
    demand = evenly(1, 20, 4, rows)
    assert len(demand.rows) == held
    assert (np.diff(demand.rows) > 0).all()
    assert (demand.counts.sum(axis=1) == held).all()
    assert demand.counts.max() - demand.counts.min() <= 1


def test_demanded_tensors_state_what_they_hold():
    axes, specs = layer(8, 20)
    placement = replace(at_round(axes, 2, SEED, 0), demands={"labels": evenly(0, 20, 2, 6)})
    shapes = {spec.key: placement.subnet_shape(spec, 0) for spec in specs}
    assert shapes == {"in": (4, 3), "out": (6, 4), "momentum/out": (6, 4), "squares/out": (6,)}
    assert all(placement.keeps_home_block(spec) == (spec.demanded is not None) for spec in specs)

"""Properties of plan and exchange at many sizes, each against a description from first principles.

Every element carries its own global index as its value, so wherever it lands one sees what it is.
"""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ist_hpc.exchange import plan as transfer
from ist_hpc.exchange import tensors
from ist_hpc.exchange.exchanger import Exchanger, allocate_home
from ist_hpc.exchange.placement import Axis, Placement, TensorSpec, at_round, home
from ist_hpc.exchange.plan import pair_counts, plan_exchange
from ist_hpc.exchange.settling import plan_settling, settling_buffers
from ist_hpc.exchange.tensors import Held
from tests.helpers.threads import ThreadRanks

SEED = 11


def perceptron(one: int, two: int, outputs: int) -> tuple[dict[str, Axis], tuple[TensorSpec, ...]]:
    """Every kind of tensor: one axis on either side, two axes, vectors, a kernel, slots."""
    axes = {"a": Axis(one), "b": Axis(two)}
    return axes, (
        TensorSpec("in", (one, 3), ("a", None)),
        TensorSpec("norm", (one,), ("a",)),
        TensorSpec("middle", (two, one), ("b", "a")),
        TensorSpec("momentum/middle", (two, one), ("b", "a")),
        TensorSpec("middle_t", (two, one), ("b", "a"), transposed=True),
        TensorSpec("kernel", (two, one, 2), ("b", "a", None)),
        TensorSpec("columns", (4, one), (None, "a")),
        TensorSpec("out", (outputs, two), (None, "b"), transposed=True),
    )


def ids(spec: TensorSpec) -> torch.Tensor:
    return torch.arange(float(np.prod(spec.shape))).view(spec.shape)


def trainer(spec: TensorSpec, placement: Placement) -> np.ndarray:
    """The rank whose subnet has each (row, column), -1 for none; by the definition of a subnet."""
    trained = np.full((spec.rows, spec.columns), -1)
    if placement.is_home:
        return trained
    for i in range(spec.rows):
        for j in range(spec.columns):
            dealt = {
                int(placement.deals[axis].holder[unit])
                for axis, unit in ((spec.row_axis, i), (spec.column_axis, j))
                if axis is not None
            }
            if len(dealt) == 1:
                (trained[i, j],) = dealt
    return trained


def holder(spec: TensorSpec, placement: Placement) -> np.ndarray:
    """The holder of each (row, column): its trainer, or else its home."""
    homes = np.empty((spec.rows, spec.columns), dtype=int)
    for rank in range(placement.ranks):
        start, stop = spec.home_rows(rank, placement.ranks)
        homes[start:stop] = rank
    trained = trainer(spec, placement)
    return np.where(trained >= 0, trained, homes)


def stale_at_home(spec: TensorSpec, placement: Placement, rank: int) -> torch.Tensor:
    """Of the elements of a home block, which are in a subnet and so not to be read here."""
    start, stop = spec.home_rows(rank, placement.ranks)
    stale = torch.from_numpy(trainer(spec, placement)[start:stop] >= 0)
    if len(spec.shape) == 1:
        return stale[:, 0]
    extra = spec.shape[2:]
    return stale.view(*stale.shape, *[1] * len(extra)).expand(*stale.shape, *extra)


def subnet_of(spec: TensorSpec, whole: torch.Tensor, placement: Placement, rank: int):
    part = whole
    for dimension, axis in enumerate(spec.axes):
        if axis is not None:
            units = torch.from_numpy(placement.deals[axis].units(rank))
            part = part.index_select(dimension, units)
    return part.transpose(0, 1).contiguous() if spec.transposed else part


def at_home(specs, comm):
    """The home blocks of a rank, every element its own index."""
    state = allocate_home(specs, comm.Get_rank(), comm.Get_size())
    for spec in specs:
        start, stop = spec.home_rows(comm.Get_rank(), comm.Get_size())
        state[spec.key].home = ids(spec)[start:stop].clone()
    return state


def assert_holds(specs, state, placement: Placement, rank: int) -> None:
    """Every element that the rank holds in the placement is the one it should be."""
    for spec in specs:
        if not placement.is_home:
            expected = subnet_of(spec, ids(spec), placement, rank)
            assert torch.equal(state[spec.key].subnet, expected), spec.key
        if placement.keeps_home_block(spec):
            start, stop = spec.home_rows(rank, placement.ranks)
            tensors = ~stale_at_home(spec, placement, rank)
            assert torch.equal(state[spec.key].home[tensors], ids(spec)[start:stop][tensors]), (
                spec.key
            )
        else:
            assert state[spec.key].home is None
        if placement.is_home:
            assert state[spec.key].subnet is None


def spoil_what_is_not_held(specs, state, placement, rank):
    """Overwrite stale elements of home blocks: nothing may ever be read from them."""
    for spec in specs:
        if not placement.is_home and placement.keeps_home_block(spec):
            state[spec.key].home[stale_at_home(spec, placement, rank)] = -1


sizes = st.integers(1, 5).flatmap(
    lambda ranks: st.tuples(
        st.just(ranks), st.integers(ranks, 17), st.integers(ranks, 14), st.integers(1, 6)
    )
)
buffers = st.sampled_from([1 << 20, 600, 64, 1])


@settings(max_examples=60, deadline=None)
@given(sizes, buffers, st.integers(0, 1000))
def test_every_exchange_puts_every_element_where_its_placement_says(size, buffer_bytes, first):
    ranks, one, two, outputs = size
    axes, specs = perceptron(one, two, outputs)
    rounds = [at_round(axes, ranks, SEED, first + i) for i in range(3)]
    journey = [rounds[0], rounds[1], home(ranks), rounds[2], home(ranks)]

    def body(comm):
        exchanger = Exchanger(comm, buffer_bytes / 2**20)
        state, source = at_home(specs, comm), home(ranks)
        for target in journey:
            exchanger.exchange(specs, source, target, state)
            assert_holds(specs, state, target, comm.Get_rank())
            spoil_what_is_not_held(specs, state, target, comm.Get_rank())
            source = target

    ThreadRanks(ranks).run(body)


@settings(max_examples=25, deadline=None)
@given(sizes, buffers)
def test_a_visit_home_changes_nothing_for_the_round(size, buffer_bytes):
    ranks, one, two, outputs = size
    axes, specs = perceptron(one, two, outputs)
    before, after = (at_round(axes, ranks, SEED, i) for i in (4, 5))

    def body(comm):
        exchanger = Exchanger(comm, buffer_bytes / 2**20)
        state = at_home(specs, comm)
        exchanger.exchange(specs, home(ranks), before, state)
        exchanger.exchange(specs, before, home(ranks), state, keep_source=True)
        for spec in specs:
            start, stop = spec.home_rows(comm.Get_rank(), ranks)
            assert torch.equal(state[spec.key].home, ids(spec)[start:stop])
            if not before.keeps_home_block(spec):
                state[spec.key].home = None
        spoil_what_is_not_held(specs, state, before, comm.Get_rank())
        exchanger.exchange(specs, before, after, state)
        assert_holds(specs, state, after, comm.Get_rank())

    ThreadRanks(ranks).run(body)


placements = st.sampled_from(["home", 0, 1, 2])


@settings(max_examples=80, deadline=None)
@given(sizes, buffers, placements, placements)
def test_exactly_the_elements_whose_holder_changes_move_each_once(size, buffer_bytes, a, b):
    """And what s says it sends to q is what q expects from s, chunk by chunk."""
    ranks, one, two, outputs = size
    axes, specs = perceptron(one, two, outputs)
    source, target = (
        home(ranks) if p == "home" else at_round(axes, ranks, SEED, p) for p in (a, b)
    )
    plans = [plan_exchange(specs, source, target, rank, buffer_bytes) for rank in range(ranks)]
    assert len({len(plan.chunks) for plan in plans}) == 1
    counts = pair_counts(specs, source, target)
    sent = np.array([sum((c.send_counts for c in p.chunks), np.zeros(ranks)) for p in plans])
    received = np.array([sum((c.recv_counts for c in p.chunks), np.zeros(ranks)) for p in plans])
    assert np.array_equal(sent, counts)
    assert np.array_equal(received, counts.T)
    moved = {spec.key: np.zeros((spec.rows, spec.columns), dtype=int) for spec in specs}
    for index in range(len(plans[0].chunks)):
        chunks = [plan.chunks[index] for plan in plans]
        leaving = [
            _elements_by_peer(c.send_pieces, c.send_counts, source, r) for r, c in enumerate(chunks)
        ]
        coming = [
            _elements_by_peer(c.recv_pieces, c.recv_counts, target, r) for r, c in enumerate(chunks)
        ]
        for s in range(ranks):
            for q in range(ranks):
                assert leaving[s][q] == coming[q][s]
                for key, row, column in leaving[s][q]:
                    moved[key][row, column] += 1
        limit = max(1, buffer_bytes // 8)
        room = limit + 2 * ranks  # a kernel's elements are never cut
        assert all(c.send_counts.sum() <= room for c in chunks)
    for spec in specs:
        changes = holder(spec, source) != holder(spec, target)
        assert np.array_equal(moved[spec.key], changes.astype(int)), spec.key


def _elements_by_peer(pieces, counts, placement, rank):
    """Of each peer the (tensor, row, column) in the order of the buffer."""
    flat = []
    for piece in pieces:
        spec = piece.spec
        rows = _global(piece.rows, piece.place, spec, 0, placement, rank)
        columns = _global(piece.columns, piece.place, spec, 1, placement, rank)
        pairs = (
            [(i, j) for j in columns for i in rows]
            if spec.transposed
            else [(i, j) for i in rows for j in columns]
        )
        flat += [(spec.key, i, j) for i, j in pairs for _ in range(spec.element_width)]
    bounds = np.cumsum([0, *counts])
    assert bounds[-1] == len(flat)
    width = {piece.spec.key: piece.spec.element_width for piece in pieces}
    by_peer = [flat[start:stop] for start, stop in pairwise(bounds)]
    return [_once(part, width) for part in by_peer]


def _once(part, width):
    single, position = [], 0
    while position < len(part):
        single.append(part[position])
        position += width[part[position][0]]
    return single


def _global(selection, place, spec, dimension, placement, rank):
    size = spec.rows if dimension == 0 else spec.columns
    local = np.arange(size)[selection] if isinstance(selection, slice) else selection
    if place == "home":
        return (
            local + spec.home_rows(rank, placement.ranks)[0] if dimension == 0 else local
        ).tolist()
    axis = spec.row_axis if dimension == 0 else spec.column_axis
    return (local if axis is None else placement.deals[axis].units(rank)[local]).tolist()


def blocks(units: int, least: int) -> tuple[dict[str, Axis], tuple[TensorSpec, ...]]:
    """Units that several ranks may train: stacks of kernels and of vectors."""
    shapes = {"kernel": (units, 3, 2, 2), "norm": (units, 3), "momentum/norm": (units, 3)}
    return {"blocks": Axis(units, least)}, tuple(
        TensorSpec(key, shape, ("blocks", *[None] * (len(shape) - 1)), least=least)
        for key, shape in shapes.items()
    )


shared_sizes = st.integers(1, 5).flatmap(
    lambda ranks: st.tuples(st.just(ranks), st.integers(ranks, 12), st.integers(1, 12))
)


@settings(max_examples=40, deadline=None)
@given(shared_sizes, buffers, st.integers(0, 1000))
def test_shared_units_go_from_their_holder_to_every_rank_that_trains_them(size, buffer, first):
    ranks, units, least = size
    axes, specs = blocks(units, least)
    rounds = [at_round(axes, ranks, SEED, first + i) for i in range(3)]

    def body(comm):
        exchanger, rank = Exchanger(comm, buffer / 2**20), comm.Get_rank()
        state, source = at_home(specs, comm), home(ranks)
        received = 0
        for target in (*rounds, home(ranks), rounds[0]):
            report = exchanger.exchange(specs, source, target, state)
            received += report.bytes_received
            assert_holds(specs, state, target, rank)
            if not target.is_home:
                for spec in specs:  # copies that another rank holds are stale, and never read
                    dealt = target.deals["blocks"]
                    own = torch.from_numpy(dealt.holder[dealt.units(rank)] != rank)
                    state[spec.key].subnet[own] = -1.0
            source = target
        return received

    counted = sum(
        pair_counts(specs, a, b)
        for a, b in zip(
            (home(ranks), *rounds, home(ranks)), (*rounds, home(ranks), rounds[0]), strict=True
        )
    )
    found = ThreadRanks(ranks).run(body)
    assert found == (4 * counted.sum(axis=0)).tolist()


@settings(max_examples=40, deadline=None)
@given(shared_sizes, buffers, st.integers(0, 1000))
def test_settling_leaves_the_mean_of_the_copies_at_the_holder(size, buffer, index):
    ranks, units, least = size
    axes, specs = blocks(units, least)
    placement = at_round(axes, ranks, SEED, index)
    dealt = placement.deals["blocks"]
    generator = torch.Generator().manual_seed(index)
    copies = [
        {spec.key: torch.randn(spec.shape, generator=generator) for spec in specs}
        for _ in range(ranks)
    ]

    def body(comm):
        rank = comm.Get_rank()
        own = torch.from_numpy(dealt.units(rank))
        state = {key: Held(subnet=whole[own].clone()) for key, whole in copies[rank].items()}
        report = Exchanger(comm, buffer / 2**20).settle(specs, placement, state)
        for spec in specs:
            for place, unit in enumerate(own.tolist()):
                others = dealt.copies[1][dealt.copies[0] == unit].tolist()
                if dealt.holder[unit] != rank:
                    continue
                total = copies[rank][spec.key][unit].clone()
                for other in others:
                    total += copies[other][spec.key][unit]
                if others:
                    total /= 1 + len(others)
                assert torch.equal(state[spec.key].subnet[place], total), spec.key
        return report.bytes_sent

    numbers = sum(int(np.prod(spec.shape[1:])) for spec in specs)
    assert sum(ThreadRanks(ranks).run(body)) == 4 * numbers * len(dealt.copies[0])


@settings(max_examples=60, deadline=None)
@given(shared_sizes, buffers, st.integers(0, 1000))
def test_settling_stays_within_its_buffers_or_brings_one_unit_together(size, buffer, index):
    ranks, units, least = size
    axes, specs = blocks(units, least)
    placement = at_round(axes, ranks, SEED, index)
    of_ranks = [plan_settling(specs, placement, rank, buffer) for rank in range(ranks)]
    most = [0, 0]
    for plans in zip(*of_ranks, strict=True):
        sent = max(int(plan.chunk.send_counts.sum()) for plan in plans)
        received = max(int(plan.chunk.recv_counts.sum()) for plan in plans)
        most = [max(most[0], sent), max(most[1], received)]
        if 8 * max(sent, received) > buffer:
            together = [
                int((of_tensor > 1).sum()) for plan in plans for of_tensor in plan.copies.values()
            ]
            assert sum(together) == 1
    assert settling_buffers(specs, placement, buffer) == tuple(most)


def test_one_round_is_one_alltoallv():
    axes, specs = perceptron(16, 12, 5)

    def body(comm):
        exchanger = Exchanger(comm, 1.0)
        state = at_home(specs, comm)
        exchanger.exchange(specs, home(3), at_round(axes, 3, SEED, 0), state)
        calls = comm.calls
        exchanger.exchange(specs, at_round(axes, 3, SEED, 0), at_round(axes, 3, SEED, 1), state)
        return comm.calls - calls

    assert ThreadRanks(3).run(body) == [1, 1, 1]


def test_one_rank_sends_nothing_and_copies_nothing_between_rounds():
    axes, specs = perceptron(16, 12, 5)
    plan = plan_exchange(specs, at_round(axes, 1, SEED, 0), at_round(axes, 1, SEED, 1), 0, 1 << 20)
    assert plan.chunks == ()
    assert plan.local_moves == ()


@settings(max_examples=60, deadline=None)
@given(sizes, st.sampled_from([1, 3, 10, 64]))
def test_what_stays_on_a_rank_moves_by_way_of_a_small_buffer(size, at_once):
    """In parts that are cut alike on both sides, from the home block, to it, and between rounds."""
    ranks, one, two, outputs = size
    axes, specs = perceptron(one, two, outputs)
    rounds = [at_round(axes, ranks, SEED, i) for i in range(2)]
    buffers = []

    def gather(source, piece, out):
        buffers.append(out.untyped_storage().nbytes() // 4)
        assert piece.size <= max(at_once, piece.spec.element_width)
        held_gather(source, piece, out)

    held_gather = tensors.gather
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensors, "_MOVE_BYTES", 4 * at_once)
        patch.setattr(tensors, "gather", gather)  # of `move`; the exchange has its own

        def body(comm):
            exchanger = Exchanger(comm, 1.0)
            state, source = at_home(specs, comm), home(ranks)
            for target in (*rounds, home(ranks)):
                exchanger.exchange(specs, source, target, state)
                assert_holds(specs, state, target, comm.Get_rank())
                source = target

        ThreadRanks(ranks).run(body)
    assert max(buffers) <= max(at_once, 2)  # an element of the kernel has two numbers


def test_counts_that_mpi_could_not_count_are_avoided(monkeypatch):
    """However large the buffers may be, by more chunks."""
    axes, specs = perceptron(16, 12, 5)
    monkeypatch.setattr(transfer, "MOST_ELEMENTS", 100)
    plan = plan_exchange(specs, home(3), at_round(axes, 3, SEED, 0), 0, 8 << 20)
    assert len(plan.chunks) > 1
    assert max(chunk.send_counts.sum() for chunk in plan.chunks) <= 100 + 2 * 3


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("at", [0, 17, 59])
def test_a_number_that_is_not_finite_is_found_wherever_it_is(number, at):
    values = torch.arange(-30.0, 30.0).mul(1e37).view(6, 10)
    assert tensors.all_finite(values)
    assert tensors.all_finite(values[:, :0])
    values.view(-1)[at] = number
    assert not tensors.all_finite(values)
    assert tensors.all_finite(values.t()) is False

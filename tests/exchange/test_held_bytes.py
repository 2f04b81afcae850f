"""What is said of memory beforehand is what tensors, exchanges and their buffers take."""

import pytest

from ist_hpc.exchange.exchanger import Exchanger, drop_home_copies
from ist_hpc.exchange.held_bytes import exchange_buffers, held_bytes, visit_bytes
from ist_hpc.exchange.placement import Axis, TensorSpec, at_round, home
from ist_hpc.exchange.tensors import state_bytes, zeros_at
from tests.helpers.alone import Alone

AXES = {"a": Axis(23), "b": Axis(17), "blocks": Axis(7, least=3)}
SPECS = (
    TensorSpec("first", (23, 9), ("a", None), transposed=True),
    TensorSpec("scale", (23,), ("a",)),
    TensorSpec("middle", (17, 23, 3, 3), ("b", "a", None, None)),
    TensorSpec("out", (6, 17), (None, "b"), transposed=True),
    TensorSpec("stack", (7, 5, 4), ("blocks", None, None), least=3),
)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_held_and_visited_bytes_are_those_of_the_tensors(ranks):
    for rank in range(ranks):
        for placement in (home(ranks), at_round(AXES, ranks, 3, 0)):
            state = zeros_at(SPECS, placement, rank)
            held = held_bytes(SPECS, placement, rank)
            assert state_bytes(state) == held
            exchanger = Exchanger(Alone(rank), 1.0)
            exchanger.exchange(SPECS, placement, home(ranks), state, keep_source=True)
            assert state_bytes(state) == held + visit_bytes(SPECS, placement, rank)
            drop_home_copies(SPECS, placement, state)
            assert state_bytes(state) == held


@pytest.mark.parametrize("buffer_bytes", [2000, 8000, 1 << 20])
@pytest.mark.parametrize("to_home", [False, True])
def test_buffers_are_those_of_the_busiest_rank(to_home, buffer_bytes):
    """But for the slack, and one kernel a peer, by which chunks differ in size."""
    ranks = 3
    source = at_round(AXES, ranks, 3, 0)
    target = home(ranks) if to_home else at_round(AXES, ranks, 3, 1)
    kept = {"send": 0, "receive": 0}
    for rank in range(ranks):
        exchanger = Exchanger(Alone(rank), buffer_bytes / 2**20)
        state = zeros_at(SPECS, source, rank)
        exchanger.exchange(SPECS, source, target, state, keep_source=True)
        for kind, most in kept.items():
            buffers = exchanger.staging.buffers.items()
            own = sum(tensor.nbytes for name, tensor in buffers if name.startswith(kind))
            kept[kind] = max(most, own)
    predicted = exchange_buffers(SPECS, source, target, buffer_bytes)
    assert abs(predicted - sum(kept.values())) <= 2 * 2 * ranks * 9 * 4

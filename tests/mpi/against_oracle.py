"""Training on the ranks and in the oracle, round by round, and comparing the two."""

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ist_hpc.data.sparse_rows import Rows
from ist_hpc.training.algorithms.ist import IndependentSubnets
from tests.helpers.oracle import Oracle
from tests.mpi.helpers import batch, rule

SEED, STEPS = 3, 3
RULES = {
    "sgd": rule(),
    "momentum, carried": rule(momentum=0.9),
    "momentum, reset": rule(momentum=0.9, state="reset", weight_decay=0.01),
    "adam, carried": rule(kind="adam", lr=0.01),
    "adam, reset": rule(kind="adam", lr=0.01, state="reset"),
}
_OF_ORACLE = {"exp_avg": "first", "exp_avg_sq": "second", "updates": "counts"}


def rounds(
    world,
    algorithm: IndependentSubnets,
    oracle: Oracle,
    lr: float,
    count: int,
    draw: Callable[[int, int], tuple[Rows, Rows]] = batch,
) -> Iterator[int]:
    """Train `count` rounds on the ranks and in the oracle, the last short; yields after each.

    The oracle is one process, that of rank 0; the others take over what it has come to.
    """
    trained = 0
    for index in range(count):
        steps = STEPS if index < count - 1 else STEPS - 1
        everyone = [
            [draw(rank, STEPS * index + i) for i in range(steps)]
            for rank in range(world.Get_size())
        ]
        algorithm.begin_round(index, everyone[world.Get_rank()], trained)
        if world.Get_rank() == 0:  # steps send nothing: the others take theirs meanwhile
            oracle.round(index, everyone, lr, trained)
        for features, labels in everyone[world.Get_rank()]:
            algorithm.step(features, labels, lr, trained)
            trained += 1
        _wait_asleep(world)
        algorithm.end_round()
        known = oracle.numbers()
        world.Bcast(known.numpy())
        oracle.take_over(known)
        yield index


def _wait_asleep(world) -> None:
    """Wait for all ranks; MPI's own waiting takes the cores from the rank that computes."""
    arrived = world.Ibarrier()
    while not arrived.Test():
        time.sleep(0.002)


def assert_equal(whole: dict[str, Tensor], oracle: Oracle, algorithm: IndependentSubnets) -> None:
    """Weights and carried slots to the last bit."""
    for spec in algorithm.model.specs:
        assert torch.equal(whole[spec.key], oracle.whole[spec.key].values), spec.key
    for spec in algorithm.slot_specs:
        slot, key = spec.key.split("/")
        name = _OF_ORACLE.get(slot, slot)
        if name == "squares" and len(spec.shape) < len(oracle.whole[key].axes):
            name = "units"
        assert torch.equal(whole[spec.key], getattr(oracle.whole[key], name)), spec.key


def follow_averages(algorithm: IndependentSubnets, oracle: Oracle) -> None:
    """Shared weights and carried slots are the ranks' mean within 1e-6; the oracle takes them over.

    An allreduce of four or more ranks sums in an order of its own.
    """
    pairs = [
        (algorithm.shared[key], [copy.values for copy in copies])
        for key, copies in oracle.shared.items()
    ]
    for spec in algorithm.shared_slot_specs:
        slot, key = spec.key.split("/")
        own = [getattr(copy, _OF_ORACLE.get(slot, slot)) for copy in oracle.shared[key]]
        pairs.append((algorithm.shared_slots[spec.key], own))
    found = [averaged for averaged, _ in pairs]
    wanted = [torch.stack(own).mean(0) for _, own in pairs]
    assert [tensor.shape for tensor in found] == [tensor.shape for tensor in wanted]
    if pairs:
        found, wanted = (torch.cat([t.flatten() for t in each]) for each in (found, wanted))
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)
    for averaged, own in pairs:
        for tensor in own:
            tensor.copy_(averaged)

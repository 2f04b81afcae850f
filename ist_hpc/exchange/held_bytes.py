"""Bytes of a rank's partitioned tensors and exchange buffers; from shapes, without torch.

They count what tensors.py, exchanger.py and staging.py allocate. `Plan.doubled_bytes` counts what
an exchange holds twice.
"""

import math
from collections.abc import Iterable, Sequence

from ist_hpc.common.sizes import ELEMENT_BYTES
from ist_hpc.exchange.placement import Placement, TensorSpec
from ist_hpc.exchange.plan import SLOTS, chunk_count, pair_counts, with_slack
from ist_hpc.exchange.settling import settling_buffers


def subnet_bytes(specs: Iterable[TensorSpec], ranks: int, rank: int = 0) -> int:
    """Bytes of a rank's subnets, the same in every round."""
    return sum(math.prod(spec.subnet_shape(rank, ranks)) for spec in specs) * ELEMENT_BYTES


def home_bytes(specs: Iterable[TensorSpec], ranks: int, rank: int = 0) -> int:
    """Bytes of a rank's home blocks."""
    return sum(math.prod(spec.home_shape(rank, ranks)) for spec in specs) * ELEMENT_BYTES


def held_bytes(specs: Iterable[TensorSpec], placement: Placement, rank: int = 0) -> int:
    """Bytes that a rank holds in a placement, as `tensors.zeros_at` allocates them."""
    specs = tuple(specs)
    at_home = [spec for spec in specs if placement.keeps_home_block(spec)]
    subnets = 0 if placement.is_home else subnet_bytes(specs, placement.ranks, rank)
    return subnets + home_bytes(at_home, placement.ranks, rank)


def visit_bytes(specs: Iterable[TensorSpec], placement: Placement, rank: int = 0) -> int:
    """Bytes of the home blocks that a visit home adds and `exchanger.drop_home_copies` frees."""
    added = [spec for spec in specs if not placement.keeps_home_block(spec)]
    return home_bytes(added, placement.ranks, rank)


def exchange_buffers(
    specs: Sequence[TensorSpec], source: Placement, target: Placement, buffer_bytes: int
) -> int:
    """Bytes of all buffers on the busiest rank, to exchange and to settle the target's round.

    `Staging` keeps these buffers; both operations use the same ones.

    Parameters
    ----------
    specs
        The tensors that move.
    source, target
        The placements before and after.
    buffer_bytes
        The limit, as for `plan_exchange` and `plan_settling`.

    Returns
    -------
    int
        Bytes.
    """
    counts = pair_counts(specs, source, target)
    chunks = chunk_count(counts, buffer_bytes)
    most = [-(-int(counts.sum(axis=axis).max()) // max(1, chunks)) for axis in (0, 1)]
    elements = min(SLOTS, chunks) * sum(map(with_slack, most))
    if not target.is_home:
        settling = settling_buffers(specs, target, buffer_bytes)
        elements = max(elements, sum(map(with_slack, settling)))
    return elements * ELEMENT_BYTES

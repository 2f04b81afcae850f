"""Bytes of a rank's partitioned tensors and exchange buffers; from shapes, without torch.

They count what tensors.py, exchanger.py and staging.py allocate. `Plan.doubled_bytes` counts what
an exchange holds twice.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from ist_hpc.common.sizes import ELEMENT_BYTES
from ist_hpc.exchange.giving_back import giving_back_counts
from ist_hpc.exchange.placement import Placement, TensorSpec
from ist_hpc.exchange.plan import SLOTS, chunk_count, pair_counts, with_slack
from ist_hpc.exchange.settling import settling_buffers


def subnet_bytes(specs: Iterable[TensorSpec], ranks: int, rank: int = 0) -> int:
    """Bytes of a rank's subnets, the same in every round."""
    return sum(math.prod(spec.subnet_shape(rank, ranks)) for spec in specs) * ELEMENT_BYTES


def trained_bytes(specs: Iterable[TensorSpec], placement: Placement, rank: int = 0) -> int:
    """Of what a rank trains in a round."""
    shapes = (placement.trained_shape(spec, rank) for spec in specs)
    return sum(map(math.prod, shapes)) * ELEMENT_BYTES


def home_bytes(specs: Iterable[TensorSpec], ranks: int, rank: int = 0) -> int:
    """Bytes of a rank's home blocks."""
    return sum(math.prod(spec.home_shape(rank, ranks)) for spec in specs) * ELEMENT_BYTES


def held_bytes(specs: Iterable[TensorSpec], placement: Placement, rank: int = 0) -> int:
    """Bytes that a rank holds in a placement, as `tensors.zeros_at` allocates them."""
    specs = tuple(specs)
    at_home = [spec for spec in specs if placement.keeps_home_block(spec)]
    shapes = [] if placement.is_home else [placement.subnet_shape(spec, rank) for spec in specs]
    subnets = sum(map(math.prod, shapes)) * ELEMENT_BYTES
    return subnets + home_bytes(at_home, placement.ranks, rank)


def visit_bytes(specs: Iterable[TensorSpec], placement: Placement, rank: int = 0) -> int:
    """Bytes of the home blocks that a visit home adds and `exchanger.drop_home_copies` frees."""
    added = [spec for spec in specs if not placement.keeps_home_block(spec)]
    return home_bytes(added, placement.ranks, rank)


def exchange_buffers(
    specs: Sequence[TensorSpec], source: Placement, target: Placement, buffer_bytes: int
) -> int:
    """Of all buffers on the busiest rank: for an exchange, and to end the round it leads to.

    To settle it, and to give demanded rows back. As `Staging` keeps them; all have the same ones.

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
    elements = _elements(pair_counts(specs, source, target), buffer_bytes)
    if not target.is_home:
        matrices = [spec for spec in specs if not spec.is_number_a_row]
        elements = max(elements, _elements(giving_back_counts(matrices, target), buffer_bytes))
        numbers = giving_back_counts([spec for spec in specs if spec.is_number_a_row], target)
        at_once = [with_slack(int(numbers.sum(axis=axis).max())) for axis in (0, 1)]
        elements = max(elements, sum(at_once))
        settling = settling_buffers(specs, target, buffer_bytes)
        elements = max(elements, sum(map(with_slack, settling)))
    return elements * ELEMENT_BYTES


def _elements(counts: npt.NDArray[np.int64], buffer_bytes: int) -> int:
    """Elements of the buffers of the busiest rank in an exchange of so many, int64 [from, to]."""
    chunks = chunk_count(counts, buffer_bytes)
    most = [-(-int(counts.sum(axis=axis).max()) // max(1, chunks)) for axis in (0, 1)]
    return min(SLOTS, chunks) * sum(map(with_slack, most))

"""The refusal of a run that would need more memory than its node grants, before it starts."""

from collections import Counter
from collections.abc import Sequence

from ist_hpc.cost.grants import Grant, ProcessLimit, SharedLimit

BASE_BYTES = 315 << 20
"""Resident memory of a rank without its model, in most runs. About 155 MiB of it are its own; the
rest are pages of PyTorch's libraries. The kernel may map more of these (630 MiB in all were seen),
and takes them back when memory is short."""

_FIRST_USE_BYTES = 16 << 20  # MPI, BLAS and HDF5 allocate this on first use
_SMALLER = "a smaller `data.batch_size`, `exchange.buffer_mib` or `data.window_mib`"

_Demand = tuple[int, int, str]
"""Bytes needed, bytes granted, and the words of a refusal."""


def refusal(
    predicted_bytes_a_rank: int,
    node_grants: Sequence[Grant],
    base_bytes: int = BASE_BYTES,
    configured_gb: float | None = None,
) -> str | None:
    """One line that says why the ranks of a node cannot have what they need; None if they can.

    predicted_bytes_a_rank  bytes that a rank will need in addition to those before its model
    node_grants             grants of every rank on the node, so that all reach the same answer
    base_bytes              bytes of a rank before its model: Python, PyTorch, MPI
    configured_gb           `runtime.memory_gb`: GB of the node, instead of everything found

    Local. A `ulimit` counts addresses, not memory, and memory that is free now excludes what the
    ranks already have: for both the prediction is added to what was found, without `base_bytes`.
    The threads of Horovod, if a model needs it, and of `runtime.threads` reserve addresses
    later, which are not counted: about 480 MiB, and 80 MiB each.
    """
    ranks = len(node_grants)
    if configured_gb is not None:
        limit = SharedLimit(round(configured_gb * 1e9), "`runtime.memory_gb`", "node")
        demands = [_together(limit, ranks, predicted_bytes_a_rank, base_bytes)]
    else:
        bounded_ranks = Counter(limit for grant in node_grants for limit in set(grant.shared))
        demands = [
            _together(limit, count, predicted_bytes_a_rank, base_bytes)
            for limit, count in bounded_ranks.items()
        ]
        demands.append(_free_now(node_grants, predicted_bytes_a_rank))
        demands += [
            _alone(grant.process, predicted_bytes_a_rank) for grant in node_grants if grant.process
        ]
    needed_bytes, granted_bytes, words = max(demands, key=lambda one: one[0] / max(1, one[1]))
    if needed_bytes <= max(1, granted_bytes):
        return None
    return f"not enough memory on {node_grants[0].host}: {words}"


def _together(limit: SharedLimit, ranks: int, predicted_bytes: int, base_bytes: int) -> _Demand:
    need_bytes = ranks * (predicted_bytes + base_bytes)
    return (
        need_bytes,
        limit.limit_bytes,
        f"{ranks} rank(s) need {_gb(need_bytes)} (each {_gb(predicted_bytes)} to train, "
        f"{_gb(base_bytes)} for Python, PyTorch and MPI), and may have {_gb(limit.limit_bytes)}: "
        f"{limit.source}; take more nodes, {_SMALLER}, or set `runtime.memory_gb` if the node has "
        "more",
    )


def _free_now(node_grants: Sequence[Grant], predicted_bytes: int) -> _Demand:
    ranks, need_bytes = len(node_grants), len(node_grants) * predicted_bytes
    free_bytes = min(grant.available_bytes for grant in node_grants)
    return (
        need_bytes,
        free_bytes,
        f"{ranks} rank(s) need {_gb(need_bytes)} more (each {_gb(predicted_bytes)} to train), and "
        f"{_gb(free_bytes)} are free, page cache included; end what else runs there, take more "
        f"nodes, {_SMALLER}, or set `runtime.memory_gb` if the node has more",
    )


def _alone(limit: ProcessLimit, predicted_bytes: int) -> _Demand:
    has_bytes = limit.used_bytes + _FIRST_USE_BYTES
    need_bytes = predicted_bytes + has_bytes
    return (
        need_bytes,
        limit.limit_bytes,
        f"a rank needs {_gb(need_bytes)} ({_gb(predicted_bytes)} to train, {_gb(has_bytes)} for "
        f"Python, PyTorch and MPI), and a process may have {_gb(limit.limit_bytes)}: "
        f"{limit.source}; take more ranks, {_SMALLER}, raise the limit, or set `runtime.memory_gb` "
        "if it does not hold",
    )


def _gb(value_bytes: int) -> str:
    """GB of 10^9 bytes, to 10 MB."""
    return f"{value_bytes / 1e9:,.2f} GB"

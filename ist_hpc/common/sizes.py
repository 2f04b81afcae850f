"""Bytes that ranks send to each other."""

ELEMENT_BYTES = 4
"""Everything that is exchanged is float32."""


def allreduce_bytes(count: float, ranks: int) -> float:
    """Bytes that a rank receives in a ring allreduce of `count` elements: 2 (N - 1)/N of them."""
    return 2 * (ranks - 1) / ranks * count * ELEMENT_BYTES

"""What the gradients of a step are: whole tensors, the few rows of one, or blocks of columns."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class RowGradient:
    """The gradient of a stored weight of which a step uses few rows; all other rows are zero.

    rows    ascending; int64 [n]
    values  [n, ...]
    """

    rows: Tensor
    values: Tensor


@dataclass(frozen=True, eq=False)
class ColumnGradient:
    """The gradient of a weight in blocks of its columns, as stored, each block contiguous.

    blocks  (columns, values [rows, columns]), ascending and without gaps
    """

    blocks: tuple[tuple[slice, Tensor], ...]


Gradients = dict[str, Tensor | RowGradient | ColumnGradient]
"""The gradient of every weight, partitioned or shared, by key."""

GradientBuffers = dict[str, Tensor]
"""Memory of large gradients, by key, that a model keeps for the next step: fresh pages cost more
than computing the gradients."""

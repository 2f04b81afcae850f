"""The paper's own counting of a gradient step (arXiv 1910.02120, section 4.2), for its figure 2.

It counts all machines together, for a perceptron with `widths` [layers + 1]: inputs, hidden layers,
outputs. Numbers are those that arrive at a machine, counted one way: under independent subnet
training ("IST") what a coordinator sends and not what returns to it; under data parallel training
the whole model sent to every machine, and no gradient. Operations are those of the matrix products.
"""

import itertools
from collections.abc import Sequence

FLOPS_A_WEIGHT = 6
"""Operations per weight and row: 2 forward, 4 backward. The usual count; the paper gives none."""


def layer_weights(widths: Sequence[int]) -> list[int]:
    """Weights of each layer, without biases and norms."""
    return [before * after for before, after in itertools.pairwise(widths)]


def ist_weights(widths: Sequence[int], machines: int) -> float:
    """Weights that the subnets of all machines have together.

    All of the first and the last layer, and 1/N of a layer between hidden ones.
    """
    weights = layer_weights(widths)
    assert len(weights) > 1, "without a hidden layer nothing is dealt"
    return weights[0] + weights[-1] + sum(weights[1:-1]) / machines


def ist_numbers(widths: Sequence[int], machines: int, local_steps: int) -> float:
    """Numbers received per step: each machine receives its subnet once in `local_steps` steps."""
    return ist_weights(widths, machines) / local_steps


def data_parallel_numbers(widths: Sequence[int], machines: int) -> int:
    """Numbers received per step: each machine receives the model."""
    return machines * sum(layer_weights(widths))


def ist_flops(widths: Sequence[int], machines: int, batch_size: int) -> float:
    """Operations of a step in which every machine has its own batch."""
    return FLOPS_A_WEIGHT * batch_size * ist_weights(widths, machines)


def data_parallel_flops(widths: Sequence[int], batch_size: int) -> int:
    """Operations of a step in which the machines share one batch."""
    return FLOPS_A_WEIGHT * batch_size * sum(layer_weights(widths))

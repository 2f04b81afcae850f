"""Initial values of weights, drawn so that any division of the rows gives the same full tensor."""

import math

import numpy as np
import numpy.typing as npt

from ist_hpc.common import random_streams


def initial_rows(
    key: str, shape: tuple[int, ...], seed: int, rows: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """The global rows [rows[0], rows[1]) of a weight; float32, [rows[1] - rows[0], *shape[1:]].

    Linear maps and convolutions are uniform in +-1/sqrt(fan-in of the full layer), PyTorch's
    default. Vectors are one if they are a norm's scale, and zero if they are a shift or bias.
    """
    count = rows[1] - rows[0]
    if len(shape) == 1:
        fill = 0.0 if key.endswith((".bias", ".running_mean")) else 1.0
        return np.full(count, fill, dtype=np.float32)
    fan_in = math.prod(shape[1:])
    values = random_streams.uniform(f"initial/{key}", seed, rows, fan_in, 1.0 / math.sqrt(fan_in))
    return values.reshape(count, *shape[1:])

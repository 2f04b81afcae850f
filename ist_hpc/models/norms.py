"""Batch norm: a thin network uses its batch, the full one the statistics of all its units."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ist_hpc.models.base import Statistics, Tensors

NORM_EPSILON = 1e-5
NORM_MOMENTUM = 0.1
"""The momentum of running statistics, PyTorch's default."""

Norm = Callable[[str, Tensor], Tensor]
"""The norm of a key, such as `conv1_norm`, of values [rows, units, ...]."""


def by_batch(weights: Tensors) -> Norm:
    """Norms by the statistics of the batch."""
    return lambda key, values: batch_norm(values, weights[f"{key}.weight"], weights[f"{key}.bias"])


def by_batch_keeping(weights: Tensors) -> Norm:
    """Norms by the statistics of the batch; running ones in `weights` are updated."""
    return lambda key, values: F.batch_norm(
        values,
        *_parts(weights, key),
        training=True,
        momentum=NORM_MOMENTUM,
        eps=NORM_EPSILON,
    )


def by_running(weights: Tensors) -> Norm:
    """Norms by the running statistics in `weights`."""
    return lambda key, values: stored_norm(values, *_parts(weights, key))


def by_all_units(weights: Tensors, statistics: Statistics, calibrate: bool) -> Norm:
    """Norms of home units by the full network's statistics, as `full_norm` has them."""
    return lambda key, own: full_norm(
        own, key, statistics, weights[f"{key}.weight"], weights[f"{key}.bias"], calibrate
    )


def _parts(weights: Tensors, key: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Running mean and variance, scale and shift."""
    mean, variance = weights[f"{key}.running_mean"], weights[f"{key}.running_var"]
    return mean, variance, weights[f"{key}.weight"], weights[f"{key}.bias"]


def batch_norm(values: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """Normalise by the statistics of this batch; [rows, units, ...]."""
    return F.batch_norm(values, None, None, scale, shift, training=True, eps=NORM_EPSILON)


def stored_norm(
    values: Tensor, mean: Tensor, variance: Tensor, scale: Tensor | None, shift: Tensor | None
) -> Tensor:
    """Normalise by given statistics; [rows, units, ...]."""
    return F.batch_norm(values, mean, variance, scale, shift, False, eps=NORM_EPSILON)


def full_norm(
    own: Tensor,
    norm: str,
    statistics: Statistics,
    scale: Tensor | None,
    shift: Tensor | None,
    calibrate: bool,
) -> Tensor:
    """Normalise home units [rows, local_units, ...] by the full network's statistics.

    These are read from `statistics`; with `calibrate` they are computed and stored there.
    """
    if calibrate:
        statistics[norm] = _mean_and_variance(own)
    mean, variance = statistics[norm]
    if not own.shape[1]:  # a rank may have no unit of a narrow layer
        return own
    return stored_norm(own, mean, variance, scale, shift)


def _mean_and_variance(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each unit; empty on a rank without units of a narrow layer."""
    if not values.shape[1]:
        return values.new_empty(0), values.new_empty(0)
    across = [0, *range(2, values.dim())]
    variance, mean = torch.var_mean(values, dim=across, correction=0)
    return mean, variance

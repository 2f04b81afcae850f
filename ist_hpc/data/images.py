"""Transforms dense rows on their way to the networks: random crops and flips, normalisation.

No result is stored: the configuration says what is done (`data.augment`, `data.mean`, `data.std`),
and random numbers depend on the seed, the rank, the pass and the position in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ist_hpc.common import random_streams
from ist_hpc.common.errors import InputError
from ist_hpc.config.keys import DataConfig
from ist_hpc.data.shards import Dataset, StoredRows
from ist_hpc.data.sparse_rows import Batch

PAD = 4
"""Pixels of zeros added around an image before it is cut back to its size."""

_OFFSETS = 2 * PAD + 1  # positions of a crop, in each direction
_IMAGE_DIMENSIONS = 3  # channels, height, width

Words = npt.NDArray[np.uint64]


class Scaling:
    """(x - mean) / std, for each channel of a row, that is, each index of its first dimension.

    `mean` and `std` are in the unit of the features for the networks, in which uint8 features are
    from 0 to 1. Computed in float32.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        assert len(mean) == len(std) > 0
        self._mean, self._std = (torch.tensor(part).unsqueeze(1) for part in (mean, std))

    def apply(self, features: Tensor) -> Tensor:
        """Features float32 [rows, width], scaled; new, of the same shape. Local."""
        channels = len(self._mean)
        by_channel = features.view(len(features), channels, features.shape[1] // channels)
        return by_channel.sub(self._mean).div_(self._std).view_as(features)


@dataclass(frozen=True)
class Augmentation:
    """Random crops and flips of the training rows of one rank."""

    seed: int
    rank: int

    def words(self, pass_index: int, rows: int) -> Words:
        """A random word for each row of a pass, in the order in which rows are drawn; [rows]."""
        return random_streams.words(f"augment/rank{self.rank}", self.seed, pass_index, rows)

    @staticmethod
    def apply(images: npt.NDArray[Any], words: Words) -> npt.NDArray[Any]:
        """Each image [channels, height, width], cut and perhaps flipped as its word says. Local.

        An image is padded with `PAD` zeros on every side and cut back to its size, at one of 81
        equally likely places, and mirrored with probability 1/2. Keeps dtype and shape,
        [rows, C, H, W].
        """
        rows, channels, height, width = images.shape
        padded_shape = rows, channels, height + 2 * PAD, width + 2 * PAD
        padded = np.zeros(padded_shape, dtype=images.dtype)
        padded[:, :, PAD : PAD + height, PAD : PAD + width] = images
        flipped = (words & np.uint64(1)).astype(bool)
        # 81 does not divide 2^63: some places are likelier by one part in 10^17.
        places = (words >> np.uint64(1)) % np.uint64(_OFFSETS**2)
        tops, lefts = np.divmod(places, np.uint64(_OFFSETS))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
        cropped: npt.NDArray[Any] = windows[np.arange(rows), :, tops, lefts]
        cropped[flipped] = cropped[flipped, :, :, ::-1]
        return cropped


def scaling_of(data: DataConfig, dataset: Dataset) -> Scaling | None:
    """How the configuration scales the rows of the data set; None if it does not. Local.

    Raises `InputError` if the rows cannot be scaled in this way.
    """
    if not data.mean:
        return None
    if dataset.sparse:
        raise InputError(
            f"`data.mean` and `data.std` are of dense rows, {dataset.path} has sparse ones; leave "
            "them out"
        )
    channels = dataset.feature_shape[0]
    if len(data.mean) != channels:
        raise InputError(
            f"`data.mean` and `data.std` have {len(data.mean)} numbers each, a row of "
            f"{dataset.path} has the shape {list(dataset.feature_shape)}; give {channels}, one for "
            "each index of its first dimension"
        )
    return Scaling(data.mean, data.std)


def augmentation_of(
    data: DataConfig, dataset: Dataset, seed: int, rank: int
) -> Augmentation | None:
    """How the configuration augments the rank's training rows; None if it does not. Local.

    Raises `InputError` if the rows of the data set are not images.
    """
    if data.augment == "none":
        return None
    shape = list(dataset.feature_shape)
    if dataset.sparse or len(shape) != _IMAGE_DIMENSIONS:
        found = "are sparse" if dataset.sparse else f"have the shape {shape}"
        raise InputError(
            f"`data.augment: {data.augment}` is of images, rows [channels, height, width]; those "
            f"of {dataset.path} {found}; set `data.augment: none`"
        )
    return Augmentation(seed, rank)


def as_batch(
    dataset: Dataset, parts: Sequence[StoredRows], scaling: Scaling | None = None
) -> Batch:
    """Stored rows, one part after the other, as the networks take them; dense ones are scaled.

    Dense: float32 [rows, width] and int64 [rows]. Sparse: `SparseRows` with values and without.
    """
    features, labels = dataset.store.batch(parts)
    if scaling is not None:
        assert isinstance(features, Tensor), "scaling_of refuses sparse rows"
        features = scaling.apply(features)
    return features, labels

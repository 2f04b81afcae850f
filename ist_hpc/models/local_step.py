"""Which local step a rank trains, and what it is trained with beside weights and rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ist_hpc.common import random_streams
from ist_hpc.models.gradients import GradientBuffers


@dataclass(frozen=True, eq=False)
class LocalStep:
    """A step of one rank.

    seed, rank  of the run, and of who trains: random numbers of the step follow from them
    index       steps of the run before this one
    held        by name of a demand, the rows that the rank has of tensors with demanded rows:
                global, ascending; int64. A name that is missing: all rows
    room        empty at first; filled by a step for the next one
    """

    seed: int = 0
    rank: int = 0
    index: int = 0
    held: Mapping[str, Tensor] = field(default_factory=dict)
    room: GradientBuffers = field(default_factory=dict)

    def kept(self, purpose: str, shape: tuple[int, int], dropped: float) -> Tensor:
        """A factor of each number of activations under dropout: 0, or 1 / (1 - dropped).

        purpose  tells apart the draws of a step
        Returns float32 of `shape`, on the CPU: a function of purpose, seed, rank and step.
        """
        size = shape[0] * shape[1]
        words = random_streams.words(
            f"{purpose}/rank{self.rank}", self.seed, self.index, -(-size // 2)
        )
        halves = words.astype("<u8", copy=False).view("<u4")[:size]
        factors = (halves >= np.uint32(dropped * 2**32)) * np.float32(1 / (1 - dropped))
        return torch.from_numpy(factors).view(shape)

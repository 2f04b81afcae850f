"""Small networks, batches and gathering, for the tests that run on several ranks."""

import numpy as np
import torch
from torch import Tensor

from ist_hpc.config.keys import OptimizerConfig
from ist_hpc.data.sparse_rows import SparseRows
from ist_hpc.exchange.exchanger import Exchanger
from ist_hpc.exchange.placement import TensorSpec
from ist_hpc.models import optimizer
from ist_hpc.models.base import Model
from ist_hpc.training.algorithms.ist import IndependentSubnets

INPUTS, OUTPUTS, BATCH = 13, 5, 8


def batch(rank: int, step: int, rows: int = BATCH) -> tuple[Tensor, Tensor]:
    """A batch that is a function of rank and step."""
    generator = torch.Generator().manual_seed(1000 * rank + step)
    features = torch.randn(rows, INPUTS, generator=generator)
    return features, torch.randint(OUTPUTS, (rows,), generator=generator)


def sparse_batch(
    rank: int, step: int, rows: int = BATCH, outputs: int = OUTPUTS, density: float = 0.35
) -> tuple[SparseRows, SparseRows]:
    """Sparse rows with sets of labels, a function of rank and step; some sets are empty."""
    generator = torch.Generator().manual_seed(1000 * rank + step)
    parts = []
    for width, share in ((INPUTS, 0.3), (outputs, density)):
        there = torch.rand(rows, width, generator=generator) < share
        offsets = torch.zeros(rows + 1, dtype=torch.int64)
        offsets[1:] = there.sum(1).cumsum(0)
        parts.append((offsets, there.nonzero()[:, 1], width))
    values = torch.randn(len(parts[0][1]), generator=generator)
    (offsets, columns, width), (label_offsets, labels, _) = parts
    features = SparseRows(offsets, columns, values, width)
    return features, SparseRows(label_offsets, labels, None, outputs)


def rule(**settings) -> OptimizerConfig:
    return OptimizerConfig(**{"lr": 0.05, **settings})


def build(world, model: Model, config: OptimizerConfig, seed=3, buffer_mib=1.0, averages=None):
    algorithm = IndependentSubnets(
        world,
        model,
        optimizer.build(config),
        Exchanger(world, buffer_mib),
        seed,
        config.state == "carry",
        averages,
    )
    algorithm.start_new()
    return algorithm


def full(world, algorithm: IndependentSubnets, specs: tuple[TensorSpec, ...]) -> dict[str, Tensor]:
    """Every tensor in whole, on every rank; visits home. Collective."""
    algorithm.visit_home(with_slots=True)
    own = [algorithm.state[spec.key].place("home").detach().numpy().copy() for spec in specs]
    blocks = zip(*world.allgather(own), strict=True)
    algorithm.leave_home()
    return {
        spec.key: torch.from_numpy(np.concatenate(of_ranks))
        for spec, of_ranks in zip(specs, blocks, strict=True)
    }


def same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.int32), other.view(torch.int32))

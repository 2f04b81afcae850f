"""`bench products`: a local step with many labels against the matrix products that it needs.

The products are the three of the output layer: logits, gradient of the hidden units, gradient of
the weight. They are made twice: each whole, and in the package's blocks of labels; the ratio is to
the faster of the two. Nothing else is in them: no softmax, no first layer, no update. Steps and
products take turns, on every rank at once. Where labels are sampled, the products are those of
sampled_products.py, gathers included.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ist_hpc.bench.exchange import load
from ist_hpc.bench.made import timed, trainer_in_a_round
from ist_hpc.bench.report import slowest, spread, table
from ist_hpc.bench.sampled_products import SampledProducts
from ist_hpc.common.commandline import add_configuration, count
from ist_hpc.common.errors import InputError
from ist_hpc.config.keys import Config, MlpConfig
from ist_hpc.data.sparse_rows import SparseRows
from ist_hpc.runtime.launch import Runtime, check_on_all
from ist_hpc.runtime.meters import peak_rss_mib
from ist_hpc.training.trainer import Trainer

HELP = "seconds of a local step with many labels, against its bare matrix products"
_LOSSES = ("softmax", "bce", "sampled_softmax")
_HELD_STEPS = 10  # whose labels a rank of several holds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `bench products`."""
    add_configuration(parser, such_as="configs/amazon670k.yaml")
    parser.add_argument("--rounds", type=count, default=8, help="repetitions after 2 to warm up")


def run(runtime: Runtime, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure; returns the figures, the same on all ranks. Collective."""
    comm = runtime.comm
    config = check_on_all(comm, lambda: _load(arguments))
    steps = arguments.rounds + 3
    with trainer_in_a_round(runtime, config, steps) as trainer:
        trainer.local_steps(1)
        peak_mib = comm.allgather(peak_rss_mib())  # before the products take memory of their own
        whole_way, block_way = _ways(trainer, config)
        own_s, whole_s, blocks_s = [], [], []
        for _ in range(steps - 1):
            own_s.append(timed(comm, lambda: trainer.local_steps(1)))
            whole_s.append(timed(comm, whole_way))
            blocks_s.append(timed(comm, block_way))
    own, whole, blocks = (slowest(comm, values[2:]) for values in (own_s, whole_s, blocks_s))
    faster = whole if np.median(whole) < np.median(blocks) else blocks
    return {
        "ranks": runtime.ranks,
        "threads_a_rank": runtime.threads,
        "step_s": own.tolist(),
        "products_whole_s": whole.tolist(),
        "products_in_blocks_s": blocks.tolist(),
        "ratio": (own / faster).tolist(),
        "peak_rss_mib_after_a_step": peak_mib,
    }


def show(figures: dict[str, Any]) -> str:
    """The figures as a table: median (lowest to highest) over repetitions."""
    values = {key: np.array(value) for key, value in figures.items() if isinstance(value, list)}
    return table(
        [
            ("ranks", f"{figures['ranks']}, {figures['threads_a_rank']} thread(s) each"),
            ("local step, s", spread(values["step_s"])),
            ("three products, whole, s", spread(values["products_whole_s"])),
            ("three products, in blocks, s", spread(values["products_in_blocks_s"])),
            ("ratio to the faster", spread(values["ratio"], 3)),
            (
                "peak memory of a rank after a step, MiB",
                spread(values["peak_rss_mib_after_a_step"], 0),
            ),
        ]
    )


def _load(arguments: argparse.Namespace) -> Config:
    config = load(arguments.config, arguments.set)
    if config.device != "cpu":
        raise InputError("bench products compares with products on the CPU; set `device: cpu`")
    _perceptron(config)
    return config


def _perceptron(config: Config) -> MlpConfig:
    """The network, whose labels are computed in blocks. Raises `InputError` for others."""
    model = config.model
    if not isinstance(model, MlpConfig) or model.loss not in _LOSSES:
        got = model.loss if isinstance(model, MlpConfig) else model.kind
        raise InputError(
            f"bench products is of `model.loss: {', '.join(_LOSSES)}`, got `{got}`; for others: "
            "bench step"
        )
    return model


def _ways(trainer: Trainer, config: Config) -> tuple[Callable[[], None], Callable[[], None]]:
    """The products of a step: each whole, and in blocks of labels (the same if sampled)."""
    algorithm, specs = trainer.algorithm, trainer.model.specs
    rank, ranks = algorithm.rank, algorithm.ranks
    if _perceptron(config).loss != "sampled_softmax":
        products = _Products(specs[-1].subnet_shape(rank, ranks), config)
        return products.whole, products.in_blocks
    first, last = (specs[at].subnet_shape(rank, ranks) for at in (0, -1))
    features = trainer.dataset.take("train", np.arange(config.data.batch_size))[0]
    held = trainer.model.expected_demands(config.data.batch_size, _HELD_STEPS)
    rows = min(last[0], *(round(asked) for _, asked in held.values())) if ranks > 1 else last[0]
    labels = round(trainer.model.step_outputs(config.data.batch_size))
    sampled = SampledProducts(SparseRows.of(features), first, (rows, last[1]), labels)
    return sampled.compute, sampled.compute


class _Products:
    """The products of an output layer of [units, labels] for one batch."""

    def __init__(self, shape: tuple[int, ...], config: Config) -> None:
        units, labels = shape
        self.block = _perceptron(config).label_block
        self.hidden = torch.rand(config.data.batch_size, units)
        self.weight = torch.rand(units, labels)
        self.logits = torch.empty(config.data.batch_size, labels)
        self.gradient = torch.empty(units, labels)
        self.hidden_gradient = torch.zeros_like(self.hidden)

    def whole(self) -> None:
        """Each product at once."""
        torch.mm(self.hidden, self.weight, out=self.logits)
        torch.mm(self.logits, self.weight.t(), out=self.hidden_gradient)
        torch.mm(self.hidden.t(), self.logits, out=self.gradient)

    def in_blocks(self) -> None:
        """A block of labels at a time, all three."""
        self.hidden_gradient.zero_()
        labels = self.weight.shape[1]
        buffer = self.logits.view(-1)
        for start in range(0, labels, self.block):
            columns = slice(start, min(start + self.block, labels))
            size = len(self.hidden) * (columns.stop - columns.start)
            logits = buffer[:size].view(len(self.hidden), -1)
            torch.mm(self.hidden, self.weight[:, columns], out=logits)
            self.hidden_gradient.addmm_(logits, self.weight[:, columns].t())
            torch.mm(self.hidden.t(), logits, out=self.gradient[:, columns])

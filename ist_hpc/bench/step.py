"""`bench step`: a local step of the package against a bare PyTorch loop on the same thin network.

The package's step includes all that a run does in it: drawing the batch, the learning rate, the
optimiser, the clocks. The bare loop is what a user would write: nn.Module, torch.optim.SGD, random
rows of a tensor in memory. The two take turns, a round's steps at a time, on every rank at once.
"""

import argparse
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ist_hpc.bench.exchange import load
from ist_hpc.bench.made import ROWS, timed, trainer_in_a_round
from ist_hpc.bench.report import slowest, spread, table
from ist_hpc.common.blocks import block_bounds
from ist_hpc.common.commandline import add_configuration, count
from ist_hpc.common.errors import InputError
from ist_hpc.config.keys import Config, MlpConfig
from ist_hpc.data.images import as_batch, scaling_of
from ist_hpc.data.shards import Dataset
from ist_hpc.exchange.placement import Axis
from ist_hpc.runtime.launch import Runtime, check_on_all

HELP = "seconds of a local step, against a bare PyTorch loop on the same thin network"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `bench step`."""
    add_configuration(parser, such_as="configs/speech2.yaml")
    parser.add_argument("--rounds", type=count, default=15, help="repetitions after 2 to warm up")


def run(runtime: Runtime, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure; returns the figures, the same on all ranks. Collective."""
    comm = runtime.comm
    config = check_on_all(comm, lambda: _load(arguments))
    with trainer_in_a_round(runtime, config) as trainer:
        bare = _BareLoop(config, trainer.dataset, trainer.model.axes, runtime)
        steps = config.train.local_steps
        own_s, bare_s = [], []
        for _ in range(arguments.rounds + 2):
            bare_s.append(timed(comm, lambda: bare.steps(steps)) / steps)
            own_s.append(timed(comm, lambda: trainer.local_steps(steps)) / steps)
    own, alone = slowest(comm, own_s[2:]), slowest(comm, bare_s[2:])
    return {
        "ranks": runtime.ranks,
        "threads_a_rank": runtime.threads,
        "step_s": own.tolist(),
        "bare_loop_step_s": alone.tolist(),
        "ratio": (own / alone).tolist(),
    }


def show(figures: dict[str, Any]) -> str:
    """The figures as a table: median (lowest to highest) over repetitions."""
    values = {key: np.array(value) for key, value in figures.items() if isinstance(value, list)}
    return table(
        [
            ("ranks", f"{figures['ranks']}, {figures['threads_a_rank']} thread(s) each"),
            ("local step, s", spread(values["step_s"])),
            ("bare loop, s", spread(values["bare_loop_step_s"])),
            ("ratio", spread(values["ratio"], 3)),
        ]
    )


def _load(arguments: argparse.Namespace) -> Config:
    config = load(arguments.config, arguments.set)
    if config.device != "cpu":
        raise InputError("bench step compares with a loop on the CPU; set `device: cpu`")
    model = config.model
    normed = isinstance(model, MlpConfig) and model.output_norm == "batch"
    if config.optimizer.kind != "sgd" or not normed:
        raise InputError("bench step compares with a loop of sgd and batch norm on the outputs")
    return config


class _BareLoop:
    """The same thin network as a user would write it."""

    def __init__(
        self, config: Config, dataset: Dataset, axes: Mapping[str, Axis], runtime: Runtime
    ) -> None:
        sizes = [axis.count(runtime.rank, runtime.ranks) for axis in axes.values()]
        layers: list[nn.Module] = []
        width = config.model.inputs or 0
        for size in sizes:
            norm = nn.BatchNorm1d(size, track_running_stats=False)
            layers += [nn.Linear(width, size, bias=False), norm, nn.ReLU(inplace=True)]
            width = size
        outputs = config.model.outputs or 0
        last = nn.BatchNorm1d(outputs, affine=False, track_running_stats=False)
        self.net = nn.Sequential(*layers, nn.Linear(width, outputs, bias=False), last)
        self.rule = torch.optim.SGD(
            self.net.parameters(), lr=config.optimizer.lr, momentum=config.optimizer.momentum
        )
        bounds = block_bounds(ROWS, runtime.ranks)
        rows = (int(bounds[runtime.rank]), int(bounds[runtime.rank + 1]))
        stored, scaling = dataset.read("train", *rows), scaling_of(config.data, dataset)
        features, labels = as_batch(dataset, [stored], scaling)
        assert isinstance(features, torch.Tensor)
        assert isinstance(labels, torch.Tensor)
        self.features, self.labels = features, labels
        self.batch = config.data.batch_size

    def steps(self, count: int) -> None:
        for _ in range(count):
            rows = torch.randint(len(self.labels), (self.batch,))
            self.rule.zero_grad()
            F.cross_entropy(self.net(self.features[rows]), self.labels[rows]).backward()
            self.rule.step()

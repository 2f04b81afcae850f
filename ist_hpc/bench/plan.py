"""`bench plan`: seconds to draw the deals of a round and plan its exchange, as ranks grow.

What a rank does before each exchange, without any data; no ranks need to be started for it.
"""

import argparse
import time
from typing import Any

import numpy as np

from ist_hpc.bench.exchange import load_dealt
from ist_hpc.bench.report import spread, table
from ist_hpc.common.commandline import add_configuration, count
from ist_hpc.cost import prediction
from ist_hpc.exchange.placement import Placement, at_round
from ist_hpc.exchange.plan import plan_exchange
from ist_hpc.models import networks, optimizer
from ist_hpc.runtime.launch import Runtime

HELP = "seconds to deal and to plan an exchange, at several numbers of ranks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `bench plan`."""
    add_configuration(parser, such_as="configs/speech3.yaml")
    parser.add_argument("--of", nargs="+", type=int, default=[4, 16, 64], help="numbers of ranks")
    parser.add_argument("--rounds", type=count, default=10, help="repetitions after 1 to warm up")


def run(runtime: Runtime, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure; returns seconds and pieces by number of ranks. Local."""
    config = load_dealt(arguments.config, arguments.set)
    sparse = prediction.is_sparse(config, None)
    model = networks.build(
        config.model, config.model.inputs or 0, config.model.outputs or 0, sparse
    )
    specs = (*model.specs, *optimizer.build(config.optimizer).slot_specs(model.specs))
    buffer_bytes = config.exchange.buffer_mib << 20
    figures: dict[str, Any] = {}
    for ranks in arguments.of:

        def deal(index: int, ranks: int = ranks) -> Placement:
            return at_round(model.axes, ranks, config.seed, index)

        seconds, pieces = [], 0
        source = deal(0)
        for index in range(1, arguments.rounds + 2):
            begin = time.perf_counter()
            target = deal(index)
            plan = plan_exchange(specs, source, target, index % ranks, buffer_bytes)
            seconds.append(time.perf_counter() - begin)
            pieces = sum(len(c.send_pieces) + len(c.recv_pieces) for c in plan.chunks)
            source = target
        figures[str(ranks)] = {"seconds": seconds[1:], "pieces": pieces}
    return figures


def show(figures: dict[str, Any]) -> str:
    """A line a number of ranks: median (lowest to highest) over rounds."""
    return table(
        [
            (f"{ranks} ranks", f"{spread(np.array(row['seconds']))} s, {row['pieces']} pieces")
            for ranks, row in figures.items()
        ]
    )

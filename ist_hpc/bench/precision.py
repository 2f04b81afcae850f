"""`bench precision`: a local step in float32 against the same in bf16, or TF32 on a GPU.

A trainer for each, on the same made data and from the same weights; they take turns, some steps at
a time, on every rank at once.
"""

import argparse
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np

from ist_hpc.bench.exchange import load
from ist_hpc.bench.made import timed, trainer_in_a_round
from ist_hpc.bench.report import slowest, spread, table
from ist_hpc.common.commandline import add_configuration, count
from ist_hpc.config.keys import Precision
from ist_hpc.runtime import precision
from ist_hpc.runtime.devices import synchronise
from ist_hpc.runtime.launch import Runtime, check_on_all
from ist_hpc.training.trainer import Trainer

HELP = "seconds of a local step in bf16 or TF32, against float32"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `bench precision`."""
    add_configuration(parser, such_as="configs/amazon670k.yaml")
    parser.add_argument(
        "--against", choices=(precision.BF16, precision.TF32), default=precision.BF16
    )
    parser.add_argument("--steps", type=count, default=5, help="local steps timed at a time")
    parser.add_argument("--rounds", type=count, default=8, help="repetitions after 2 to warm up")


def run(runtime: Runtime, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure; returns the figures, the same on all ranks. Collective."""
    comm = runtime.comm
    config = check_on_all(comm, lambda: load(arguments.config, arguments.set))
    names: tuple[Precision, ...] = ("float32", arguments.against)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stack:
        trainers = {}
        steps_in_all = arguments.steps * (arguments.rounds + 2)
        for name in names:
            own = replace(config, train=replace(config.train, precision=name))
            trainers[name] = stack.enter_context(trainer_in_a_round(runtime, own, steps_in_all))

        def steps(trainer: Trainer) -> None:
            trainer.local_steps(arguments.steps)
            synchronise(trainer.algorithm.device)

        for _ in range(arguments.rounds + 2):
            for name, trainer in trainers.items():
                precision.prepare(name)
                seconds[name].append(timed(comm, lambda: steps(trainer)) / arguments.steps)  # noqa: B023
    found = {name: slowest(comm, values[2:]) for name, values in seconds.items()}
    return {
        "ranks": runtime.ranks,
        "threads_a_rank": runtime.threads,
        "against": arguments.against,
        "float32_step_s": found["float32"].tolist(),
        "against_step_s": found[arguments.against].tolist(),
        "ratio": (found[arguments.against] / found["float32"]).tolist(),
    }


def show(figures: dict[str, Any]) -> str:
    """The figures as a table: median (lowest to highest) over repetitions."""
    values = {key: np.array(value) for key, value in figures.items() if isinstance(value, list)}
    return table(
        [
            ("ranks", f"{figures['ranks']}, {figures['threads_a_rank']} thread(s) each"),
            ("local step in float32, s", spread(values["float32_step_s"])),
            (f"local step in {figures['against']}, s", spread(values["against_step_s"])),
            ("ratio to float32", spread(values["ratio"], 3)),
        ]
    )

"""`python -m ist_hpc.plan`: what a run will need, before a cluster is asked; no MPI, no data.

Memory of a rank, bytes of a round and operations of a step, under independent subnet training and,
beside it, under local SGD and data parallel training. `counts` and `memory` say how they are
counted.
"""

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ist_hpc.common.commandline import Parser, add_configuration, add_version, given_path
from ist_hpc.common.errors import EXIT_BAD_INPUT, InputError
from ist_hpc.common.outputs import complain
from ist_hpc.config import loading
from ist_hpc.config.keys import Config, MlpConfig
from ist_hpc.cost import counts
from ist_hpc.cost import memory as cost_memory
from ist_hpc.cost.limits import BASE_BYTES
from ist_hpc.cost.table import table
from ist_hpc.data.shard_meta import META_FILE, Meta, load_meta
from ist_hpc.exchange.placement import TensorSpec
from ist_hpc.runtime.ending import run
from ist_hpc.studies import figure2
from ist_hpc.studies.plots import pictures

_PROGRAM = "python -m ist_hpc.plan"
_EPILOG = f"""\
examples:
  {_PROGRAM} --config configs/speech2.yaml --ranks 8
  {_PROGRAM} --config configs/speech2.yaml --ranks 64 --set optimizer.kind=adam
  {_PROGRAM} --ranks 4 --set model.inputs=4096 model.outputs=35 "model.hidden=[8192,8192]"
      a network whose data are not on this machine
  {_PROGRAM} --config configs/speech2.yaml --ranks 8 --json | jq .bytes_a_round.ist
  {_PROGRAM} --config configs/amazon670k.yaml --ranks 8 --memory-gb 16
      whether a rank of 16 GB can have it, and from how many ranks on
  {_PROGRAM} --figure2 --output figure2.png
      the example of the paper's figure 2, as it counts and as this program does

The exact bytes are those that a run of the same seed writes to its metrics.jsonl as bytes_received.
Memory comes on top of what Python, PyTorch and MPI take themselves. Without --config: the
quickstart. `python -m ist_hpc.train --help` lists the keys that --set takes.
"""
_ROUNDS = 10
_MOST_RANKS = 4096  # tried in the search for the fewest that fit


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=_PROGRAM,
        description="Say what a run will need: memory of a rank, bytes of a round, operations of a "
        "step. Starts no MPI and reads no data (of a data set only its meta.json).",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_configuration(parser)
    parser.add_argument("--ranks", type=int, metavar="N", help="ranks of the run")
    parser.add_argument(
        "--rounds",
        type=int,
        metavar="R",
        help=f"exchanges between rounds whose bytes are counted exactly (default {_ROUNDS})",
    )
    parser.add_argument(
        "--memory-gb",
        type=float,
        metavar="GB",
        help="memory a rank may have, in GB (10^9 bytes): say what fits, and from how many ranks",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="exit code 2 if a run would be refused: it does not fit into --memory-gb, or ranks "
        "would be left without shards (data.assign: files)",
    )
    parser.add_argument(
        "--figure2",
        action="store_true",
        help="instead of a run: the paper's figure 2, as a table and, with --output, as a picture",
    )
    parser.add_argument(
        "--output",
        type=given_path,
        metavar="FILE",
        help="of --figure2: .png (or .pdf, .svg); replaced",
    )
    parser.add_argument("--json", action="store_true", help="the same numbers for a program")
    add_version(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = _parser()
    try:
        arguments = parser.parse_args(argv)
        text = _figure2(arguments) if arguments.figure2 else _plan(parser, arguments)
    except InputError as error:
        complain(f"plan: error: {error}")
        return EXIT_BAD_INPUT
    print(text)
    return 0


def _plan(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> str:
    if arguments.ranks is None:
        parser.error("the following arguments are required: --ranks")
    if arguments.output is not None:
        raise InputError("--output is of --figure2; a plan is printed: plan ... > FILE")
    config = loading.load(arguments.config, arguments.set)
    rounds = _ROUNDS if arguments.rounds is None else arguments.rounds
    report = plan(config, arguments.ranks, rounds, arguments.memory_gb)
    if arguments.check:
        _refuse(config, report)
    return json.dumps(report, indent=1) if arguments.json else table(report)


def _refuse(config: Config, report: Mapping[str, Any]) -> None:
    """Raise `InputError` for what the plan says cannot be."""
    algorithm, ranks = config.train.algorithm, report["ranks"]
    if "fits" in report:
        # DDP keeps the weights and gradients that Horovod's data parallel training does.
        fit = report["fits"]["data_parallel" if algorithm == "ddp" else algorithm]
        if not fit["fits"]:
            raise InputError(
                f"{algorithm} on {ranks} ranks does not fit: a rank needs "
                f"{fit['needs_bytes'] / 1e9:.2f} GB and may have "
                f"{report['fits']['memory_bytes'] / 1e9:.2f} GB; take "
                f"{_enough_ranks(algorithm, report)}fewer ranks on a node, or nodes with more "
                "memory"
            )
    path = Path(config.data.path)
    if config.data.assign == "files" and (path / META_FILE).exists():
        count = len(load_meta(path).shards.get("train", ()))
        if count < ranks:
            raise InputError(
                f"{path}: {count} train shards are too few for {ranks} ranks under `data.assign: "
                "files`; take `data.assign: rows`, or prepare the data with more shards"
            )


def _enough_ranks(algorithm: str, report: Mapping[str, Any]) -> str:
    """What more ranks would help, as the beginning of a list; empty if they would not."""
    fewest = report["fits"]["fewest_ranks_ist"]
    if fewest is None:
        return ""
    if algorithm == "ist":
        return f"{fewest} ranks or more, "
    return f"`train.algorithm: ist` on {fewest} ranks or more, "  # a replica is as large on any


def _figure2(arguments: argparse.Namespace) -> str:
    for name in ("config", "ranks", "rounds", "memory_gb", "set"):
        if getattr(arguments, name) not in (None, []):
            option = name.replace("_", "-")
            raise InputError(f"--figure2 is the paper's own example and takes no --{option}")
    output: Path | None = arguments.output
    if output is not None:
        pictures.refuse_format(output)
    report = figure2.figures(figure2_specs())
    if output is not None:
        pictures.save(figure2.draw(report), output)
    return json.dumps(report, indent=1) if arguments.json else figure2.table(report)


def figure2_specs() -> Sequence[TensorSpec]:
    """The partitioned weights of this package's perceptron of the widths of figure 2."""
    from ist_hpc.models import networks

    inputs, *hidden, outputs = figure2.WIDTHS
    return networks.build(MlpConfig(hidden=hidden), inputs, outputs).specs


def plan(config: Config, ranks: int, rounds: int, memory_gb: float | None = None) -> dict[str, Any]:
    """All numbers, for `json.dumps`; bytes, elements and operations, whole or on average.

    With `memory_gb`, which a rank may have, also `fits`. Raises `InputError` if the widths are
    unknown or there are more ranks than units.
    """
    for name, value in (("ranks", ranks), ("rounds", rounds)):
        if value < 1:
            raise InputError(f"--{name} must be at least 1, got {value}")
    if memory_gb is not None and not 0 < memory_gb < math.inf:
        raise InputError(f"--memory-gb must be above 0, as in --memory-gb 16, got {memory_gb}")
    inputs, outputs, meta = _widths(config)
    from ist_hpc.cost import prediction
    from ist_hpc.models import networks

    model = networks.build(config.model, inputs, outputs, prediction.is_sparse(config, meta))
    job = prediction.job_of(config, model, ranks, meta)
    exchanges = counts.exact_bytes(job, rounds)
    memory = {
        "ist": _memory(cost_memory.subnet_memory(job)),
        "local_sgd": _memory(cost_memory.replica_memory(job, averages_gradient=False)),
        "data_parallel": _memory(cost_memory.replica_memory(job, averages_gradient=True)),
    }
    report = {
        "name": config.name,
        "seed": config.seed,
        "ranks": ranks,
        "rounds": rounds,
        "local_steps": config.train.local_steps,
        "batch_size": config.data.batch_size,
        "optimizer": config.optimizer.kind,
        "optimizer_state": config.optimizer.state,
        "model": {
            "kind": config.model.kind,
            "inputs": inputs,
            "hidden": [] if config.model.kind == "resnet" else list(config.model.hidden),
            "outputs": outputs,
            "weights": job.weight_elements,
        },
        "memory": memory,
        "bytes_a_round": {
            "ist": _ist_bytes(job, exchanges),
            "local_sgd": _replica_bytes(job, counts.local_sgd_bytes(job), times=1),
            "data_parallel": _replica_bytes(
                job, counts.data_parallel_bytes(job), config.train.local_steps
            ),
        },
        "flops_a_step": _flops(job),
    }
    if memory_gb is not None:
        most_ranks = min(_MOST_RANKS, *(axis.size for axis in model.axes.values()))
        report["fits"] = _fits(
            round(memory_gb * 1e9),
            {name: values["peak"] + BASE_BYTES for name, values in memory.items()},
            lambda n: _peak(prediction.job_of(config, model, n, meta)) + BASE_BYTES,
            most_ranks,
        )
    return report


def _fits(
    memory_bytes: int,
    needs_bytes: Mapping[str, int],
    needs_of_ranks: Callable[[int], int],
    most_ranks: int,
) -> dict[str, Any]:
    """What fits into the memory of a rank, and the fewest ranks with which IST does."""
    fewest = fewest_ranks(lambda n: needs_of_ranks(n) <= memory_bytes, most_ranks)
    return {
        "memory_bytes": memory_bytes,
        "base_bytes": BASE_BYTES,
        **{
            name: {"needs_bytes": need, "fits": need <= memory_bytes}
            for name, need in needs_bytes.items()
        },
        "fewest_ranks_ist": fewest,
        "most_ranks_tried": most_ranks,
    }


def fewest_ranks(fits: Callable[[int], bool], most_ranks: int) -> int | None:
    """The fewest ranks for which `fits` is true, None if it is for none up to `most_ranks`.

    One rank is tried by itself, as it exchanges nothing. From two on what fits once is taken to
    fit with more ranks, too: the search doubles, then halves.
    """
    if fits(1):
        return 1
    too_few, enough = 1, 2
    while enough < most_ranks and not fits(enough):
        too_few, enough = enough, 2 * enough
    enough = min(enough, most_ranks)
    if enough <= too_few or not fits(enough):
        return None
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if fits(middle):
            enough = middle
        else:
            too_few = middle
    return enough


def _widths(config: Config) -> tuple[int, int, Meta | None]:
    """(inputs, outputs, the data's description if it is there and has these widths)."""
    path = Path(config.data.path)
    meta = load_meta(path) if (path / META_FILE).exists() else None
    inputs, outputs = config.model.inputs, config.model.outputs
    if meta is not None:
        found = (meta.features, meta.outputs)
        inputs, outputs = inputs or found[0], outputs or found[1]
        if (inputs, outputs) != found:
            meta = None  # a plan for other data than those that happen to be here
    missing = [
        f"model.{name}=..."
        for name, value in (("inputs", inputs), ("outputs", outputs))
        if not value
    ]
    if inputs is None or outputs is None:
        raise InputError(
            f"the widths of the network are not known: there is no {path / META_FILE} to take them "
            f"from; add --set {' '.join(missing)}, or correct `data.path`"
        )
    return inputs, outputs, meta


def _peak(job: counts.Job) -> int:
    return cost_memory.subnet_memory(job).peak


def _memory(memory: cost_memory.Memory) -> dict[str, Any]:
    phases = {
        phase: {**items, "total": memory.total(phase)} for phase, items in memory.phases.items()
    }
    return {"peak": memory.peak, "peak_phase": memory.peak_phase, "phases": phases}


def _ist_bytes(job: counts.Job, exchanges: Sequence[counts.ExchangeBytes]) -> dict[str, Any]:
    start, *between = exchanges
    received = [int(value) for exchange in between for value in exchange.received]
    totals = [exchange.total for exchange in between]
    return {
        "expected_a_rank": counts.expected_bytes(job.exchanged, job.ranks),
        "exact_a_rank": _spread(received),
        "exact_all_ranks": _spread(totals),
        "averaging_a_rank": counts.averaging_bytes(job),
        "all_ranks": sum(totals) / len(totals) + job.ranks * counts.averaging_bytes(job),
        "through_server": counts.subnets_through_server_bytes(job),
        "start_all_ranks": start.total,
        "evaluation_a_rank": counts.expected_bytes(job.weights, job.ranks, at_home=True),
        "checkpoint_a_rank": counts.expected_bytes(job.exchanged, job.ranks, at_home=True),
        "exchanges": [
            {
                "to_round": exchange.round_index,
                "sent": exchange.sent.tolist(),
                "received": exchange.received.tolist(),
            }
            for exchange in exchanges
        ],
    }


def _replica_bytes(job: counts.Job, received: float, times: int) -> dict[str, float]:
    """Of an algorithm whose ranks have the whole model and bring it together `times` a round."""
    return {
        "expected_a_rank": received,
        "all_ranks": job.ranks * received,
        "through_server": times * counts.wholes_through_server_bytes(job),
    }


def _spread(values: Sequence[int]) -> dict[str, float]:
    return {"mean": sum(values) / len(values), "min": min(values), "max": max(values)}


def _flops(job: counts.Job) -> dict[str, dict[str, int]]:
    subnets = [
        counts.step_flops(job.layers, job.batch_size, job.ranks, rank, job.row_entries)
        for rank in range(job.ranks)
    ]
    whole = counts.step_flops(job.layers, job.batch_size, ranks=1, row_entries=job.row_entries)
    replicas = {"a_rank": whole, "all_ranks": whole * job.ranks}
    return {
        "ist": {"a_rank": max(subnets), "all_ranks": sum(subnets)},
        "local_sgd": replicas,
        "data_parallel": replicas,
    }


if __name__ == "__main__":
    run("plan", main)

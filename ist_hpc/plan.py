"""`python -m ist_hpc.plan`: what a run will need, before a cluster is asked; no MPI, no data.

Memory of a rank, bytes of a round and operations of a step, under independent subnet training and,
beside it, under local SGD and data parallel training. `ist_hpc.cost` says how they are counted.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ist_hpc import __version__, cost
from ist_hpc import config as configuration
from ist_hpc.commandline import Parser
from ist_hpc.config import Config
from ist_hpc.errors import EXIT_BAD_INPUT, InputError
from ist_hpc.shard_meta import META_FILE, Meta, load_meta

if TYPE_CHECKING:
    from ist_hpc.models.base import Model

_PROGRAM = "python -m ist_hpc.plan"
_EPILOG = f"""\
examples:
  {_PROGRAM} --config configs/speech2.yaml --ranks 8
  {_PROGRAM} --config configs/speech2.yaml --ranks 64 --set optimizer.kind=adam
  {_PROGRAM} --ranks 4 --set model.inputs=4096 model.outputs=35 model.hidden=[8192,8192]
      a network whose data are not on this machine
  {_PROGRAM} --config configs/speech2.yaml --ranks 8 --json | jq .bytes_a_round.ist

The exact bytes are those that a run of the same seed writes to its metrics.jsonl as bytes_received.
Memory comes on top of what Python, PyTorch and MPI take themselves. Without --config: the
quickstart. `python -m ist_hpc.train --help` lists the keys that --set takes.
"""
_ITEMS = {
    "weights": "weights",
    "slots": "optimiser slots",
    "gradient": "gradient",
    "update": "temporaries of the update",
    "activations": "activations (estimate)",
    "doubled": "exchange: new beside old",
    "buffers": "exchange: buffers (kept)",
    "home_copies": "home blocks of a visit",
    "calibration": "calibration rows (kept)",
    "window": "data window (at most)",
}
_ALGORITHMS = {"ist": "IST", "local_sgd": "local SGD", "data_parallel": "data parallel"}


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=_PROGRAM,
        description="Say what a run will need: memory of a rank, bytes of a round, operations of a "
        "step. Starts no MPI and reads no data (of a data set only its meta.json).",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="a YAML configuration")
    parser.add_argument("--ranks", type=int, required=True, metavar="N", help="ranks of the run")
    parser.add_argument(
        "--rounds",
        type=int,
        default=10,
        metavar="R",
        help="exchanges between rounds whose bytes are counted exactly (default 10)",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="values that replace the file's",
    )
    parser.add_argument("--json", action="store_true", help="the same numbers for a program")
    parser.add_argument("--version", action="version", version=f"ist_hpc {__version__}")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        arguments = _parser().parse_args(argv)
        config = configuration.load(arguments.config, arguments.set)
        report = plan(config, arguments.ranks, arguments.rounds)
    except InputError as error:
        print(f"plan: error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    print(json.dumps(report, indent=1) if arguments.json else table(report))
    return 0


def plan(config: Config, ranks: int, rounds: int) -> dict[str, Any]:
    """All numbers, for `json.dumps`; bytes, elements and operations, whole or on average.

    Raises `InputError` if the widths are unknown or there are more ranks than units.
    """
    for name, value in (("ranks", ranks), ("rounds", rounds)):
        if value < 1:
            raise InputError(f"--{name} must be at least 1, got {value}")
    inputs, outputs, meta = _widths(config)
    from ist_hpc import models  # with them comes torch, which --help does not wait for

    model = models.build(config.model, inputs, outputs)
    job = _job(config, model, ranks, meta)
    exchanges = cost.exact_bytes(job, rounds)
    memory = {
        "ist": _memory(cost.subnet_memory(job)),
        "local_sgd": _memory(cost.replica_memory(job)),
        "data_parallel": _memory(cost.replica_memory(job)),
    }
    return {
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
            "hidden": list(config.model.hidden),
            "outputs": outputs,
            "weights": job.weight_elements,
        },
        "memory": memory,
        "bytes_a_round": {
            "ist": _ist_bytes(job, exchanges),
            "local_sgd": {"expected_a_rank": cost.local_sgd_bytes(job)},
            "data_parallel": {"expected_a_rank": cost.data_parallel_bytes(job)},
        },
        "flops_a_step": _flops(job),
    }


def _widths(config: Config) -> tuple[int, int, Meta | None]:
    """(inputs, outputs, the data's description if it is there and has these widths)."""
    path = Path(config.data.path)
    meta = load_meta(path) if (path / META_FILE).exists() else None
    inputs, outputs = config.model.inputs, config.model.outputs
    if meta is not None:
        found = (_features(meta), len(meta.classes))
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


def _features(meta: Meta) -> int:
    return math.prod(meta.feature_shape)


def _job(config: Config, model: "Model", ranks: int, meta: Meta | None) -> cost.Job:
    from ist_hpc import optimizer

    rule = optimizer.build(config.optimizer)
    shared_slots = rule.shared_slot_specs(model.shared)
    calibration_rows, window = config.evaluate.calibration_rows, config.data.window_mib << 20
    if meta is not None:
        rows = sum(shard.rows for shard in meta.shards.get("train", ()))
        calibration_rows = min(calibration_rows, rows)
        window = min(window, -(-rows // ranks) * (4 * _features(meta) + 8))
    return cost.Job(
        weights=model.specs,
        slots=rule.slot_specs(model.specs),
        axes=model.axes,
        ranks=ranks,
        seed=config.seed,
        carry=config.optimizer.state == "carry",
        shared_elements=sum(math.prod(spec.shape) for spec in model.shared),
        shared_slot_elements=sum(math.prod(spec.shape) for spec in shared_slots),
        replica_slots=len(rule.slot_names(has_two_axes=False)),
        scratch=cost.UPDATE_SCRATCH[config.optimizer.kind],
        batch_size=config.data.batch_size,
        local_steps=config.train.local_steps,
        calibration_rows=calibration_rows,
        evaluation_rows=config.evaluate.batch_rows,
        window_bytes=window,
        buffer_bytes=config.exchange.buffer_mib << 20,
    )


def _memory(memory: cost.Memory) -> dict[str, Any]:
    phases = {
        phase: {**items, "total": memory.total(phase)} for phase, items in memory.phases.items()
    }
    return {"peak": memory.peak, "peak_phase": memory.peak_phase, "phases": phases}


def _ist_bytes(job: cost.Job, exchanges: Sequence[cost.ExchangeBytes]) -> dict[str, Any]:
    start, *between = exchanges
    received = [int(value) for exchange in between for value in exchange.received]
    totals = [exchange.total for exchange in between]
    return {
        "expected_a_rank": cost.expected_bytes(job.exchanged, job.ranks),
        "exact_a_rank": _spread(received),
        "exact_all_ranks": _spread(totals),
        "averaging_a_rank": cost.averaging_bytes(job),
        "start_all_ranks": start.total,
        "evaluation_a_rank": cost.expected_bytes(job.weights, job.ranks, at_home=True),
        "checkpoint_a_rank": cost.expected_bytes(job.exchanged, job.ranks, at_home=True),
        "exchanges": [
            {
                "to_round": exchange.round_index,
                "sent": exchange.sent.tolist(),
                "received": exchange.received.tolist(),
            }
            for exchange in exchanges
        ],
    }


def _spread(values: Sequence[int]) -> dict[str, float]:
    return {"mean": sum(values) / len(values), "min": min(values), "max": max(values)}


def _flops(job: cost.Job) -> dict[str, dict[str, int]]:
    subnets = [
        cost.step_flops(job.weights, job.batch_size, job.ranks, rank) for rank in range(job.ranks)
    ]
    whole = cost.step_flops(job.weights, job.batch_size, ranks=1)
    replicas = {"a_rank": whole, "all_ranks": whole * job.ranks}
    return {
        "ist": {"a_rank": max(subnets), "all_ranks": sum(subnets)},
        "local_sgd": replicas,
        "data_parallel": replicas,
    }


# What people read.


def table(report: Mapping[str, Any]) -> str:
    """The report as text."""
    return "\n".join([*_heading(report), "", *_comparison(report), "", *_memory_table(report)])


def _heading(report: Mapping[str, Any]) -> list[str]:
    model = report["model"]
    widths = "-".join(str(w) for w in (model["inputs"], *model["hidden"], model["outputs"]))
    return [
        f"{report['name']}: {model['kind']} {widths}, {model['weights']:,} weights "
        f"({_mib(4 * model['weights'])} MiB), {report['optimizer']}, state: "
        f"{report['optimizer_state']}",
        f"{report['ranks']} rank(s), batches of {report['batch_size']} rows a rank, "
        f"{report['local_steps']} local steps a round",
    ]


def _comparison(report: Mapping[str, Any]) -> list[str]:
    """One column an algorithm."""
    memory, traffic, flops = report["memory"], report["bytes_a_round"], report["flops_a_step"]
    ist, rounds = traffic["ist"], report["rounds"]

    def of_all(values: Mapping[str, Any], *keys: str) -> list[str]:
        cells = []
        for algorithm in _ALGORITHMS:
            value = values[algorithm]
            for key in keys:
                value = value[key]
            cells.append(_mib(value))
        return cells

    def of_ist(value: float) -> list[str]:
        return [_mib(value), "", ""]

    exact = ist["exact_a_rank"]
    rows: list[tuple[str, list[str]]] = [
        ("", list(_ALGORITHMS.values())),
        ("memory of a rank in a step, MiB", of_all(memory, "phases", "training", "total")),
        ("memory of a rank at its peak, MiB", of_ist(memory["ist"]["peak"])),
        ("received by a rank a round, MiB", of_all(traffic, "expected_a_rank")),
        (f"  exactly, rounds 1 to {rounds}: mean", of_ist(exact["mean"])),
        ("  least, of any rank and round", of_ist(exact["min"])),
        ("  most, of any rank and round", of_ist(exact["max"])),
    ]
    if ist["averaging_a_rank"]:
        rows.append(("  and to average shared weights", of_ist(ist["averaging_a_rank"])))
    rows += [
        ("  and in an evaluation", of_ist(ist["evaluation_a_rank"])),
        ("  or in a checkpoint", of_ist(ist["checkpoint_a_rank"])),
        ("GFLOP of a rank a step", [_giga(flops[name]["a_rank"]) for name in _ALGORITHMS]),
        ("GFLOP of all ranks a step", [_giga(flops[name]["all_ranks"]) for name in _ALGORITHMS]),
    ]
    return _aligned(rows)


def _memory_table(report: Mapping[str, Any]) -> list[str]:
    """One column a phase of independent subnet training."""
    memory = report["memory"]["ist"]
    phases = memory["phases"]
    rows: list[tuple[str, list[str]]] = [("memory of a rank (IST), MiB", list(phases))]
    for item, label in _ITEMS.items():
        values = [items.get(item, 0) for items in phases.values()]
        if any(values):
            rows.append((label, [_mib(value) if value else "" for value in values]))
    rows.append(("total", [_mib(items["total"]) for items in phases.values()]))
    lines = _aligned(rows)
    peak = f"peak: {_mib(memory['peak'])} MiB in `{memory['peak_phase']}`"
    return [*lines, f"{peak}, beside Python, PyTorch and MPI themselves"]


def _aligned(rows: Sequence[tuple[str, list[str]]]) -> list[str]:
    left = max(len(label) for label, _ in rows)
    widths = [max(len(cells[i]) for _, cells in rows) for i in range(len(rows[0][1]))]
    return [
        "  ".join(
            [label.ljust(left), *(c.rjust(w) for c, w in zip(cells, widths, strict=True))]
        ).rstrip()
        for label, cells in rows
    ]


def _mib(value: float) -> str:
    return _short(value / 2**20)


def _giga(value: float) -> str:
    return _short(value / 1e9)


def _short(value: float) -> str:
    """Three digits at least: 0.0123, 1.23, 12.3, 1,234."""
    if value == 0:
        return "0"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 4
    return f"{value:,.{digits}f}"


if __name__ == "__main__":
    sys.exit(main())

"""`python -m ist_hpc.plan`: what a run will need, before it gets a cluster; no MPI, no data.

Memory of a rank, bytes of a round and operations of a step, for independent subnet training and, in
comparison, for local SGD and data parallel training. `counts` and `memory` say how they are
counted.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from ist_hpc.common.commandline import Parser, add_configuration, add_version, given_path
from ist_hpc.common.errors import EXIT_BAD_INPUT, InputError
from ist_hpc.common.standard_streams import complain
from ist_hpc.config import loading
from ist_hpc.cost.fits import refuse_unfit
from ist_hpc.cost.report import plan_report
from ist_hpc.cost.table import table
from ist_hpc.runtime.ending import run
from ist_hpc.studies import figure2
from ist_hpc.studies.plots import pictures

_PROGRAM = "python -m ist_hpc.plan"
_DESCRIPTION = """\
Say what a run will need: memory of a rank, bytes of a round, operations of a step. Starts no MPI
and reads no data (of a data set only its meta.json).
"""
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


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=_PROGRAM,
        description=_DESCRIPTION,
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
    report = plan_report(config, arguments.ranks, rounds, arguments.memory_gb)
    if arguments.check:
        refuse_unfit(config, report)
    return json.dumps(report, indent=1) if arguments.json else table(report)


def _figure2(arguments: argparse.Namespace) -> str:
    for name in ("config", "ranks", "rounds", "memory_gb", "set"):
        if getattr(arguments, name) not in (None, []):
            option = name.replace("_", "-")
            raise InputError(f"--figure2 is the paper's own example and takes no --{option}")
    output: Path | None = arguments.output
    if output is not None:
        pictures.refuse_format(output)
    report = figure2.figures(figure2.own_specs())
    if output is not None:
        pictures.save(figure2.draw(report), output)
    return json.dumps(report, indent=1) if arguments.json else figure2.table(report)


if __name__ == "__main__":
    run("plan", main)

"""`python -m ist_hpc.bench`: a subcommand a benchmark."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import Any

from ist_hpc.common.commandline import Parser
from ist_hpc.common.errors import EXIT_BAD_INPUT, InputError
from ist_hpc.common.mpi_environment import rank_of_launcher
from ist_hpc.common.standard_streams import complain
from ist_hpc.runtime.ending import run
from ist_hpc.runtime.launch import Runtime, launch
from ist_hpc.studies import convergence, scaling

_STUDIES: dict[str, ModuleType] = {"convergence": convergence, "scaling": scaling}
"""They start the ranks of their runs themselves, so their own process must not start MPI."""

_EXAMPLES = """\
examples:
  mpirun -np 4 python -m ist_hpc.bench exchange --config configs/speech2.yaml
  mpirun -np 4 python -m ist_hpc.bench step --config configs/speech2.yaml
  mpirun -np 4 python -m ist_hpc.bench products --config configs/amazon670k.yaml
  mpirun -np 4 python -m ist_hpc.bench precision --config configs/amazon670k.yaml
  bench/hosts.sh up 4 1gbit && bench/hosts.sh mpirun 4 python -m ist_hpc.bench exchange ...
  python -m ist_hpc.bench scaling --config configs/speech2.yaml --hosts 1gbit --ranks 2 4 8 \\
      --methods sgd ist:20 ist:60 --output runs/scaling
  python -m ist_hpc.bench convergence --config configs/speech2.yaml --ranks 4 --seeds 0 1 2 \\
      --methods ist:20 ist:60 --output runs/convergence --seconds-from runs/scaling/scaling.csv
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse arguments, run one benchmark, under MPI unless it is a study, and print its figures."""
    try:
        words = sys.argv[1:] if argv is None else argv
        if words and words[0] in _STUDIES:  # loads no torch: it lives for hours beside the ranks
            arguments = _arguments(words, _STUDIES)
            return _study(_STUDIES[arguments.benchmark], arguments)
        benchmarks = _of_ranks()
        arguments = _arguments(words, benchmarks | _STUDIES)
    except InputError as error:
        if rank_of_launcher() == 0:
            complain(f"bench: error: {error}")
        return EXIT_BAD_INPUT
    module = benchmarks[arguments.benchmark]
    return launch("bench", lambda: arguments, partial(_run, module))


def _of_ranks() -> dict[str, ModuleType]:
    """The benchmarks that are started under MPI."""
    from ist_hpc.bench import exchange, plan, precision, products, save, step

    return {
        "exchange": exchange,
        "plan": plan,
        "precision": precision,
        "products": products,
        "save": save,
        "step": step,
    }


def _arguments(argv: Sequence[str], modules: Mapping[str, ModuleType]) -> argparse.Namespace:
    parser = Parser(prog="python -m ist_hpc.bench", description=__doc__, epilog=_EXAMPLES)
    commands = parser.add_subparsers(dest="benchmark", required=True)
    for name, module in sorted(modules.items()):
        command = commands.add_parser(name, help=module.HELP, description=module.__doc__)
        module.add_arguments(command)
        command.add_argument("--json", action="store_true", help="print every repetition as JSON")
    return parser.parse_args(argv)


def _run(module: ModuleType, runtime: Runtime, arguments: argparse.Namespace) -> int:
    figures = module.run(runtime.with_threads(0), arguments)
    if runtime.rank == 0:
        _print(module, figures, arguments.json)
    return 0


def _study(module: ModuleType, arguments: argparse.Namespace) -> int:
    try:
        figures = module.run(arguments)
    except KeyboardInterrupt as stopped:
        reason = str(stopped) or "interrupted"
        complain(f"bench: stopped: {reason}; the same command goes on")
        return 130
    _print(module, figures, arguments.json)
    if figures["failed"]:
        what = f"bench: {len(figures['failed'])} run(s) failed; the same command tries them again"
        complain(what)
        return 1
    return 0


def _print(module: ModuleType, figures: dict[str, Any], as_json: bool) -> None:
    print(json.dumps(figures) if as_json else module.show(figures))


if __name__ == "__main__":
    run("bench", main)

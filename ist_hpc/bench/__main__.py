"""`python -m ist_hpc.bench`: a subcommand a benchmark."""

import argparse
import json
import sys
from collections.abc import Sequence
from types import ModuleType

from ist_hpc.bench import exchange, plan, products, step
from ist_hpc.commandline import Parser
from ist_hpc.runtime import Runtime, launch

_BENCHMARKS: dict[str, ModuleType] = {
    "exchange": exchange,
    "plan": plan,
    "products": products,
    "step": step,
}
_EXAMPLES = """\
examples:
  mpirun -np 4 python -m ist_hpc.bench exchange --config configs/speech2.yaml
  mpirun -np 4 python -m ist_hpc.bench step --config configs/speech2.yaml
  mpirun -np 4 python -m ist_hpc.bench products --config configs/amazon670k.yaml
  bench/hosts.sh up 4 1gbit && bench/hosts.sh mpirun 4 python -m ist_hpc.bench exchange ...
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse arguments, start MPI, run one benchmark and print its figures."""
    return launch("bench", lambda: _arguments(argv), _run)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m ist_hpc.bench", description=__doc__, epilog=_EXAMPLES)
    commands = parser.add_subparsers(dest="benchmark", required=True)
    for name, module in _BENCHMARKS.items():
        command = commands.add_parser(name, help=module.HELP, description=module.__doc__)
        module.add_arguments(command)
        command.add_argument("--json", action="store_true", help="print every repetition as JSON")
    return parser.parse_args(argv)


def _run(runtime: Runtime, arguments: argparse.Namespace) -> int:
    module = _BENCHMARKS[arguments.benchmark]
    figures = module.run(runtime, arguments)
    if runtime.rank == 0:
        print(json.dumps(figures) if arguments.json else module.show(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())

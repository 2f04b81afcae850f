"""The command line of `python -m ist_hpc.prepare`."""

import argparse
import importlib
import shlex
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from ist_hpc.commandline import Parser
from ist_hpc.errors import EXIT_BAD_INPUT, InputError
from ist_hpc.prepare import DATASETS

_PROGRAM = "python -m ist_hpc.prepare"
_DESCRIPTION = """\
Convert a published data set into the folder of HDF5 shards that training reads
(docs/data-format.md). The folder appears when it is complete, checked and on disk, or not at all.
"""
_EPILOG = f"""\
examples:
  {_PROGRAM} digits --output data/digits
      handwritten digits that come with scikit-learn: a second, no download
  {_PROGRAM} speech --input speech_commands_v0.02 --output data/speech
      Google Speech Commands, as in the paper, on every core
  {_PROGRAM} xmc --train train.txt --test test.txt --output data/delicious
      text of the Extreme Classification Repository: Delicious, Amazon-670K and others
  {_PROGRAM} synthetic --like amazon670k --output data/amazon670k-like
      made data of the shape of a published data set, to try things at true size

`{_PROGRAM} speech --help` explains a data set and its options.
"""


def _parser() -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog=_PROGRAM, description=_DESCRIPTION, epilog=_EPILOG, formatter_class=plain)
    commands = parser.add_subparsers(title="data sets", metavar="NAME", required=True)
    for name, module_name in DATASETS.items():
        module = importlib.import_module(module_name)
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__,
            epilog=module.EXAMPLES,
            formatter_class=plain,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def _terminate(signal_number: int, frame: object) -> NoReturn:
    # As an exception, so that a cancelled batch job leaves no partial folder behind.
    sys.exit(128 + signal_number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        args = _parser().parse_args(arguments)
        args.command_line = shlex.join(["python", "-m", "ist_hpc.prepare", *arguments])
        args.run(args)
    except InputError as error:
        print(f"prepare: error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("prepare: interrupted; nothing was written", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(main())

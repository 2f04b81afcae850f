"""The command line of `python -m ist_hpc.prepare`."""

import argparse
import importlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ist_hpc.common.commandline import Parser
from ist_hpc.common.disk.names import command_line, printable
from ist_hpc.common.errors import EXIT_BAD_INPUT, EXIT_GO_ON, InputError
from ist_hpc.common.mpi_environment import rank_of_launcher, variable_of_a_rank
from ist_hpc.common.standard_streams import complain
from ist_hpc.data.writing.target import AlreadyMadeError
from ist_hpc.prepare import DATASETS
from ist_hpc.runtime.ending import run
from ist_hpc.runtime.stopping import end_request

_PROGRAM = "python -m ist_hpc.prepare"
_DESCRIPTION = """\
Convert a published data set into the folder of HDF5 shards that training reads
(docs/data-format.md). The folder appears when it is complete, checked and on disk, or not at all.
Of several that are started for one folder one converts, and the others wait for it and take it.
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


_asked: list[int] = []
"""The signals that asked to stop waiting, which can be continued later."""


class _StoppedWaitingError(Exception):
    """A signal came while this process waited for another."""


def _listen() -> None:
    """Handle signals, so that a cancelled batch job leaves no partial folder behind."""
    end_request.listen()
    signal.signal(signal.SIGUSR1, lambda number, frame: _asked.append(number))


def _while_waiting(waited_s: float) -> None:
    end_request.look()
    if _asked:
        raise _StoppedWaitingError


def _start_s() -> float:
    """When this process started, as time.time(); for ranks, when their launcher started.

    Ranks started together want the same data, even if one is done before another begins.
    """
    pid = os.getppid() if variable_of_a_rank() else os.getpid()
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        since_boot_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot_s)
    except (OSError, ValueError, IndexError):
        return time.time()


_RANK_0_SPEAKS_S = 3.0
"""Seconds in which a launcher ends the other ranks after rank 0 has printed why it ends."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    if arguments is None:
        _listen()
    since_s = _start_s() if arguments is None else time.time()
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        args = _parser().parse_args(arguments)
        args.command_line = command_line(["python", "-m", "ist_hpc.prepare", *arguments])
        args.since_s, args.waiting = since_s, _while_waiting
        args.run(args)
    except AlreadyMadeError as made:
        if rank_of_launcher() == 0:
            print(f"prepare: nothing to do: {printable(str(made))}")
    except _StoppedWaitingError:
        if rank_of_launcher() == 0:
            complain("prepare: stopped waiting: SIGUSR1; the same command goes on")
        return EXIT_GO_ON
    except InputError as error:
        if rank_of_launcher() > 0:  # rank 0's line suffices, unless it finds no error
            time.sleep(_RANK_0_SPEAKS_S)
        complain(f"prepare: error: {error}")
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        complain("prepare: interrupted; nothing was written")
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    run("prepare", main)

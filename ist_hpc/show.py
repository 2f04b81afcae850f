"""`python -m ist_hpc.show`: what is in a checkpoint, whether it is whole, and its plain export.

No MPI is started: one process reads the checkpoint a block of rows at a time. Only `--export` holds
the whole model.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ist_hpc.common.commandline import Parser, add_version, given_path
from ist_hpc.common.disk.files import refuse_target
from ist_hpc.common.errors import EXIT_BAD_INPUT, InputError
from ist_hpc.common.standard_streams import complain, only_printing
from ist_hpc.runtime.ending import run

if TYPE_CHECKING:
    from ist_hpc.checkpoint.folder import Checkpoint

_PROGRAM = "python -m ist_hpc.show"
_DESCRIPTION = """\
Show how a run stands, or what is in a checkpoint. Of a run's folder: why it stopped or that it goes
on, its progress, rates, metrics, checkpoints and starts. Of a checkpoint (its folder, or the
checkpoint.h5 in it): what it is, every tensor with its shape and statistics, its files and its
configuration. Needs no MPI, and memory for a few MiB of rows, whatever the model.
"""
_EPILOG = f"""\
examples:
  {_PROGRAM} runs/a                                     how the run stands
  {_PROGRAM} runs/a/checkpoints/round-00000040          what is in a checkpoint
  {_PROGRAM} runs/a --verify                            its newest: is every byte as it was?
  {_PROGRAM} runs/a --export model.pt                   for PyTorch, without this package

exit code 2, and one line that names the file, for a checkpoint that is damaged or not there.
docs/checkpoint-format.md describes the files; h5ls, h5dump and h5py read them, too.
"""


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog=_PROGRAM,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint", type=given_path, metavar="CKPT", help="checkpoint or run folder"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="check the SHA-256 of every file, read every tensor, refuse NaN and infinity; of a "
        "run's folder the newest checkpoint",
    )
    parser.add_argument(
        "--export",
        type=given_path,
        metavar="FILE",
        help="write a PyTorch state dict (torch.save) that loads without this package, and print "
        "the Python that loads it; the one command that holds the whole model in memory",
    )
    parser.add_argument("--overwrite", action="store_true", help="let --export replace FILE")
    add_version(parser)
    arguments = parser.parse_args(argv)
    if arguments.overwrite and not arguments.export:
        raise InputError("--overwrite is of --export FILE, which is not given")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Parse arguments and do what they ask. Returns the exit code."""
    try:
        _show(_arguments(argv))
    except InputError as error:
        sys.stdout.flush()
        complain(f"show: error: {error}")
        return EXIT_BAD_INPUT
    return 0


def _show(arguments: argparse.Namespace) -> None:
    # Imported here, as `--help` needs neither HDF5 nor torch.
    from ist_hpc.checkpoint.description import describe
    from ist_hpc.checkpoint.folder import Checkpoint, resolve
    from ist_hpc.checkpoint.run_facts import describe_run, is_run
    from ist_hpc.checkpoint.verification import verify

    only_looks = not arguments.verify and not arguments.export
    if only_looks and is_run(arguments.checkpoint):
        _print_all(describe_run(arguments.checkpoint))
        return
    if arguments.export:
        refuse_target(arguments.export, "--export", arguments.overwrite)
    checkpoint = Checkpoint(resolve(arguments.checkpoint))
    if arguments.verify:
        for line in verify(checkpoint):
            print(line)
    if arguments.export:
        _export(checkpoint, arguments.export, arguments.overwrite)
    if only_looks:
        _print_all(describe(checkpoint))


def _print_all(lines: Iterable[str]) -> None:
    with only_printing():
        print("\n".join(lines))


def _export(checkpoint: "Checkpoint", target: Path, overwrite: bool) -> None:
    from ist_hpc.checkpoint.export import Export  # and torch, which takes seconds to load

    export = Export(checkpoint)
    print(f"export: the whole model is held in memory, {export.mib:.1f} MiB", flush=True)
    export.write(target, overwrite)
    print(f"export: wrote {target}; this loads it, with nothing but PyTorch:\n")
    print(export.loading_source(target))


if __name__ == "__main__":
    run("show", main)

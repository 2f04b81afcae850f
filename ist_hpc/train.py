"""`python -m ist_hpc.train`: train a network by independent subnets, or by a baseline."""

import argparse
import json
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ist_hpc.common.commandline import Parser, add_configuration, add_version, given_path
from ist_hpc.common.errors import EXIT_GO_ON, InputError
from ist_hpc.common.names import quoted
from ist_hpc.config import loading
from ist_hpc.config.keys import Config, is_folder_name
from ist_hpc.config.loading import QUICKSTART
from ist_hpc.runtime.ending import run
from ist_hpc.runtime.launch import (
    AgreedInputError,
    AgreedRunError,
    Runtime,
    launch,
    log,
    on_root,
    say,
)
from ist_hpc.runtime.stopping import StopRequest, name_of

if TYPE_CHECKING:
    from ist_hpc.runtime.run_folder import RunFolder
    from ist_hpc.training.trainer import Trainer

_EXAMPLES = """\
examples:
  python -m ist_hpc.train                                   the quickstart, on one rank
  horovodrun -np 4 python -m ist_hpc.train                  the quickstart, on four
  mpirun -np 4 python -m ist_hpc.train --config configs/speech2.yaml --name speech2-a
  srun --mpi=pmix python -m ist_hpc.train --config configs/speech2.yaml --name a --resume
  python -m ist_hpc.train --set train.epochs=3 "model.hidden=[512,512]" optimizer.lr=0.05

keys of a configuration (and of --set):
"""


_QUICKSTART_S = 300.0
"""That another process may need for the quickstart's data; the start as a whole has 15 minutes."""


class _StoppedWaitingError(Exception):
    """A signal came while another process was waited for."""


class _PrintSchema(argparse.Action):
    """Prints as --version does: at once, and on one rank."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        parser._print_message(json.dumps(loading.schema(), indent=2) + "\n", sys.stdout)
        parser.exit()


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m ist_hpc.train",
        description="Train a network by independent subnets (or, for comparison, by data parallel "
        "training or local SGD: train.algorithm), on as many ranks as the launcher starts. With "
        "no configuration: a quickstart on scikit-learn's handwritten digits.",
        epilog=_EXAMPLES + loading.describe_keys(),
    )
    add_configuration(parser)
    parser.add_argument("--name", help="the run folder's name; by default NAME-TIME of the config")
    parser.add_argument(
        "--runs", type=given_path, default=Path("runs"), help="where run folders are"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run of this --name from its newest valid checkpoint, or start it "
        "where nothing was saved yet",
    )
    parser.add_argument(
        "--schema",
        action=_PrintSchema,
        nargs=0,
        help="print the JSON Schema of a configuration, for editors, and end",
    )
    add_version(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse arguments, start MPI, train. Returns the exit code."""
    return launch("train", lambda: _arguments(argv), _train, watched=True)


def _train(runtime: Runtime, arguments: argparse.Namespace) -> int:
    comm = runtime.comm
    # Rank 0 decides for all: files that only some nodes have must not make ranks differ.
    config, prepare_quickstart = on_root(comm, lambda: _configuration(arguments))

    # After the configuration: to load torch takes seconds.
    from ist_hpc.common.names import spoken
    from ist_hpc.runtime.meters import Meter
    from ist_hpc.runtime.run_folder import RunFolder
    from ist_hpc.runtime.watchdog import Watchdog
    from ist_hpc.training.start import start_run

    runtime = runtime.with_threads(config.runtime.threads)
    stop, meter = StopRequest(), Meter()
    stop.listen()
    if prepare_quickstart:
        stopped_by = on_root(comm, lambda: _prepare_quickstart(Path(config.data.path), stop))
        if stopped_by:
            return _say_stopped_early(runtime, stop, stopped_by)
    name = comm.bcast(arguments.name or f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    folder = RunFolder(arguments.runs / name, or_beside=not arguments.name)
    with Watchdog(comm, meter, config.runtime.silence_s, lambda why: _lost(folder, why)):
        try:
            trainer = start_run(
                runtime, config, folder, resume=arguments.resume, stop=stop, meter=meter
            )
            if runtime.rank == 0:
                folder.set_status("running")
            summary = trainer.run()
        except BaseException as error:
            if folder.is_of_this_start():
                _record_failure(folder, runtime, error)
            raise
        if summary is None:
            stop.leave()
            if runtime.rank == 0:
                _say_stopped(folder, trainer)
            comm.Barrier()  # the first to leave would make launchers end the others
            return EXIT_GO_ON
    if runtime.rank == 0:
        folder.set_status("finished")
        saved = summary["checkpoint"]
        for metric, value in summary["test"].items():
            if metric != "loss":
                print(f"test {spoken(metric)}: {value:.4f}")
        if saved:
            print(f"checkpoint:    {saved}")
            print(f"look into it:  python -m ist_hpc.show {quoted(saved)}")
    return 0


def _say_stopped(folder: "RunFolder", trainer: "Trainer") -> None:
    """Say that the run stopped in order."""
    rounds = trainer.progress.round
    saved = f"saved after round {rounds}" if trainer.saved else "before its first round"
    status = f"stopped: {name_of(trainer.stopped_by)}, {saved}"
    folder.set_status(status)
    name = f" --name {folder.path.name}" if folder.or_beside else ""  # else it is given
    say(f"train: {status}; the same command with --resume{name} goes on")


def _say_stopped_early(runtime: Runtime, stop: StopRequest, stopped_by: int) -> int:
    """Say that the run stopped before it was one; the exit code. Collective."""
    stop.leave()
    if runtime.rank == 0:
        say(f"train: stopped: {name_of(stopped_by)}, before there were data; the same goes on")
    runtime.comm.Barrier()
    return EXIT_GO_ON


def _lost(folder: "RunFolder", reason: str) -> None:
    """Say why a run ends in which nothing goes on: the first that finds it, and once a host."""
    is_of_this_start = folder.is_of_this_start()  # and not another's still, or already
    # The first of all may be on the host that is cut off, from which no line comes.
    if not is_of_this_start or folder.first_to_fail(socket.gethostname()):
        say(f"train: failed: {reason}")
    if is_of_this_start and folder.first_to_fail():
        folder.set_status(f"failed: {reason}")


def _record_failure(folder: "RunFolder", runtime: Runtime, error: BaseException) -> None:
    """Write why the run ends. An error of all ranks is written by rank 0."""
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, AgreedInputError | AgreedRunError | KeyboardInterrupt):
        stopped = isinstance(error, KeyboardInterrupt)
        # A rank that fails ends the others by a signal, which is not the reason to keep.
        if runtime.rank == 0 and not (stopped and folder.status().startswith("failed")):
            folder.set_status(f"{'stopped' if stopped else 'failed'}: {reason}")
    else:
        folder.set_status(f"failed: rank {runtime.rank}: {reason}")


def _configuration(arguments: argparse.Namespace) -> tuple[Config, bool]:
    """The configuration, and whether its data are the quickstart's and still to be made."""
    path = arguments.config
    if arguments.resume and not arguments.name:
        raise InputError("--resume goes on with a run that has a name; give its --name")
    if arguments.name and not is_folder_name(arguments.name):
        raise InputError(
            f"--name names a folder in {arguments.runs}/: letters, digits, dots, dashes and "
            f"underscores, a letter or digit first, got {arguments.name!r}; use --runs "
            "for another place"
        )
    written = arguments.runs / (arguments.name or "") / "config.yaml"
    if path is None and arguments.resume and written.is_file():
        path = written
    config = loading.load(path, arguments.set)
    own = loading.load(None).data.path
    is_quickstart = path is None or (path.is_file() and path.samefile(QUICKSTART))
    missing = not Path(config.data.path).exists()
    return config, is_quickstart and missing and config.data.path == own


def _prepare_quickstart(path: Path, stop: StopRequest) -> int:
    """Make the digits, or wait for another process that does; the signal that ended that, or 0."""
    from ist_hpc.data.shard_place import AlreadyMadeError
    from ist_hpc.prepare.digits import prepare_digits

    def waiting(waited_s: float) -> None:
        if stop.number:
            raise _StoppedWaitingError
        if waited_s > _QUICKSTART_S:
            raise InputError(
                f"another process has been making {path} for {waited_s:.0f} s, which takes seconds;"
                " end it, or start again later"
            )

    log.info("making the quickstart's data, %s", path)
    try:
        prepare_digits(path, if_missing=True, waiting=waiting)
    except AlreadyMadeError as made:
        log.info("%s", made)
    except _StoppedWaitingError:
        return stop.number
    return 0


if __name__ == "__main__":
    run("train", main)

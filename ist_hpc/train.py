"""`python -m ist_hpc.train`: train a network by independent subnets, or by a baseline."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ist_hpc.common.commandline import Parser, add_configuration, add_version, given_path
from ist_hpc.common.disk.names import quoted
from ist_hpc.common.errors import EXIT_GO_ON, InputError
from ist_hpc.config import loading
from ist_hpc.config.key_help import describe_keys
from ist_hpc.config.keys import Config, is_folder_name
from ist_hpc.config.loading import QUICKSTART
from ist_hpc.runtime.ending import run
from ist_hpc.runtime.launch import Runtime, launch, on_root, say
from ist_hpc.runtime.stopping import StopRequest, name_of

_DESCRIPTION = """\
Train a network by independent subnets, on as many ranks as the launcher starts; or, to compare, by
data parallel training or local SGD (train.algorithm). Without a configuration: a quickstart on
scikit-learn's handwritten digits.
"""
_EXAMPLES = """\
examples:
  python -m ist_hpc.train                                   the quickstart, on one rank
  horovodrun -np 4 python -m ist_hpc.train                  the quickstart, on four
  mpirun -np 4 python -m ist_hpc.train --config configs/speech2.yaml --name speech2-a
  srun --mpi=pmix python -m ist_hpc.train --config configs/speech2.yaml --name a --resume
  python -m ist_hpc.train --set train.epochs=3 "model.hidden=[512,512]" optimizer.lr=0.05

keys of a configuration (and of --set):
"""


class _PrintSchema(argparse.Action):
    """Prints the schema as --version prints: at once, and on one rank."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        parser._print_message(json.dumps(loading.schema(), indent=2) + "\n", sys.stdout)
        parser.exit()


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m ist_hpc.train",
        description=_DESCRIPTION,
        epilog=_EXAMPLES + describe_keys(),
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
    config, wants_quickstart = on_root(comm, lambda: _configuration(arguments))

    # After the configuration: to load torch takes seconds.
    from ist_hpc.common.disk.names import spoken
    from ist_hpc.runtime.meters import Meter
    from ist_hpc.runtime.run_folder.folder import RunFolder
    from ist_hpc.runtime.run_folder.outcome import record_failure, record_silence, record_stop
    from ist_hpc.runtime.watchdog import Watchdog
    from ist_hpc.training.start import start_run

    runtime = runtime.with_threads(config.runtime.threads)
    stop, meter = StopRequest(), Meter()
    stop.listen()
    if wants_quickstart:
        from ist_hpc.prepare.quickstart import prepare_quickstart

        stopped_by = on_root(comm, lambda: prepare_quickstart(Path(config.data.path), stop))
        if stopped_by:
            return _say_stopped_early(runtime, stop, stopped_by)
    name = comm.bcast(arguments.name or f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    folder = RunFolder(arguments.runs / name, or_beside=not arguments.name)
    with Watchdog(comm, meter, config.runtime.silence_s, lambda why: record_silence(folder, why)):
        try:
            trainer = start_run(
                runtime, config, folder, resume=arguments.resume, stop=stop, meter=meter
            )
            if runtime.rank == 0:
                folder.set_status("running")
            summary = trainer.run()
        except BaseException as error:
            record_failure(folder, runtime.rank, error)
            raise
        if summary is None:
            stop.leave()
            if runtime.rank == 0:
                rounds, is_saved = trainer.progress.round, trainer.saved is not None
                record_stop(folder, trainer.stopped_by, rounds, is_saved)
            comm.Barrier()  # the first to exit would make launchers end the others
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


def _say_stopped_early(runtime: Runtime, stop: StopRequest, stopped_by: int) -> int:
    """Report a stop before the run began; return the exit code. Collective."""
    stop.leave()
    if runtime.rank == 0:
        say(f"train: stopped: {name_of(stopped_by)}, before there were data; the same goes on")
    runtime.comm.Barrier()
    return EXIT_GO_ON


def _configuration(arguments: argparse.Namespace) -> tuple[Config, bool]:
    """The configuration, and whether the quickstart's data have to be made first."""
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


if __name__ == "__main__":
    run("train", main)

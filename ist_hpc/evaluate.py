"""`python -m ist_hpc.evaluate`: a checkpoint on a data set, on any number of ranks."""

import argparse
from collections.abc import Sequence

from ist_hpc.common.commandline import Parser, add_version, count_from, given_path
from ist_hpc.common.disk.files import refuse_target
from ist_hpc.config.keys import MOST_TOP, RuntimeConfig
from ist_hpc.runtime.ending import run
from ist_hpc.runtime.launch import AgreedInputError, Runtime, check_on_all, launch, on_root, say

_PROGRAM = "python -m ist_hpc.evaluate"
_DESCRIPTION = """\
Evaluate a checkpoint on a data set and print rows and metrics: accuracy and loss for classes; P@k,
nDCG@k and PSP@k for sets of labels. Any number of ranks will do, whatever number trained it: each
holds its part of the network. The batch-norm statistics are those that the checkpoint has, so a
prediction depends on its own row only.
"""
_EPILOG = f"""\
CKPT is a checkpoint's folder, the checkpoint.h5 in it, or a run's folder (its newest checkpoint).

examples:
  {_PROGRAM} runs/a --data data/digits
  mpirun -np 4 {_PROGRAM} runs/a --data data/speech --predictions out.h5
  srun --mpi=pmix {_PROGRAM} runs/a --data /scratch/mine --split train

FILE of --predictions is HDF5, in the order of the data set's rows, with the checkpoint and data
named in its attributes. For classes: `logits` [rows, classes] float32, `labels` and `predicted`
[rows] int64. For sets of labels: `predicted` [rows, k] int64, best first, and their `logits`
[rows, k] float32; -1 and -inf where there are fewer labels than k. k is the largest of --top.
exit code 2, and one line that says what, for files that are damaged or do not fit each other.
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
        "--data",
        type=given_path,
        metavar="DIR",
        required=True,
        help="folder of shards to evaluate on",
    )
    parser.add_argument("--split", default="test", metavar="NAME", help="test (default) or train")
    parser.add_argument(
        "--predictions",
        type=given_path,
        metavar="FILE",
        help="write every row's outputs to this file",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="let --predictions replace its FILE"
    )
    parser.add_argument(
        "--batch-rows",
        type=count_from(1),
        metavar="N",
        help="rows evaluated at a time; default: `evaluate.batch_rows` of the checkpoint",
    )
    parser.add_argument(
        "--top",
        type=_top,
        nargs="+",
        metavar="K",
        help="k of P@k and the others; default: `evaluate.top` of the checkpoint",
    )
    parser.add_argument(
        "--assign",
        choices=("rows", "files"),
        default="rows",
        help="rows (default): every rank can read all shards; files: rank r reads those whose "
        "number modulo the ranks is r, which other nodes need not have",
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where to compute (default cpu)"
    )
    add_version(parser)
    arguments = parser.parse_args(argv)
    if arguments.overwrite and not arguments.predictions:
        raise AgreedInputError("--overwrite is of --predictions FILE, which is not given")
    return arguments


def _top(text: str) -> int:
    found = count_from(1)(text)
    if found > MOST_TOP:
        raise argparse.ArgumentTypeError(f"must be at most {MOST_TOP}, got {text!r}")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Parse arguments, start MPI, evaluate. Returns the exit code."""
    return launch("evaluate", lambda: _arguments(argv), _evaluate, watched=True)


def _evaluate(runtime: Runtime, arguments: argparse.Namespace) -> int:
    """Check everything, then evaluate and print. Collective."""
    from ist_hpc.checkpoint.folder import resolve

    comm, target = runtime.comm, arguments.predictions
    if target:
        on_root(comm, lambda: refuse_target(target, "--predictions", arguments.overwrite))
    folder = on_root(comm, lambda: resolve(arguments.checkpoint))

    # After the checks that need no torch, which takes seconds to load.
    from ist_hpc.checkpoint import restore
    from ist_hpc.common.disk.names import spoken
    from ist_hpc.runtime import devices
    from ist_hpc.runtime.meters import Meter
    from ist_hpc.runtime.watchdog import Watchdog
    from ist_hpc.training.evaluation.of_checkpoint import Evaluation

    runtime, meter = runtime.with_threads(0), Meter()
    silence_s = RuntimeConfig().silence_s
    with Watchdog(comm, meter, silence_s, lambda why: say(f"evaluate: failed: {why}")):
        saved = restore.check(comm, folder)
        device = devices.choose(comm, arguments.device)
        evaluation = check_on_all(
            comm,
            lambda: Evaluation(
                comm,
                saved,
                device,
                data=arguments.data,
                split=arguments.split,
                assign=arguments.assign,
                batch_rows=arguments.batch_rows,
                top=arguments.top,
            ),
        )
        check_on_all(comm, evaluation.check_shards)
        with meter.timing("evaluate"):
            result = evaluation.run(meter, target, arguments.overwrite)
    if runtime.rank == 0:
        print(f"checkpoint:  {saved.folder}")
        print(f"data:        {arguments.data}, {arguments.split}")
        print(f"rows:        {evaluation.rows}")
        for metric, value in result.items():
            print(f"{f'{spoken(metric)}:':12} {value:.4f}")
        if target:
            print(f"predictions: {target}")
    return 0


if __name__ == "__main__":
    run("evaluate", main)

"""Made data of the shape of a published data set of extreme classification; nothing to download.

The rows are drawn by a rule of this program, --seed and nothing else. They have the published
numbers of rows, features and labels, label frequencies that follow a power law, and about the
published numbers of features and labels a row; labels can be learnt from features. It is a stand-in
to try the program on at true size: what a model scores on it says nothing about the published data.

  amazon670k  490449 train and 153025 test rows, 135909 features, 670091 labels; 76 features, with
              values like tf-idf in rows of length one, and 5.4 labels a row
  delicious   12920 train and 3185 test rows, 500 features, 983 labels; 18 features, with values of
              one, and 19 labels a row
"""

import argparse
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Unpack

import numpy as np

from ist_hpc.common.disk.names import printable, quoted
from ist_hpc.data.csr import Csr
from ist_hpc.data.shards import SPLITS, Dataset, DatasetWriter
from ist_hpc.prepare.common import (
    OfOutput,
    add_output_arguments,
    answers_for_memory,
    begin,
    check_counts,
    check_memory,
    check_range,
    check_seed,
    of_output,
    ordered_map,
    say,
    usable_cores,
)
from ist_hpc.prepare.synthetic_rows import Recipe, make_rows

HELP = "made data of the shape of Amazon-670k or Delicious, to try things at true size"
EXAMPLES = """\
examples:
  python -m ist_hpc.prepare synthetic --like amazon670k --output data/amazon670k-like
  python -m ist_hpc.prepare synthetic --like delicious --output data/delicious-like
  python -m ist_hpc.prepare synthetic --like amazon670k --output data/small \\
      --train-rows 20000 --test-rows 4000 --features 5000 --labels 4000
"""

# Sizes of the Extreme Classification Repository, manikvarma.org/downloads/XC/XMLRepository.html:
# Amazon-670K has 75.68 features and 5.45 labels a row and 3.99 train rows a label, Delicious 17.9
# features and 19.0 labels a train row. At 3.99 rows a label the exponent of the power law, 3/4,
# leaves one train row to the rarest labels; 30 as its shift gives about 1700 to the most frequent.
# The shares of the features that mark labels are such that simple classifiers score somewhat as on
# the published data.
RECIPES = {
    "amazon670k": Recipe(
        rows=(490449, 153025),
        features=135909,
        labels=670091,
        row_labels=(7, 5, 3, 7, 6, 4, 7, 6, 2, 7, 6),
        row_slots=(25, 130),
        topic_labels=16,
        head_shift=30.0,
        label_share=32,
        topic_share=24,
        label_features=12,
        topic_features=48,
        tf_idf=True,
    ),
    "delicious": Recipe(
        rows=(12920, 3185),
        features=500,
        labels=983,
        row_labels=(25, 20, 10, 24, 18, 22, 6, 25, 21, 23, 15),
        row_slots=(5, 33),
        topic_labels=40,
        head_shift=3.0,
        label_share=72,
        topic_share=32,
        label_features=4,
        topic_features=12,
        tf_idf=False,
    ),
}

_MOST = 10**8  # of rows, features and labels; at 64 bytes a label the tables have 6 GB
_LABEL_BYTES, _FEATURE_BYTES, _ROW_BYTES = 64, 12, 8  # of the tables of each process, at least
_ROWS_A_TASK = 4096  # about 3 MB
_SHARDS = 8  # of the larger split; shards of the other split have as many rows
_NOTICE = "made data, not the published data set"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `prepare synthetic`."""
    parser.add_argument(
        "--like", choices=RECIPES, required=True, help="the data set whose shape to have"
    )
    add_output_arguments(parser, seed_of="everything that is drawn")
    for option, what in (
        ("--train-rows", "train rows"),
        ("--test-rows", "test rows"),
        ("--features", "features"),
        ("--labels", "labels"),
    ):
        parser.add_argument(
            option, type=int, metavar="N", help=f"number of {what} (default: the published)"
        )
    parser.add_argument(
        "--workers",
        type=int,
        default=usable_cores(),
        metavar="N",
        help="processes; any number gives the same data (default: every core, here %(default)s)",
    )


@answers_for_memory
def run(args: argparse.Namespace) -> None:
    """Do what `prepare synthetic` was asked; raises InputError."""
    begin(args)
    sizes = {
        "--train-rows": args.train_rows,
        "--test-rows": args.test_rows,
        "--features": args.features,
        "--labels": args.labels,
    }
    for option, size in sizes.items():
        if size is not None:
            check_range(option, size, 1, _MOST)
    known = RECIPES[args.like]
    train_rows, test_rows, features, labels = (
        published if size is None else size
        for size, published in zip(
            sizes.values(), (*known.rows, known.features, known.labels), strict=True
        )
    )
    recipe = replace(known, rows=(train_rows, test_rows), features=features, labels=labels)
    began = time.perf_counter()
    prepare_synthetic(
        *(args.output, args.like, recipe, args.seed, args.workers, args.command_line),
        **of_output(args),
    )
    _print_report(args.output, args.like, time.perf_counter() - began)


def prepare_synthetic(
    output: Path,
    like: str,
    recipe: Recipe | None = None,
    seed: int = 0,
    workers: int = 1,
    command_line: str | None = None,
    **to_writer: Unpack[OfOutput],
) -> None:
    """Write made rows to the folder `output`, as `prepare synthetic` does; raises InputError.

    `recipe` defaults to the one of true size for `like`, a key of `RECIPES`. It accepts and raises
    the same as `DatasetWriter` for its output. Call it on one rank.
    """
    check_seed(seed)
    check_counts(workers=workers)
    recipe = recipe or RECIPES[like]
    most_rows = max(recipe.rows)
    processes = min(workers, -(-sum(recipe.rows) // _ROWS_A_TASK))
    check_memory(
        processes
        * (
            _LABEL_BYTES * recipe.labels + _FEATURE_BYTES * recipe.features + _ROW_BYTES * most_rows
        ),
        f"{most_rows} rows, {recipe.features} features and {recipe.labels} labels in {processes} "
        "processes (--train-rows, --test-rows, --features, --labels, --workers)",
    )
    made_by = {
        "command": printable(
            command_line
            or f"python -m ist_hpc.prepare synthetic --like {like} --output {quoted(output)}"
        ),
        "parameters": {"like": like, "seed": seed, "recipe": asdict(recipe)},
        "source": f"{_NOTICE}: drawn by ist_hpc.prepare.synthetic_rows",
    }
    values = "like tf-idf, rows of Euclidean length one" if recipe.tf_idf else "all one"
    with DatasetWriter(
        output,
        name=f"{like}-like",
        kind="sparse",
        feature_shape=(recipe.features,),
        feature_dtype="float32",
        feature_description=f"{_NOTICE}; values {values}",
        classes=recipe.labels,
        made_by=made_by,
        shard_rows=-(-max(recipe.rows) // _SHARDS),
        **to_writer,
    ) as writer:
        tasks = list(_tasks(recipe, seed))
        with closing(_made(tasks, workers)) as blocks:
            for task, (features, labels) in zip(tasks, blocks, strict=True):
                writer.append(task.split, features, labels)


@dataclass(frozen=True)
class _Task:
    """Rows for a worker process to make."""

    recipe: Recipe
    seed: int
    split: str
    start: int
    stop: int


def _tasks(recipe: Recipe, seed: int) -> Iterator[_Task]:
    for split, rows in zip(SPLITS, recipe.rows, strict=True):
        for start in range(0, rows, _ROWS_A_TASK):
            yield _Task(recipe, seed, split, start, min(rows, start + _ROWS_A_TASK))


def _made(tasks: list[_Task], workers: int) -> Generator[tuple[Csr, Csr], None, None]:
    workers = min(workers, len(tasks))
    if workers > 1:
        yield from ordered_map(_make, tasks, workers)
    else:
        # Unlike BLAS, nothing here sums in an order that depends on the number of threads.
        yield from map(_make, tasks)


def _make(task: _Task) -> tuple[Csr, Csr]:
    return make_rows(task.recipe, task.seed, task.split, task.start, task.stop)


def _print_report(output: Path, like: str, seconds: float) -> None:
    with Dataset.open(output) as made:
        counts = made.label_counts()
        assert counts is not None, "a data set with train rows"
        train_rows = made.rows("train")
        say(
            f"synthetic: {_NOTICE}, of the shape of {like}\n"
            f"{train_rows} train and {made.rows('test')} test rows of {made.features} features, "
            f"{made.outputs} labels\n"
            f"{counts.sum() / train_rows:.2f} labels a train row; the most frequent label is in "
            f"{counts.max()} of them, {np.count_nonzero(counts == 0)} labels are in none\n"
            f"{seconds:.1f} s; wrote {printable(str(output))}"
        )

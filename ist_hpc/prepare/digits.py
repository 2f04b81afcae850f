"""The handwritten digits that come with scikit-learn: 1797 images, 10 classes, no download.

64 features a row: 8 x 8 pixels, row-major, float32 from 0 to 1. Of every digit a fifth of the
images, drawn at random, is the test set.
"""

import argparse
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt

from ist_hpc.common.disk.names import printable, quoted
from ist_hpc.common.random_streams import permutation
from ist_hpc.data.shards import Dataset, DatasetWriter
from ist_hpc.prepare.common import (
    OfOutput,
    add_output_arguments,
    answers_for_memory,
    begin,
    check_seed,
    of_output,
    require,
    say,
    shard_ends,
)

HELP = "handwritten digits of scikit-learn: 1797 images of 8 x 8 pixels; the quickstart"
EXAMPLES = """\
example:
  python -m ist_hpc.prepare digits --output data/digits
"""

_SHARDS = {"train": 4, "test": 1}
_TEST_SHARE = 5  # one row in five
_GREY_LEVELS = 16.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `prepare digits`."""
    add_output_arguments(parser)


@answers_for_memory
def run(args: argparse.Namespace) -> None:
    """Do what `prepare digits` was asked; raises InputError."""
    begin(args)
    prepare_digits(args.output, args.seed, args.command_line, **of_output(args))
    made = Dataset.open(args.output)
    say(
        f"digits: {made.rows('train')} train and {made.rows('test')} test rows of 64 features, "
        f"{len(made.classes)} classes; wrote {printable(str(args.output))}"
    )


def prepare_digits(
    output: Path, seed: int = 0, command_line: str | None = None, **to_writer: Unpack[OfOutput]
) -> None:
    """Write the digits to the folder `output`, as `prepare digits` does; raises InputError.

    It accepts and raises the same as `DatasetWriter` for its output. Call it on one rank.
    """
    check_seed(seed)
    features, labels = _load()
    rows = _split(labels, permutation("prepare digits rows", seed, 0, len(labels)))
    made_by = {
        "command": printable(
            command_line or f"python -m ist_hpc.prepare digits --output {quoted(output)}"
        ),
        "parameters": {"seed": seed},
        "source": "sklearn.datasets.load_digits",
    }
    with DatasetWriter(
        output,
        name="digits",
        feature_shape=features.shape[1:],
        feature_dtype="float32",
        feature_description="grey level 0 to 1 of 8 x 8 pixels, row-major",
        classes=[str(digit) for digit in range(10)],
        made_by=made_by,
        shard_rows=max(-(-len(rows[split]) // shards) for split, shards in _SHARDS.items()),
        **to_writer,
    ) as writer:
        for split, shards in _SHARDS.items():
            start = 0
            for end in shard_ends(len(rows[split]), shards):
                chosen = rows[split][start:end]
                writer.append(split, features[chosen], labels[chosen])
                writer.end_shard(split)
                start = end


def _load() -> tuple[npt.NDArray[np.float32], npt.NDArray[Any]]:
    datasets = require("sklearn.datasets", "pip install scikit-learn")
    digits = datasets.load_digits()
    return (digits.data / _GREY_LEVELS).astype(np.float32), digits.target


def _split(
    labels: npt.NDArray[Any], order: npt.NDArray[np.int64]
) -> dict[str, npt.NDArray[np.int64]]:
    """The rows of each split, in the shuffled order: the first fifth of each class is test."""
    is_test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        of_class = order[labels[order] == label]
        is_test[of_class[: round(len(of_class) / _TEST_SHARE)]] = True
    return {"train": order[~is_test[order]], "test": order[is_test[order]]}

"""CIFAR-100 in its official python layout: 50,000 train and 10,000 test images of 100 classes.

DIR is the folder that cifar-100-python.tar.gz unpacks to, with the pickles train, test and meta.
3072 uint8 features a row: 3 x 32 x 32, the red, the green and the blue plane, row-major. Classes
are the 100 fine labels, or with --coarse the 20 superclasses. The pickles cannot run anything: what
is no part of plain data and arrays of numbers is refused.

Prints the mean and standard deviation of each channel of the train images, as a configuration takes
them.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ist_hpc.common.commandline import given_path
from ist_hpc.common.disk.names import in_words, is_text
from ist_hpc.common.errors import printable
from ist_hpc.common.random_streams import permutation
from ist_hpc.data.shards import SPLITS, DatasetWriter
from ist_hpc.prepare.common import (
    add_output_arguments,
    answers_for_memory,
    begin,
    check_counts,
    of_output,
    say,
    shard_ends,
)
from ist_hpc.prepare.found import folder_refused, input_folder, is_missing, refused
from ist_hpc.prepare.safe_pickle import load_dict

HELP = "CIFAR-100: 60,000 photographs of 32 x 32 pixels, 100 classes"
EXAMPLES = """\
examples:
  python -m ist_hpc.prepare cifar100 --input cifar-100-python --output data/cifar100
  python -m ist_hpc.prepare cifar100 --input cifar-100-python --output data/cifar20 --coarse
"""

SHAPE = (3, 32, 32)
_ROW_BYTES = 3 * 32 * 32
_MOST_BYTES = 512 * 1024 * 1024  # of a pickle; the official train file has 155 MB
_TRAIN_SHARDS_PER_TEST_SHARD = 4
_ROWS_AT_ONCE = 4096  # reordered at a time, beside all the others
_SHOWN_BITS = 64  # of a wrong label
_DIGITS = 4  # of printed means and deviations
_FILES = (*SPLITS, "meta")
_OTHERS = {
    "train.bin": "the binary version of CIFAR-100",
    "data_batch_1": "CIFAR-10",
    "data_batch_1.bin": "the binary version of CIFAR-10",
    "train.mat": "the Matlab version of CIFAR-100",
}
_KEYS_SHOWN = 6
_WHERE = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"


@dataclass(frozen=True)
class Images:
    """The rows of one file: images uint8 [rows, 3072], labels int64 [rows]."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `prepare cifar100`."""
    parser.add_argument(
        "--input", type=given_path, required=True, metavar="DIR", help="the folder cifar-100-python"
    )
    add_output_arguments(parser, seed_of="the order of the train rows")
    parser.add_argument(
        "--coarse", action="store_true", help="the 20 superclasses instead of the 100 classes"
    )
    parser.add_argument(
        "--shards",
        type=int,
        default=8,
        help="files of train rows (default 8); a quarter as many of test rows",
    )


@answers_for_memory
def run(args: argparse.Namespace) -> None:
    """Do what `prepare cifar100` was asked; raises InputError."""
    begin(args)
    check_counts(args.shards)
    _check_folder(args.input)
    kind = "coarse" if args.coarse else "fine"
    classes = read_names(args.input / "meta", f"{kind}_label_names")
    parts = {
        split: read_images(args.input / split, f"{kind}_labels", len(classes)) for split in SPLITS
    }
    mean, std = channel_moments(parts["train"].images)
    mean, std = ([round(value, _DIGITS) for value in part] for part in (mean, std))
    _write(args, classes, parts, {"mean": mean, "std": std})
    rows = {split: len(part.labels) for split, part in parts.items()}
    say(
        f"cifar100: {rows['train']} train and {rows['test']} test images of 3 x 32 x 32, "
        f"{len(classes)} {kind} classes; wrote {printable(str(args.output))}\n"
        "channels of the train images, from 0 to 1, for the section `data` of a configuration:\n"
        f"  mean: {mean}\n"
        f"  std: {std}"
    )


def _check_folder(folder: Path) -> None:
    wanted = f"give the folder cifar-100-python that {_WHERE} unpacks to"
    input_folder("--input", folder, wanted)
    missing = [name for name in _FILES if is_missing(folder / name)]
    if missing:
        problem = f"has no file {missing[0]}"
        for name, what in _OTHERS.items():
            if not is_missing(folder / name):
                problem += f", but {name}: it is {what}"
                break
        raise folder_refused("--input", folder, problem, wanted, _holds_files)


def _holds_files(folder: Path) -> bool:
    return not any(is_missing(folder / name) for name in _FILES)


def read_names(path: Path, key: str) -> list[str]:
    """The names of the classes in the file `meta`. Raises InputError that names it."""
    listed = _value(path, load_dict(path, _MOST_BYTES), key)
    names = [_name(name) for name in listed] if isinstance(listed, list | tuple) else []
    good = bool(names) and all(isinstance(name, str) and name for name in names)
    if not good or len(set(names)) != len(names):
        raise refused(path, f"`{key}` must be a list of different names")
    for name in names:
        if not is_text(name):
            raise refused(path, f"`{key}` must be of printable characters (got {name!a})")
    return names


def _name(name: Any) -> Any:
    """A name as text; Python 2 wrote bytes, decoded as UTF-8 if possible."""
    if not isinstance(name, bytes):
        return name
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.decode("latin-1")


def read_images(path: Path, labels_key: str, classes: int) -> Images:
    """The images of a file and the labels under `labels_key`, 0 to `classes` - 1.

    Labels may be a list or an array of whole numbers, also such as 3.0. Raises InputError that
    names the file.
    """
    content = load_dict(path, _MOST_BYTES)
    images, listed = _value(path, content, "data"), _value(path, content, labels_key)
    got = _in_words(images)
    if not isinstance(images, np.ndarray) or images.shape[1:] != (_ROW_BYTES,):
        raise refused(
            path,
            f"`data` must be uint8 [images, {_ROW_BYTES}], 3 x 32 x 32 an image (got {got}); "
            "is it of CIFAR-100?",
        )
    if images.dtype != np.uint8:
        raise refused(
            path,
            f"`data` must be of uint8, 0 to 255 (got {got}); if its values are so, save it again "
            'as data.astype("uint8")',
        )
    labels = _labels(path, labels_key, listed)
    if len(labels) != len(images) or not labels:
        raise refused(
            path,
            f"must have one or more images and a label for each (got {len(images)} images and "
            f"{len(labels)} `{labels_key}`)",
        )
    for row, label in enumerate(labels):
        whole = _whole(label)
        if whole is None or not 0 <= whole < classes:
            raise refused(
                path,
                f"`{labels_key}` must be whole numbers from 0 to {classes - 1}, as `meta` has "
                f"{classes} names (got {_short(label)} at row {row})",
            )
    return Images(images, np.array([int(label) for label in labels], dtype=np.int64))


def _labels(path: Path, key: str, listed: Any) -> list[Any]:
    """Labels as a list, however they were saved."""
    if isinstance(listed, np.ndarray) and listed.ndim == 1:
        return listed.tolist()
    if isinstance(listed, list | tuple):
        return list(listed)
    raise refused(path, f"`{key}` must be a list of whole numbers (got {_in_words(listed)})")


def _whole(label: Any) -> int | None:
    if type(label) is float and label.is_integer():
        return int(label)
    return label if type(label) is int else None


def _short(label: Any) -> str:
    if type(label) is float or (type(label) is int and label.bit_length() < _SHOWN_BITS):
        return str(label)
    return type(label).__name__


def _in_words(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return type(value).__name__


def _value(path: Path, content: dict[str, Any], key: str) -> Any:
    if key in content:
        return content[key]
    if "label_names" in content or "labels" in content:
        is_it = "it is of CIFAR-10, which has one kind of labels."
    else:
        is_it = "is it a file of CIFAR-100?"
    has = in_words(content, most=_KEYS_SHOWN) or "nothing"
    raise refused(path, f"has no `{key}`, but {has}; {is_it} The files are at {_WHERE}")


def channel_moments(images: npt.NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of images [rows, 3072], whose range is 0 to 1.

    Computed from counts of the 256 values, so that they do not depend on the order of a sum.
    """
    values = np.arange(256) / 255
    mean, std = [], []
    for plane in np.split(images, SHAPE[0], axis=1):
        counts = sum(
            np.bincount(block.ravel(), minlength=256)
            for block in np.array_split(plane, -(-len(plane) // _ROWS_AT_ONCE))
        )
        share = counts / plane.size
        mean.append(float(share @ values))
        std.append(float(np.sqrt(share @ (values - mean[-1]) ** 2)))
    return mean, std


def _write(
    args: argparse.Namespace,
    classes: list[str],
    parts: dict[str, Images],
    channels: dict[str, list[float]],
) -> None:
    shards = {"train": args.shards, "test": max(1, args.shards // _TRAIN_SHARDS_PER_TEST_SHARD)}
    rows = {split: len(part.labels) for split, part in parts.items()}
    orders = {
        "train": permutation("prepare cifar100 rows", args.seed, 0, rows["train"]),
        "test": np.arange(rows["test"], dtype=np.int64),
    }
    with DatasetWriter(
        args.output,
        name="cifar100",
        feature_shape=SHAPE,
        feature_dtype="uint8",
        feature_description="red, green and blue, each 32 x 32 pixels, row-major, 0 to 255",
        classes=classes,
        made_by={
            "command": printable(args.command_line),
            "parameters": {"seed": args.seed, "coarse": args.coarse, "shards": args.shards},
            "source": "CIFAR-100 (Krizhevsky 2009), python version",
            "train_channels": channels,
        },
        shard_rows=max(-(-rows[split] // count) for split, count in shards.items()),
        **of_output(args),
    ) as writer:
        for split, part in parts.items():
            start = 0
            for end in shard_ends(rows[split], shards[split]):
                for first in range(start, end, _ROWS_AT_ONCE):
                    chosen = orders[split][first : min(first + _ROWS_AT_ONCE, end)]
                    images = part.images[chosen].reshape(-1, *SHAPE)
                    writer.append(split, images, part.labels[chosen])
                writer.end_shard(split)
                start = end

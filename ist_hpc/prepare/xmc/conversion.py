"""A data set in the text format of the Extreme Classification Repository: sparse rows, many labels.

Line 1 of a file has the numbers of samples, features and labels, `N D L`. Each further line is a
sample, `l1,l2,... f:v f:v ...`: its labels, then its features, all counted from 0; without labels
it begins with a blank. Give a train and a test file, or one data file and two split files, which
have the numbers of samples, counted from 1, one a line (several columns are several splits).

Memory stays flat however long the files are. Train rows are written in random order (--seed), test
rows in the order of the file. A malformed line is named, with its file, and ends the conversion;
--skip-malformed leaves such lines out. docs/data-format.md has the details.
"""

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ist_hpc.common.commandline import given_path
from ist_hpc.common.disk.names import is_text
from ist_hpc.common.errors import InputError, printable
from ist_hpc.data.csr import Csr
from ist_hpc.data.shards import DatasetWriter
from ist_hpc.prepare.common import (
    add_output_arguments,
    answers_for_memory,
    begin,
    check_counts,
    check_memory,
    check_range,
    of_output,
    say,
)
from ist_hpc.prepare.found import UnusableError, is_missing, opened, refused
from ist_hpc.prepare.xmc.line import Header
from ist_hpc.prepare.xmc.shuffle import Shuffler
from ist_hpc.prepare.xmc.source import Source
from ist_hpc.prepare.xmc.split import Split, read_split
from ist_hpc.prepare.xmc.statistics import SplitStatistics, summary_of, table_of

HELP = "text files of the Extreme Classification Repository: Amazon-670K, Delicious, ..."
EXAMPLES = """\
examples:
  python -m ist_hpc.prepare xmc --train train.txt --test test.txt --output data/delicious
  python -m ist_hpc.prepare xmc --train train.txt --test test.txt --output data/amazon670k \\
      --normalize l2 --statistics
  python -m ist_hpc.prepare xmc --data Bibtex_data.txt --train-split bibtex_trSplit.txt \\
      --test-split bibtex_tstSplit.txt --split-column 1 --output data/bibtex
"""

SPLITS = ("train", "test")
NORMALIZATIONS = ("none", "l2")
_MOST_NAMED = 5  # malformed lines
_LABEL_BYTES = 8 * 4  # counts of both splits, stored counts, and a sorted copy of one
_WHERE = "http://manikvarma.org/downloads/XC/XMLRepository.html"


@dataclass
class Report:
    """The results of the files: statistics of each split, lines left out."""

    statistics: dict[str, SplitStatistics]
    repeated_labels: int = 0
    unused_samples: int = 0
    malformed: int = 0
    first_malformed: list[str] = field(default_factory=list)

    def add_source(self, source: Source) -> None:
        """Count the lines left out of a file that has been read."""
        self.malformed += source.malformed
        room = _MOST_NAMED - len(self.first_malformed)
        self.first_malformed += source.first_malformed[:room]

    def as_json(self) -> dict[str, Any]:
        """The counts for `made_by`."""
        return {
            "statistics": summary_of(self.statistics["train"], self.statistics["test"]),
            "malformed_lines": {"left_out": self.malformed, "first": self.first_malformed},
            "repeated_labels": self.repeated_labels,
            "unused_samples": self.unused_samples,
        }


@dataclass(frozen=True)
class Input:
    """The opened files: a source for each split, the same for both if `split` divides it."""

    sources: dict[str, Source]
    split: Split | None
    file_bytes: dict[str, int]

    @property
    def header(self) -> Header:
        """The sizes; those of the train file if there are two files."""
        return self.sources["train"].header

    def rows(self, split: str) -> int:
        """The number of samples in the split, from line 1 or the split file."""
        return self.split.rows(split) if self.split else self.sources[split].header.rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `prepare xmc`."""
    parser.add_argument("--train", type=given_path, metavar="FILE", help="the train rows")
    parser.add_argument("--test", type=given_path, metavar="FILE", help="the test rows")
    parser.add_argument(
        "--data", type=given_path, metavar="FILE", help="all rows, instead of these two"
    )
    parser.add_argument(
        "--train-split", type=given_path, metavar="FILE", help="numbers of the train rows of --data"
    )
    parser.add_argument(
        "--test-split", type=given_path, metavar="FILE", help="numbers of the test rows of --data"
    )
    parser.add_argument(
        "--split-column",
        type=int,
        default=1,
        help="which column of the split files counts, from 1 (default 1)",
    )
    add_output_arguments(parser)
    parser.add_argument("--name", help="of the data set (default: the name of the folder DIR)")
    parser.add_argument(
        "--normalize",
        choices=NORMALIZATIONS,
        default="none",
        help="l2: scale each row's features to unit length (default none)",
    )
    parser.add_argument(
        "--skip-malformed",
        action="store_true",
        help="leave malformed lines out and count them, instead of stopping at the first",
    )
    parser.add_argument(
        "--statistics", action="store_true", help="print how often labels occur, as a table"
    )
    parser.add_argument(
        "--shards",
        type=int,
        default=8,
        help="files of train rows (default 8); those of test rows are no longer",
    )


@answers_for_memory
def run(args: argparse.Namespace) -> None:
    """Do what `prepare xmc` was asked; raises InputError."""
    begin(args)
    began = time.perf_counter()
    check_counts(args.shards)
    check_range("--split-column", args.split_column, 1)
    _check_files_given(args)
    _check_name(args.name)
    with ExitStack() as stack:
        given = _open(args, stack)
        labels = given.header.labels
        check_memory(
            _LABEL_BYTES * labels, f"{given.sources['train'].name}, line 1: {labels} labels"
        )
        report = Report({split: SplitStatistics(labels) for split in SPLITS})
        try:
            _write(args, given, report)
        except OSError as error:
            raise InputError(f"the text cannot be read ({error})") from error
    seconds = time.perf_counter() - began
    _print_report(args, given, report, seconds)


def _check_name(name: str | None) -> None:
    if name is not None and not (name and is_text(name)):
        raise InputError(f"--name must be printable UTF-8, at least one character (got {name!r})")


def _check_files_given(args: argparse.Namespace) -> None:
    pair, one = (args.train, args.test), (args.data, args.train_split, args.test_split)
    if not (all(pair) and not any(one)) and not (all(one) and not any(pair)):
        raise InputError(
            "give --train and --test, or else --data, --train-split and --test-split; "
            "see python -m ist_hpc.prepare xmc --help"
        )


def _open(args: argparse.Namespace, stack: ExitStack) -> Input:
    """Open the files and read their first lines. Raises InputError."""
    if args.data:
        source, size = _open_source(args.data, args, stack)
        split = read_split(args.train_split, args.test_split, args.split_column, source.header.rows)
        return Input(dict.fromkeys(SPLITS, source), split, {source.name: size})
    sources, sizes = {}, {}
    for split_name, path in (("train", args.train), ("test", args.test)):
        source, size = _open_source(path, args, stack)
        sources[split_name], sizes[source.name] = source, size
    train, test = (sources[split_name].header for split_name in SPLITS)
    if (train.features, train.labels) != (test.features, test.labels):
        raise refused(
            args.test,
            f"must have the numbers of features and labels of {args.train}, {train.features} and "
            f"{train.labels} (got {test.features} and {test.labels})",
            line=1,
        )
    return Input(sources, None, sizes)


def _open_source(path: Path, args: argparse.Namespace, stack: ExitStack) -> tuple[Source, int]:
    try:
        file = stack.enter_context(opened(path))
        size = os.fstat(file.fileno()).st_size
        source = Source(file, printable(str(path)), skip_malformed=args.skip_malformed)
    except UnusableError as error:
        where = f"; the files are at {_WHERE}" if is_missing(path) else ""
        raise refused(path, f"{error}{where}") from error
    except OSError as error:
        raise refused(path, f"cannot be read ({error.strerror})") from error
    # A line has at least one byte, its line end: this bounds what line 1 can allocate.
    if source.header.rows > size:
        raise source.refused(
            f"says {source.header.rows} samples, but the file has {size} bytes; it is cut short, "
            "or line 1 is wrong",
            line=1,
        )
    return source, size


def _write(args: argparse.Namespace, opened: Input, report: Report) -> None:
    header, train_rows = opened.header, opened.rows("train")
    scaled = ", scaled to unit length (L2)" if args.normalize == "l2" else ""
    made_by = {
        "command": printable(args.command_line),
        "parameters": {
            "seed": args.seed,
            "normalize": args.normalize,
            "skip_malformed": args.skip_malformed,
            "split_column": args.split_column if opened.split else None,
            "shards": args.shards,
        },
        "source": "text format of the Extreme Classification Repository",
        "file_bytes": opened.file_bytes,
    }
    text_bytes = sum(opened.file_bytes.values()) if opened.split else _train_bytes(opened)
    with (
        DatasetWriter(
            args.output,
            name=args.name or printable(args.output.resolve().name),
            kind="sparse",
            feature_shape=(header.features,),
            feature_description=f"sparse features of the text file{scaled}",
            classes=header.labels,
            made_by=made_by,
            shard_rows=-(-train_rows // args.shards),
            **of_output(args),
        ) as writer,
        Shuffler(args.output, text_bytes, args.seed) as shuffler,
    ):
        for split, features, labels in _samples(opened, report):
            if args.normalize == "l2":
                features = unit_length(features)
            report.statistics[split].add(features, labels)
            if split == "train":
                shuffler.add(features, labels)
            else:
                writer.append(split, features, labels)
        for features, labels in shuffler.shuffled():
            writer.append("train", features, labels)
        for split, source in opened.sources.items():
            if not report.statistics[split].rows:
                raise source.refused(f"every {split} row is malformed; none is left")
        writer.made_by.update(report.as_json())


def _train_bytes(opened: Input) -> int:
    return opened.file_bytes[opened.sources["train"].name]


def _samples(opened: Input, report: Report) -> Iterator[tuple[str, Csr, Csr]]:
    """Blocks of rows with their split, in the order of the files. Raises InputError, OSError."""
    if opened.split is not None:
        report.unused_samples = opened.split.unused
        source = opened.sources["train"]
        for block in source.blocks():
            report.repeated_labels += block.repeated_labels
            for split in SPLITS:
                rows = opened.split.select(split, block.rows)
                if len(rows):
                    yield split, block.features.take(rows), block.labels.take(rows)
        report.add_source(source)
        return
    for split, source in opened.sources.items():
        for block in source.blocks():
            report.repeated_labels += block.repeated_labels
            yield split, block.features, block.labels
        report.add_source(source)


def unit_length(features: Csr) -> Csr:
    """The rows divided by their Euclidean length, computed in float64; rows of zeros stay."""
    assert features.values is not None
    values = features.values.astype(np.float64)
    lengths = np.diff(features.indptr)
    filled = np.flatnonzero(lengths)
    if not len(filled):
        return features
    squares: npt.NDArray[np.float64] = np.add.reduceat(values * values, features.indptr[filled])
    norms = np.sqrt(squares)
    norms[norms == 0] = 1.0
    values /= np.repeat(norms, lengths[filled])
    return replace(features, values=values.astype(np.float32))


def _print_report(args: argparse.Namespace, opened: Input, report: Report, seconds: float) -> None:
    for message in report.first_malformed:
        say(f"prepare: warning: left out {message}", error=True)
    if report.malformed > len(report.first_malformed):
        more = report.malformed - len(report.first_malformed)
        say(f"prepare: warning: left out {more} more malformed lines", error=True)
    train, test = (report.statistics[split] for split in SPLITS)
    megabytes = sum(opened.file_bytes.values()) / 1e6
    unlabelled = train.without_labels + test.without_labels
    featureless = train.without_features + test.without_features
    say(
        f"xmc: {train.rows} train and {test.rows} test rows of {opened.header.features} features, "
        f"{opened.header.labels} labels\n"
        f"{unlabelled} rows without labels, {featureless} without features, "
        f"{report.malformed} malformed lines left out, {report.unused_samples} samples in no split"
    )
    if args.statistics:
        say(table_of(summary_of(train, test)))
    wrote = printable(str(args.output))
    say(f"{seconds:.1f} s, {megabytes / seconds:.0f} MB of text a second; wrote {wrote}")

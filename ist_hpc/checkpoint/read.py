"""Reading checkpoints: finding the newest valid one, checking it, and reading any rows of it.

No MPI in here: `show` reads a checkpoint alone, a resume reads it on every rank.
"""

import dataclasses
import json
import logging
import math
import re
import socket
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from ist_hpc.common.blocks import Units, block_bounds
from ist_hpc.common.errors import InputError, UnreadableError, show
from ist_hpc.common.files import refuse_vds_prefix, sha256_of
from ist_hpc.common.hdf5_reading import ADVICE, Attributes, reporting
from ist_hpc.config import loading
from ist_hpc.data.shard_meta import MOST_COLUMNS
from ist_hpc.data.shards import Dataset

FORMAT = "ist_hpc checkpoint"
FORMAT_VERSION = 2
MAIN_FILE = "checkpoint.h5"
MANIFEST = "manifest.json"
FOLDER_PATTERN = re.compile(r"round-([0-9]{8})")

_GROUPS = ("parameters", "optimizer", "statistics")
_MOST_DEPTH = 8  # of groups in groups; those of the optimiser are 2 deep
_MOST_ROUND = 10**8 - 1  # a folder's name has 8 digits for it
_MOST_COUNT = 2**53  # every reader of JSON has whole numbers up to here; no run gets so far
_METRIC = re.compile("[a-z][a-z0-9_]{0,99}")
_VERSION = re.compile(r"[A-Za-z0-9.+_-]{1,99}")

log = logging.getLogger("ist_hpc")


@dataclasses.dataclass
class Progress:
    """How far a run is, at the end of a round.

    round        the next round's index
    steps        local steps every rank has trained
    samples      rows trained on by all ranks
    stream_rows  rows each rank has drawn from its stream
    ranks        how many ranks drew them
    best         the best test metric so far, of 1; -1 before the first evaluation
    owes_evaluation  one was due after this round, and given up as the run was asked to stop
    """

    round: int = 0
    steps: int = 0
    samples: int = 0
    stream_rows: int = 0
    ranks: int = 1
    best: float = -1.0
    owes_evaluation: bool = False


@dataclasses.dataclass(frozen=True)
class DataShape:
    """What of a data set a model depends on.

    features  numbers a row
    outputs   classes, or labels
    sparse    rows are sparse, and labels are sets
    classes   names of the classes; none if they have none
    """

    features: int
    outputs: int
    sparse: bool
    classes: tuple[str, ...]

    @staticmethod
    def of(dataset: Dataset) -> "DataShape":
        """That of a data set."""
        return DataShape(dataset.features, dataset.outputs, dataset.sparse, dataset.classes)


def round_folder(checkpoints: Path, round_index: int) -> Path:
    """Where the checkpoint after `round_index` rounds lies."""
    return checkpoints / f"round-{round_index:08d}"


def newest_first(checkpoints: Path) -> list[Path]:
    """The complete checkpoints of a run, newest first, unchecked."""
    if not checkpoints.is_dir():
        return []
    found = [path for path in checkpoints.iterdir() if FOLDER_PATTERN.fullmatch(path.name)]
    return sorted(found, reverse=True)


def resolve(path: Path) -> Path:
    """The checkpoint folder that a user means: it, its main file, or a run's newest.

    Raises `InputError`.
    """
    if path.is_file():
        return path.parent
    if (path / MANIFEST).is_file() or FOLDER_PATTERN.fullmatch(path.name):
        return path
    for checkpoints in (path / "checkpoints", path):
        candidates = newest_first(checkpoints)
        if candidates:
            return candidates[0]
    raise InputError(
        f"no checkpoint at {path}; give a run folder, a folder such as "
        "runs/NAME/checkpoints/round-00000040, or the checkpoint.h5 in it"
    )


class Checkpoint:
    """A checkpoint whose manifest was read; `check_files` before trusting what HDF5 says.

    folder  where it lies
    files   of each file (bytes, SHA-256), by name
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = _manifest(folder)

    def check_files(self, names: Iterable[str]) -> None:
        """Check size and SHA-256 of the named files. Raises `InputError` that names the file."""
        for name in names:
            path = self.folder / name
            size, digest = self.files[name]
            try:
                found = path.stat()
                if not stat.S_ISREG(found.st_mode):  # a pipe or a device would be read for ever
                    raise InputError(f"{path}: must be a plain file, and is none; {ADVICE}")
                if found.st_size != size:
                    raise InputError(
                        f"{path}: {found.st_size} bytes, its manifest says {size}; {ADVICE}"
                    )
                if sha256_of(path) != digest:
                    raise InputError(f"{path}: SHA-256 differs from its manifest; {ADVICE}")
            except FileNotFoundError as error:
                raise InputError(f"{path}: {error.strerror}; {ADVICE}") from None
            except OSError as error:
                raise _unreadable(path, error) from None

    def check_parts(self, names: Iterable[str]) -> None:
        """Check that the named files are the parts of this checkpoint, before anything is read.

        The main file's virtual datasets must take every row from where it was written. A rank
        file's rank, number of ranks and round, and the names, types and shapes of its datasets
        must be what the main file takes them for: HDF5 would fill up what does not fit. Raises
        `InputError`.
        """
        with self.opened() as opened:
            for name in names:
                if name == MAIN_FILE:
                    opened.check_maps()
                else:
                    opened.check_part(int(name.removeprefix("rank-").removesuffix(".h5")))

    @contextmanager
    def opened(self) -> Iterator["OpenCheckpoint"]:
        """The contents, through the main file. Raises `InputError` for what cannot be read."""
        refuse_vds_prefix()
        path = self.folder / MAIN_FILE
        with reporting(path):
            file = h5py.File(path, "r", locking=False)
        with file:
            size_bytes = sum(size for size, _ in self.files.values())
            yield OpenCheckpoint(path, file, len(self.files) - 1, size_bytes)


class OpenCheckpoint:
    """The contents of a checkpoint, whose every attribute and dataset is of the kind it must be.

    file        the main file; there are so many rank files (`ranks`), in all `size_bytes`

    Raises `InputError`.
    """

    def __init__(self, path: Path, file: h5py.File, ranks: int, size_bytes: int) -> None:
        self.path, self.file = path, file
        attributes = Attributes(path, file.attrs)
        attributes.must_be("format", FORMAT, "it is no checkpoint of ist_hpc")
        wrote = attributes.text("package_version", _VERSION, "a version, such as 0.1.0")
        attributes.must_be(
            "format_version",
            FORMAT_VERSION,
            f"it was written by another ist_hpc ({wrote!r} there): use that, or train anew",
        )
        self.progress = Progress(
            round=attributes.count("round", 0, _MOST_ROUND),
            steps=attributes.count("steps", 0, _MOST_COUNT),
            samples=attributes.count("samples", 0, _MOST_COUNT),
            stream_rows=attributes.count("stream_rows", 0, _MOST_COUNT),
            ranks=attributes.count("ranks", 1, _MOST_COUNT),
            best=attributes.number("best", -1.0, 1.0),
            owes_evaluation=attributes.flag("owes_evaluation"),
        )
        if ranks != self.progress.ranks:
            raise InputError(
                f"{path.parent}: {ranks} rank files, {MAIN_FILE} is of {self.progress.ranks}; "
                f"{ADVICE}"
            )
        self.config = loading.parse(attributes.text("config"), f"{path} (config)")
        self.metric = attributes.text("metric", _METRIC, "the name of a metric, such as accuracy")
        outputs = attributes.count("outputs", 1, MOST_COLUMNS)
        self.data = DataShape(
            features=attributes.count("features", 1, MOST_COLUMNS),
            outputs=outputs,
            sparse=attributes.flag("sparse"),
            classes=attributes.names("classes", outputs),
        )
        self._tensors = _tensors_of(path, file)
        self._checked: set[str | int] = set()  # tensors and ranks
        self._check_tensors(size_bytes)

    def _check_tensors(self, size_bytes: int) -> None:
        """Refuse what is elsewhere, or larger than all files: HDF5 makes up what is not there."""
        for name, dataset in self._tensors.items():
            with reporting(self.path):
                here = dataset.is_virtual or _is_stored(dataset)
            if not here or 4 * math.prod(dataset.shape) > size_bytes:
                raise InputError(
                    f"{self.path}: {name} {dataset.shape} is not stored in the files of the "
                    f"checkpoint, {size_bytes} bytes; {ADVICE}"
                )

    def check_maps(self) -> None:
        """`check_map` of every tensor."""
        for name in self._virtual():
            self.check_map(name)

    def check_map(self, name: str) -> None:
        """Check that a virtual dataset takes each rank's rows from where they are.

        HDF5 has no checksum on that, and reads NaN where there is nothing. Raises `InputError`.
        """
        if name in self._checked:
            return
        whole = self._tensors[name]
        bounds = [int(bound) for bound in self._bounds(whole)]
        expected = [
            (rank_file(rank), name, (start, stop), (0, stop - start))
            for rank, (start, stop) in enumerate(pairwise(bounds))
            if start < stop
        ]
        with reporting(self.path):
            found = [_source(source, whole.shape) for source in whole.virtual_sources()]
        if sorted(found) != sorted(expected):
            raise InputError(
                f"{self.path}: {name} is not put together from the rank files as it was written; "
                f"{ADVICE}"
            )
        self._checked.add(name)

    def check_part(self, rank: int) -> None:
        """Check that a rank file is of this checkpoint; see `Checkpoint.check_parts`."""
        if rank in self._checked:
            return
        path, wholes = self.path.parent / rank_file(rank), self._virtual()
        facts = {"rank": rank, "ranks": self.progress.ranks, "round": self.progress.round}
        with reporting(path), h5py.File(path, "r", locking=False) as part:
            attributes = Attributes(path, part.attrs)
            for name, wanted in facts.items():
                attributes.must_be(name, wanted, "it is not of this checkpoint; copy it again")
            blocks = _tensors_of(path, part)
            for name in sorted(blocks.keys() ^ wholes.keys()):
                what = "lacks" if name in wholes else "has"
                raise InputError(f"{path}: {what} {name}, {MAIN_FILE} says otherwise; {ADVICE}")
            for name, whole in wholes.items():
                bounds = self._bounds(whole)
                shape = (int(bounds[rank + 1] - bounds[rank]), *whole.shape[1:])
                got, stored = blocks[name].shape, _is_stored(blocks[name])
                if got != shape or not stored:
                    where = "" if stored else " not stored in this file in whole"
                    raise InputError(f"{path}: {name} must be {shape}, got {got}{where}; {ADVICE}")
        self._checked.add(rank)

    def keys(self, group: str) -> list[str]:
        """Names of the datasets of `parameters`, `optimizer` or `statistics`, at any depth."""
        prefix = f"{group}/"
        return [name.removeprefix(prefix) for name in self._tensors if name.startswith(prefix)]

    def shape(self, group: str, key: str) -> tuple[int, ...]:
        """The global shape of a dataset."""
        return tuple(self._dataset(group, key).shape)

    def rows(
        self, group: str, key: str, shape: Sequence[int], rows: tuple[int, int] | None = None
    ) -> npt.NDArray[np.float32]:
        """The rows [rows[0], rows[1]) (all by default) of a tensor of global shape `shape`.

        Float32. Raises `InputError` if the checkpoint has no such tensor.
        """
        dataset = self._dataset(group, key)
        if dataset.shape != tuple(shape):
            raise InputError(
                f"{self.path}: {group}/{key} is {dataset.shape}, the model of the configuration "
                f"has {tuple(shape)}; it is a checkpoint of another model"
            )
        start, stop = rows or (0, dataset.shape[0])
        if dataset.is_virtual and start < stop:
            # Again, where it was before: this file is read by those, too, that check no others,
            # and HDF5 crashes on blocks that are made of themselves.
            self.check_map(f"{group}/{key}")
            bounds = self._bounds(dataset)
            first, last = np.searchsorted(bounds, start, "right") - 1, np.searchsorted(bounds, stop)
            for rank in range(int(first), int(last)):
                self.check_part(rank)
        values = np.empty((stop - start, *dataset.shape[1:]), dtype=np.float32)
        if values.size:
            with reporting(self.path):
                dataset.read_direct(values, np.s_[start:stop])
        return values

    def _dataset(self, group: str, key: str) -> Any:
        found = self._tensors.get(f"{group}/{key}")
        if found is None:
            raise InputError(
                f"{self.path}: has no {group}/{key}, which the configuration needs; it is a "
                "checkpoint of another model or optimiser"
            )
        return found

    def _bounds(self, whole: h5py.Dataset) -> Units:
        """Of the rows of each rank in a virtual dataset."""
        return block_bounds(whole.shape[0], self.progress.ranks)

    def _virtual(self) -> dict[str, Any]:
        """The datasets that are put together from the rank files, by name."""
        return {name: dataset for name, dataset in self._tensors.items() if dataset.is_virtual}


def rank_file(rank: int) -> str:
    """The name of the file of a rank's home blocks."""
    return f"rank-{rank:04d}.h5"


def _tensors_of(path: Path, file: h5py.File) -> dict[str, Any]:
    """The datasets of the groups of a checkpoint's file, float32, by name at any depth.

    Each must lie in this file, under one name: through links HDF5 reads what nobody checked, or
    one tensor for another. Raises `InputError`.
    """
    found: dict[str, Any] = {}
    seen = {file}

    def walk(group: h5py.Group, prefix: str, depth: int) -> None:
        for raw in group.id:
            name = prefix + raw.decode()
            if not depth and name not in _GROUPS:
                continue
            link = group.id.links.get_info(raw).type
            item: Any = group[raw] if link == h5py.h5l.TYPE_HARD else None
            if isinstance(item, h5py.Group) and item not in seen and depth < _MOST_DEPTH:
                seen.add(item)
                walk(item, f"{name}/", depth + 1)
                continue
            good = isinstance(item, h5py.Dataset) and item not in seen and depth
            if not good or item.dtype != np.float32 or not item.shape:
                what = "a link" if item is None else f"a {type(item).__name__.lower()}"
                if isinstance(item, h5py.Dataset):
                    what = f"{item.dtype} {item.shape}"
                what += ", which has another name, too" if item in seen else ""
                raise InputError(
                    f"{path}: {name} is {what}, must be a float32 dataset of its own; {ADVICE}"
                )
            seen.add(item)
            found[name] = item

    with reporting(path):
        walk(file, "", 0)
    return found


def _is_stored(dataset: h5py.Dataset) -> bool:
    """Whether all values are in this file, none elsewhere and none missing, which reads as 0."""
    if dataset.is_virtual or dataset.external:
        return False
    if dataset.chunks:
        sizes = zip(dataset.shape, dataset.chunks, strict=True)
        if dataset.id.get_num_chunks() != math.prod(-(-size // step) for size, step in sizes):
            return False
    stored: int = dataset.id.get_storage_size()
    return stored >= dataset.dtype.itemsize * math.prod(dataset.shape)


_Rows = tuple[int, int]


def _source(source: Any, shape: tuple[int, ...]) -> tuple[str, str, _Rows, _Rows]:
    """One source of a virtual dataset: file, dataset, the rows here that it is, its rows there."""
    first, last = rows = _rows_of(source.vspace, shape)
    if source.src_space.get_select_type() == h5py.h5s.SEL_ALL:  # whose extent is not stored
        return source.file_name, source.dset_name, rows, (0, last - first)
    there = _rows_of(source.src_space, (last - first, *shape[1:]))
    return source.file_name, source.dset_name, rows, there


def _rows_of(space: h5py.h5s.SpaceID, shape: Sequence[int]) -> _Rows:
    """The rows [first, last) that a selection of this extent has in whole; else (-1, -1)."""
    # A list of points could have a row twice.
    if space.shape != tuple(shape) or space.get_select_type() == h5py.h5s.SEL_POINTS:
        return -1, -1
    low, high = space.get_select_bounds()
    first, last = low[0], high[0] + 1
    whole = space.get_select_npoints() == (last - first) * math.prod(shape[1:])
    return (first, last) if whole else (-1, -1)


def _unreadable(path: Path, error: OSError) -> UnreadableError:
    return UnreadableError(
        f"{path}: {error.strerror} on {socket.gethostname()}, so nothing is known of the "
        "checkpoint; see to the file system and to permissions, and start again"
    )


def _manifest(folder: Path) -> dict[str, tuple[int, str]]:
    path = folder / MANIFEST
    try:
        if path.exists() and not path.is_file():  # a pipe would be read for ever
            raise InputError(f"{path}: must be a plain file, and is none; {ADVICE}")
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: {error.strerror}; the checkpoint is not complete; use another"
        ) from None
    except OSError as error:
        raise _unreadable(path, error) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); {ADVICE}") from None
    try:
        files = {
            str(name): (int(entry["bytes"]), str(entry["sha256"]))
            for name, entry in content["files"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise InputError(f"{path}: not a manifest; {ADVICE}") from None
    # These names and no others: HDF5 opens them by their names, whatever else is listed.
    ranks = len(files) - 1
    if ranks < 1 or files.keys() != {MAIN_FILE, *map(rank_file, range(ranks))}:
        raise InputError(
            f"{path}: must list {MAIN_FILE} and {rank_file(0)} to {rank_file(max(0, ranks - 1))}, "
            f"got {show(sorted(files))}; {ADVICE}"
        )
    return files

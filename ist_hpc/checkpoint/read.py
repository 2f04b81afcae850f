"""Reading checkpoints: finding the newest valid one, checking it, and reading any rows of it.

No MPI in here: `show` reads a checkpoint alone, a resume reads it on every rank.
"""

import dataclasses
import json
import logging
import re
import socket
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from ist_hpc.common.blocks import block_bounds
from ist_hpc.common.errors import InputError, UnreadableError, show
from ist_hpc.common.files import refuse_vds_prefix, sha256_of
from ist_hpc.common.hdf5_reading import ADVICE, reporting
from ist_hpc.config import loading
from ist_hpc.data.shards import Dataset

FORMAT = "ist_hpc checkpoint"
FORMAT_VERSION = 2
MAIN_FILE = "checkpoint.h5"
MANIFEST = "manifest.json"
FOLDER_PATTERN = re.compile(r"round-([0-9]{8})")

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
    """A checkpoint whose manifest was read; `check_files` before anything is read by HDF5.

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

    @contextmanager
    def opened(self) -> Iterator["OpenCheckpoint"]:
        """The contents, through the main file. Raises `InputError` for what cannot be read."""
        refuse_vds_prefix()
        path = self.folder / MAIN_FILE
        with reporting(path):
            file = h5py.File(path, "r", locking=False)
        with file:
            yield OpenCheckpoint(path, file, len(self.files) - 1)


class OpenCheckpoint:
    """The contents of a checkpoint whose files were checked.

    file    the main file
    ranks   how many rank files there are

    Raises `InputError` for a checkpoint of another version, and for what is missing in it.
    """

    def __init__(self, path: Path, file: h5py.File, ranks: int) -> None:
        self.path, self.file = path, file
        with reporting(path):
            attributes = {
                name: value.item() if isinstance(value, np.generic) else value
                for name, value in file.attrs.items()
            }
            wrote = attributes.get("package_version")
            for name, wanted, otherwise in (
                ("format", FORMAT, "it is no checkpoint of ist_hpc"),
                (
                    "format_version",
                    FORMAT_VERSION,
                    f"it was written by another ist_hpc ({wrote!r} there): use that, or train anew",
                ),
            ):
                if (got := attributes.get(name)) != wanted:
                    raise InputError(
                        f"{path}: attribute `{name}` must be {wanted}, got {show(got)}; {otherwise}"
                    )
            names = [field.name for field in dataclasses.fields(Progress)]
            self.progress = Progress(**{name: attributes[name] for name in names})
            self.config = loading.parse(attributes["config"], f"{path} (config)")
            self.metric = attributes["metric"]
            self.data = DataShape(
                features=attributes["features"],
                outputs=attributes["outputs"],
                sparse=attributes["sparse"],
                classes=tuple(json.loads(attributes["classes"])),
            )
            self._tensors: dict[str, h5py.Dataset] = {}
            file.visititems(self._find_tensor)
        if ranks != self.progress.ranks:
            raise InputError(
                f"{path.parent}: {ranks} rank files, {MAIN_FILE} is of {self.progress.ranks}; "
                f"{ADVICE}"
            )
        self._seen_ranks: set[int] = set()

    def _find_tensor(self, name: str, item: h5py.HLObject) -> None:
        if isinstance(item, h5py.Dataset):
            self._tensors[name] = item

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
            self._require_parts(dataset.shape[0], start, stop)
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

    def _require_parts(self, rows: int, start: int, stop: int) -> None:
        """Raise `InputError` unless the files that have these of all rows can be opened here.

        HDF5 reads NaN where it finds no file, as on a host that does not see it.
        """
        bounds = block_bounds(rows, self.progress.ranks)
        first, last = np.searchsorted(bounds, start, "right") - 1, np.searchsorted(bounds, stop)
        for rank in set(range(int(first), int(last))) - self._seen_ranks:
            path = self.path.parent / rank_file(rank)
            with reporting(path), h5py.File(path, "r", locking=False):
                self._seen_ranks.add(rank)


def rank_file(rank: int) -> str:
    """The name of the file of a rank's home blocks."""
    return f"rank-{rank:04d}.h5"


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
    return files

"""Reading checkpoints: finding the newest valid one, checking it, and reading any rows of it.

No MPI in here: `show` reads a checkpoint alone, a resume reads it on every rank.
"""

import dataclasses
import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from ist_hpc import config as configuration
from ist_hpc.errors import InputError
from ist_hpc.files import refuse_vds_prefix, sha256_of
from ist_hpc.shards import Dataset

FORMAT = "ist_hpc checkpoint"
FORMAT_VERSION = 1
MAIN_FILE = "checkpoint.h5"
MANIFEST = "manifest.json"
FOLDER_PATTERN = re.compile(r"round-(\d{8})")

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
    """

    round: int = 0
    steps: int = 0
    samples: int = 0
    stream_rows: int = 0
    ranks: int = 1
    best: float = -1.0


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


@contextmanager
def reporting(path: Path) -> Iterator[None]:
    """Turn what HDF5 raises into an `InputError` that names the file."""
    try:
        yield
    except (OSError, KeyError, RuntimeError) as error:
        raise InputError(f"{path}: cannot be read ({_first_line(error)})") from None


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
                got = path.stat().st_size
                if got != size:
                    raise InputError(
                        f"{path}: {got} bytes, its manifest says {size}; the checkpoint is damaged"
                    )
                if sha256_of(path) != digest:
                    raise InputError(
                        f"{path}: SHA-256 differs from its manifest; the checkpoint is damaged"
                    )
            except OSError as error:
                raise InputError(f"{path}: {error.strerror}; the checkpoint is damaged") from None

    @contextmanager
    def opened(self) -> Iterator["OpenCheckpoint"]:
        """The contents, through the main file. Raises `InputError` for what cannot be read."""
        refuse_vds_prefix()
        path = self.folder / MAIN_FILE
        with reporting(path):
            file = h5py.File(path, "r", locking="best-effort")
        with file:
            yield OpenCheckpoint(path, file)


class OpenCheckpoint:
    """The contents of a checkpoint."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path, self.file = path, file
        attributes = file.attrs
        if attributes.get("format") != FORMAT:
            raise InputError(f"{path}: not an {FORMAT}")
        if int(attributes.get("format_version", 0)) != FORMAT_VERSION:
            raise InputError(
                f"{path}: format version {attributes.get('format_version')}, this version reads "
                f"{FORMAT_VERSION}"
            )
        try:
            self.progress = Progress(best=float(attributes["best"]))
            for name in ("round", "steps", "samples", "stream_rows", "ranks"):
                setattr(self.progress, name, int(attributes[name]))
            self.config = configuration.parse(str(attributes["config"]), f"{path} (config)")
            self.metric = str(attributes.get("metric", "accuracy"))
            classes = tuple(str(name) for name in json.loads(attributes["classes"]))
            self.data = DataShape(
                features=int(attributes["features"]),
                outputs=int(attributes.get("outputs", len(classes))),
                sparse=bool(attributes.get("sparse", False)),
                classes=classes,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: attribute {error} is missing or not usable") from None

    def keys(self, group: str) -> list[str]:
        """Names of the datasets of `parameters`, `optimizer` or `statistics`, at any depth."""
        names: list[str] = []
        if group in self.file:
            self.file[group].visititems(
                lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None
            )
        return names

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
        if tuple(dataset.shape) != tuple(shape) or dataset.dtype != np.float32:
            raise InputError(
                f"{self.path}: {group}/{key} is {dataset.dtype} {tuple(dataset.shape)}, the model "
                f"of the configuration has float32 {tuple(shape)}; it is a checkpoint of another "
                "model"
            )
        start, stop = rows or (0, dataset.shape[0])
        values = np.empty((stop - start, *dataset.shape[1:]), dtype=np.float32)
        if values.size:
            with reporting(self.path):
                dataset.read_direct(values, np.s_[start:stop])
        return values

    def _dataset(self, group: str, key: str) -> Any:
        name = f"{group}/{key}"
        with reporting(self.path):
            missing = name not in self.file
        if missing:
            raise InputError(
                f"{self.path}: has no {name}, which the configuration needs; it is a checkpoint of "
                "another model or optimiser"
            )
        return self.file[name]


def _manifest(folder: Path) -> dict[str, tuple[int, str]]:
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; the checkpoint is not complete") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); the checkpoint is damaged") from None
    try:
        files = {
            str(name): (int(entry["bytes"]), str(entry["sha256"]))
            for name, entry in content["files"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise InputError(f"{path}: not a manifest; the checkpoint is damaged") from None
    if MAIN_FILE not in files or any(Path(name).name != name for name in files):
        raise InputError(f"{path}: does not list the files of a checkpoint; it is damaged")
    return files


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__

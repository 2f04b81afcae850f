"""Reads a checkpoint: how far its run was, and any rows of its tensors. Uses no MPI."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from ist_hpc.common.blocks import block_bounds
from ist_hpc.common.disk.hdf5_reading import ADVICE, reporting
from ist_hpc.common.errors import InputError, show
from ist_hpc.config import loading
from ist_hpc.data.shards import Dataset

FORMAT = "ist_hpc checkpoint"
FORMAT_VERSION = 2
MAIN_FILE = "checkpoint.h5"


def rank_file(rank: int) -> str:
    """The name of the file of a rank's home blocks."""
    return f"rank-{rank:04d}.h5"


@dataclasses.dataclass
class Progress:
    """The position of a run at the end of a round.

    round        the next round's index
    steps        local steps every rank has trained
    samples      rows trained on by all ranks
    stream_rows  rows each rank has drawn from its stream
    ranks        how many ranks drew them
    best         the best test metric so far, as a fraction of 1; -1 before the first evaluation
    owes_evaluation  whether one was due after this round, and given up on a request to stop
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
    """The properties of a data set on which a model depends.

    features  numbers per row
    outputs   number of classes, or of labels
    sparse    whether rows are sparse and labels are sets
    classes   names of the classes; empty if they have none
    """

    features: int
    outputs: int
    sparse: bool
    classes: tuple[str, ...]

    @staticmethod
    def of(dataset: Dataset) -> "DataShape":
        """The shape of a data set."""
        return DataShape(dataset.features, dataset.outputs, dataset.sparse, dataset.classes)


class OpenCheckpoint:
    """The contents of a checkpoint whose files were checked.

    file    the main file
    ranks   the number of rank files

    Raises `InputError` for a checkpoint of another version, and for missing contents.
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

        They are float32. Raises `InputError` if the checkpoint has no such tensor.
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
        """Raise `InputError` unless the files with these rows can be opened here.

        HDF5 reads NaN if it does not find a file, for example on a host that does not see it.
        """
        bounds = block_bounds(rows, self.progress.ranks)
        first, last = np.searchsorted(bounds, start, "right") - 1, np.searchsorted(bounds, stop)
        for rank in set(range(int(first), int(last))) - self._seen_ranks:
            path = self.path.parent / rank_file(rank)
            with reporting(path), h5py.File(path, "r", locking=False):
                self._seen_ranks.add(rank)

"""A file of predictions: HDF5, in the order of the data set's rows."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ist_hpc import __version__
from ist_hpc.checkpoint.folder import MANIFEST, Checkpoint
from ist_hpc.common.disk.files import (
    exists_error,
    followed,
    hidden_beside,
    put_in_place,
    sha256_of,
)
from ist_hpc.common.disk.hdf5_writing import Hdf5Output
from ist_hpc.common.errors import InputError
from ist_hpc.config.keys import EvaluateConfig
from ist_hpc.data.shard_meta import META_FILE
from ist_hpc.data.shards import Dataset

FORMAT = "ist_hpc predictions"
FORMAT_VERSION = 1
_CHUNK_BYTES = 1 << 20

Column = tuple[str, tuple[int, ...], str, str]
"""Name, shape per row, type and meaning of a dataset of predictions."""


def columns_of(dataset: Dataset, evaluate: EvaluateConfig) -> list[Column]:
    """The datasets of a file of predictions, for classes or for sets of labels."""
    if dataset.sparse:
        k = (max(evaluate.top),)
        return [
            ("predicted", k, "i8", "labels with the largest outputs, best first; -1: none"),
            ("logits", k, "f4", "their outputs; -inf: none"),
        ]
    return [
        ("logits", (dataset.outputs,), "f4", "outputs of the network, before softmax"),
        ("labels", (), "i8", "classes as the data set has them"),
        ("predicted", (), "i8", "class of the largest output"),
    ]


def origin_of(saved: Checkpoint, round_index: int, data: Path, split: str) -> dict[str, Any]:
    """The attributes that say what predictions were computed from. Local."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "package_version": __version__,
        "checkpoint": str(saved.folder.resolve()),
        "checkpoint_manifest_sha256": sha256_of(saved.folder / MANIFEST),
        "round": round_index,
        "data": str(data.resolve()),
        "data_meta_sha256": sha256_of(data / META_FILE),
        "split": split,
    }


class PredictionsFile:
    """A file of predictions, on rank 0: written under another name; `finish` renames it.

    Methods raise `InputError` if the file cannot be written.
    """

    def __init__(
        self,
        target: Path,
        overwrite: bool,
        rows: int,
        columns: Sequence[Column],
        attributes: dict[str, Any],
    ) -> None:
        self._target, self._overwrite = followed(target), overwrite
        self._rows, self._columns = rows, columns
        self._attributes = attributes
        self._beside = hidden_beside(self._target)
        self._output: Hdf5Output | None = None

    def __enter__(self) -> "PredictionsFile":
        return self

    def __exit__(self, *_: object) -> None:
        if self._output is not None:
            self._output.abandon()
        self._beside.unlink(missing_ok=True)

    def begin(self) -> None:
        """Make the empty file."""
        with self._reporting():
            self._output = Hdf5Output(self._beside)
            file = self._output.file
            file.attrs.update(self._attributes)
            for name, shape, kind, about in self._columns:
                row_bytes = np.dtype(kind).itemsize * max(1, int(np.prod(shape)))
                chunk = (min(self._rows, max(1, _CHUNK_BYTES // row_bytes)), *shape)
                dataset = file.create_dataset(
                    name, (self._rows, *shape), kind, chunks=chunk, fletcher32=True
                )
                dataset.attrs["about"] = about

    def add(self, start: int, batch: Mapping[str, Tensor]) -> None:
        """Write the rows from `start` on: one tensor per column."""
        assert self._output is not None
        with self._reporting():
            for name, *_ in self._columns:
                values = batch[name]
                self._output.file[name][start : start + len(values)] = values.numpy()
            self._output.check()

    def finish(self, result: dict[str, float]) -> None:
        """Add the metrics, flush to disk and give the file its name."""
        assert self._output is not None
        with self._reporting():
            self._output.file.attrs.update(result)
            self._output.close()
            put_in_place(self._beside, self._target, self._overwrite)

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except FileExistsError:
            raise exists_error(self._target, "--predictions") from None
        except (OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"--predictions {self._target}: cannot be written ({reason})"
            ) from None

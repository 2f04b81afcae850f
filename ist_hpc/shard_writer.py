"""Writing a data set: streaming, checked, and complete or absent.

Everything goes into a hidden sibling folder that is renamed into place at the very end, so a
reader never sees half a data set, and a failure leaves nothing behind.
"""

import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from ist_hpc import __version__
from ist_hpc.errors import InputError
from ist_hpc.files import flush_to_disk, sha256_of
from ist_hpc.shard_meta import FEATURE_DTYPES, FORMAT_VERSION, META_FILE, SPLITS, Meta, Shard

CHUNK_BYTES = 256 * 1024  # small enough to read few rows, large enough for a parallel file system
SHARD_BYTES = 256 * 1024 * 1024  # of features, where the caller does not say
# The file format of HDF5 1.10 (2016), the oldest with a checksum on the metadata that matters: in
# older ones a flipped bit in the index of the chunks can put a chunk in the place of another.
_HDF5_FORMAT = ("v110", "v110")
_ATTRIBUTE_BYTES = 32 * 1024  # HDF5 keeps an attribute in 64 KiB; with this much there is room


class DatasetWriter:
    """Writes a data set folder; a context manager.

    with DatasetWriter("data/mine", name="mine", feature_shape=(64,), classes=["no", "yes"],
                       made_by={"command": "python convert.py"}) as writer:
        writer.append("train", features, labels)  # any number of times, any number of rows
        writer.append("test", features, labels)

    Rows go to the current shard of their split; a shard ends when it has `shard_rows` rows (about
    256 MiB of features by default) or at `end_shard`. Memory is bounded by the rows of one call.
    Leaving the block normally flushes every file to disk, checksums it, writes `meta.json` and
    renames the folder into place; leaving it by an exception removes everything that was written.

    `made_by` may hold anything JSON can, such as counts; it can be added to until the block ends
    (`writer.made_by["skipped"] = 3`). A missing `command`, `parameters` or `package_version` is
    filled in. All mistakes are `InputError`s, an existing folder without `overwrite` included;
    `overwrite` replaces only a folder that is a data set.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        name: str,
        feature_shape: Iterable[int],
        feature_dtype: str = "float32",
        classes: Iterable[str],
        made_by: Mapping[str, Any] | None = None,
        feature_description: str = "",
        shard_rows: int | None = None,
        overwrite: bool = False,
    ) -> None:
        self.path = Path(path)
        self.name = name
        self.feature_shape = tuple(int(size) for size in feature_shape)
        self.feature_dtype = feature_dtype
        self.feature_description = feature_description
        self.classes = tuple(classes)
        defaults = {"command": shlex.join(sys.argv), "parameters": {}}
        self.made_by = {**defaults, "package_version": __version__, **(made_by or {})}
        self._overwrite = overwrite
        self._check_arguments(shard_rows)
        self._shard_rows = shard_rows or max(1, SHARD_BYTES // self._row_bytes())
        # Resolved, so that a symbolic link to a data set is followed and not replaced.
        self._target = self.path.resolve()
        self._partial = self._target.with_name(f".{self._target.name}.partial-{os.getpid()}")
        self._open: dict[str, _OpenShard] = {}
        self._done: dict[str, list[Shard]] = {}

    def _check_arguments(self, shard_rows: int | None) -> None:
        if self.feature_dtype not in FEATURE_DTYPES:
            allowed = " or ".join(FEATURE_DTYPES)
            raise InputError(f"feature_dtype must be {allowed} (got {self.feature_dtype})")
        if not self.feature_shape or min(self.feature_shape) < 1:
            raise InputError(
                f"feature_shape must be one or more sizes >= 1 (got {self.feature_shape})"
            )
        if not self.classes or len(set(self.classes)) < len(self.classes):
            raise InputError("classes must be one or more different names")
        if not all(isinstance(name, str) for name in self.classes):
            raise InputError("classes must be strings; for numbers, [str(n) for n in ...]")
        if shard_rows is not None and shard_rows < 1:
            raise InputError(f"shard_rows must be >= 1 (got {shard_rows})")

    def _row_bytes(self) -> int:
        return int(np.prod(self.feature_shape)) * np.dtype(self.feature_dtype).itemsize

    def __enter__(self) -> "DatasetWriter":
        check_target(self.path, self._overwrite)
        try:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            self._partial.mkdir()
        except FileExistsError as error:
            raise InputError(
                f"{error.filename} is in the way, left by a process that was killed or in use by "
                "one on another host; remove it if no such process runs"
            ) from error
        except OSError as error:
            raise InputError(f"cannot make the folder {self.path}: {error.strerror}") from error
        return self

    def append(
        self, split: str, features: npt.NDArray[Any], labels: npt.NDArray[np.integer[Any]]
    ) -> None:
        """Add rows to `split` ("train" or "test").

        `features` is [n, *feature_shape] of exactly `feature_dtype`, all finite; `labels` is [n] of
        any integer dtype, 0 <= label < number of classes. Raises InputError.
        """
        features, labels = np.asarray(features), np.asarray(labels)
        self._check_rows(split, features, labels)
        start = 0
        while start < len(labels):
            shard = self._open.get(split) or self._start_shard(split)
            stop = min(len(labels), start + self._shard_rows - shard.rows)
            try:
                shard.append(features[start:stop], labels[start:stop])
            except OSError as error:
                raise InputError(f"{shard.path}: cannot be written ({error})") from error
            start = stop
            if shard.rows == self._shard_rows:
                self.end_shard(split)

    def end_shard(self, split: str) -> None:
        """End the current shard of `split`, if it has rows; the next row begins a new one."""
        shard = self._open.pop(split, None)
        if shard is not None:
            try:
                self._done.setdefault(split, []).append(shard.finish())
            except OSError as error:
                raise InputError(f"{shard.path}: cannot be written ({error})") from error

    def _check_rows(self, split: str, features: npt.NDArray[Any], labels: npt.NDArray[Any]) -> None:
        where = f"{self.path}, split {split}"
        if split not in SPLITS:
            raise InputError(f"{self.path}: split must be {' or '.join(SPLITS)} (got {split!r})")
        if features.dtype != np.dtype(self.feature_dtype):
            raise InputError(
                f"{where}: features must be {self.feature_dtype} (got {features.dtype}); "
                f"convert them with features.astype('{self.feature_dtype}')"
            )
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise InputError(
                f"{where}: labels must be a vector of integers "
                f"(got shape {labels.shape}, {labels.dtype})"
            )
        if features.shape != (len(labels), *self.feature_shape):
            raise InputError(
                f"{where}: features of {len(labels)} labels must have the shape "
                f"{(len(labels), *self.feature_shape)} (got {features.shape})"
            )
        wrong = np.flatnonzero((labels < 0) | (labels >= len(self.classes)))
        if len(wrong):
            raise InputError(
                f"{where}: labels must be 0 to {len(self.classes) - 1} "
                f"(got {labels[wrong[0]]} in row {wrong[0]} of this block)"
            )
        if features.dtype.kind == "f" and not np.isfinite(features).all():
            row = int(np.argwhere(~np.isfinite(features))[0, 0])
            raise InputError(f"{where}: features must be finite (row {row} of this block is not)")

    def _start_shard(self, split: str) -> "_OpenShard":
        path = self._partial / f"{split}-{len(self._done.get(split, ())):04d}.h5"
        try:
            shard = _OpenShard(path, self, split, self._shard_rows)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error})") from error
        self._open[split] = shard
        return shard

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._publish()
        except OSError as failure:
            raise InputError(f"{self.path}: cannot be written ({failure})") from failure
        finally:
            for shard in self._open.values():
                shard.abandon()
            shutil.rmtree(self._partial, ignore_errors=True)

    def _publish(self) -> None:
        for split in list(self._open):
            self.end_shard(split)
        if not self._done:
            raise InputError(f"{self.path}: no rows were appended; a data set needs at least one")
        meta = Meta(
            name=self.name,
            feature_shape=self.feature_shape,
            feature_dtype=self.feature_dtype,
            feature_description=self.feature_description,
            classes=self.classes,
            made_by=self.made_by,
            shards={split: tuple(self._done[split]) for split in SPLITS if split in self._done},
        )
        (self._partial / META_FILE).write_text(meta.to_json(), encoding="utf-8")
        flush_to_disk(self._partial / META_FILE)
        flush_to_disk(self._partial)
        self._rename_into_place()
        flush_to_disk(self._target.parent)

    def _rename_into_place(self) -> None:
        check_target(self.path, self._overwrite)  # again: hours may have passed
        if not self._target.exists():
            os.rename(self._partial, self._target)
            return
        old = self._target.with_name(f".{self._target.name}.old-{os.getpid()}")
        os.rename(self._target, old)
        try:
            os.rename(self._partial, self._target)
        except BaseException:
            os.rename(old, self._target)
            raise
        shutil.rmtree(old, ignore_errors=True)


class _OpenShard:
    """An HDF5 file being written; grows by rows."""

    def __init__(self, path: Path, dataset: DatasetWriter, split: str, most_rows: int) -> None:
        self.path = path
        self.rows = 0
        self._file = h5py.File(path, "w", libver=_HDF5_FORMAT, locking="best-effort")
        try:
            self._describe(dataset, split)
            shape = dataset.feature_shape
            features = self._create("features", shape, dataset.feature_dtype, most_rows)
            features.attrs["description"] = (
                f"one row a sample. {dataset.feature_description}".rstrip()
            )
            labels = self._create("labels", (), "int64", most_rows)
            labels.attrs["description"] = "index of the sample's class in `classes`, from 0"
            labels.attrs["num_classes"] = len(dataset.classes)
            if sum(len(name.encode()) + 24 for name in dataset.classes) <= _ATTRIBUTE_BYTES:
                labels.attrs["classes"] = list(dataset.classes)
        except BaseException:
            self._file.close()
            raise

    def _describe(self, dataset: DatasetWriter, split: str) -> None:
        self._file.attrs["description"] = (
            f"a shard of the {split} rows of the ist_hpc data set {dataset.name}; see meta.json"
        )
        self._file.attrs["dataset_name"] = dataset.name
        self._file.attrs["split"] = split
        self._file.attrs["kind"] = "dense"
        self._file.attrs["format_version"] = FORMAT_VERSION

    def _create(
        self, name: str, shape: tuple[int, ...], dtype: str, most_rows: int
    ) -> h5py.Dataset:
        row_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        # Never longer than the shard: the last chunk is stored at its full length.
        chunk_rows = min(most_rows, max(1, CHUNK_BYTES // row_bytes))
        return self._file.create_dataset(
            name,
            shape=(0, *shape),
            maxshape=(None, *shape),
            chunks=(chunk_rows, *shape),
            dtype=np.dtype(dtype).newbyteorder("<"),
            fletcher32=True,
        )

    def append(self, features: npt.NDArray[Any], labels: npt.NDArray[Any]) -> None:
        stop = self.rows + len(labels)
        for name, values in (("features", features), ("labels", labels)):
            dataset = self._file[name]
            dataset.resize(stop, axis=0)
            dataset[self.rows : stop] = values
        self.rows = stop

    def finish(self) -> Shard:
        """Close the file, flush it to disk and read it back for its checksum."""
        self._file.flush()
        self._file.close()
        flush_to_disk(self.path)
        return Shard(self.path.name, self.rows, self.path.stat().st_size, sha256_of(self.path))

    def abandon(self) -> None:
        """Close the file, whatever state it is in; it is about to be removed."""
        # A full disk fails the close as well; what led here is the error to report.
        with suppress(OSError, RuntimeError):
            self._file.close()


def check_target(path: Path, overwrite: bool) -> None:
    """Raise InputError unless a data set may be written at `path`.

    With `overwrite` an existing data set may be replaced; any other folder may not, so that a
    mistyped `--output` never deletes anything else.
    """
    if not path.exists():
        return
    if not overwrite:
        raise InputError(f"{path} exists; give another folder, or replace it (--overwrite)")
    if not path.is_dir():
        raise InputError(f"{path} is not a folder, so it is not overwritten")
    strangers = [p.name for p in path.iterdir() if p.name != META_FILE and p.suffix != ".h5"]
    if strangers or not (path / META_FILE).is_file():
        has = f"it holds {min(strangers)}" if strangers else f"it has no {META_FILE}"
        raise InputError(f"{path} is not a data set ({has}), so it is not overwritten")

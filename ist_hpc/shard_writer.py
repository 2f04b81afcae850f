"""Writing a data set: streaming, checked, and complete or absent.

Everything goes into a hidden sibling folder that is renamed into place at the very end, so a
reader never sees half a data set, and a failure leaves nothing behind.
"""

import glob
import logging
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np

from ist_hpc import __version__, shard_files
from ist_hpc.errors import InputError
from ist_hpc.files import flush_to_disk, partial_names, sha256_of
from ist_hpc.label_counts import LabelCounts
from ist_hpc.shard_layouts import Layout, layout_of
from ist_hpc.shard_meta import (
    FEATURE_DTYPES,
    FORMAT_VERSION,
    KINDS,
    META_FILE,
    MOST_COLUMNS,
    SPLITS,
    Meta,
    Schema,
    Shard,
)

log = logging.getLogger("ist_hpc")


class DatasetWriter:
    """Writes a data set folder; a context manager.

    with DatasetWriter("data/mine", name="mine", feature_shape=(64,), classes=["no", "yes"],
                       made_by={"command": "python convert.py"}) as writer:
        writer.append("train", features, labels)  # any number of times, any number of rows
        writer.append("test", features, labels)

    With `kind="sparse"` features and labels are `csr.Csr`s. `classes` are names, or how many there
    are where they have none.

    Rows go to the current shard of their split; a shard ends when it has `shard_rows` rows (by
    default about 256 MiB: of features, or of sparse entries) or at `end_shard`. Memory is bounded
    by the rows of one call, a block of each dataset, and of a sparse set 8 bytes a label. Leaving
    the block normally flushes every file to disk, checksums it, writes `meta.json` and renames the
    folder into place; leaving it by an exception removes everything that was written.

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
        kind: str = "dense",
        feature_shape: Iterable[int],
        feature_dtype: str = "float32",
        classes: Iterable[str] | int,
        made_by: Mapping[str, Any] | None = None,
        feature_description: str = "",
        shard_rows: int | None = None,
        overwrite: bool = False,
    ) -> None:
        self.path = Path(path)
        self.name = name
        counted = isinstance(classes, int | np.integer) and not isinstance(classes, bool)
        names = () if counted else tuple(cast(Iterable[str], classes))
        self.schema = Schema(
            kind=kind,
            feature_shape=tuple(int(size) for size in feature_shape),
            feature_dtype=feature_dtype,
            feature_description=feature_description,
            classes=names,
            outputs=int(cast(int, classes)) if counted else len(names),
        )
        defaults = {"command": shlex.join(sys.argv), "parameters": {}}
        self.made_by = {**defaults, "package_version": __version__, **(made_by or {})}
        self._overwrite = overwrite
        _check_schema(self.schema)
        if shard_rows is not None and shard_rows < 1:
            raise InputError(f"shard_rows must be >= 1 (got {shard_rows})")
        self._shard_rows = shard_rows
        self._layout = layout_of(self.schema)
        self._label_counts = LabelCounts(self.schema.outputs) if kind == "sparse" else None
        # Resolved, so that a symbolic link to a data set is followed and not replaced.
        self._target = self.path.resolve()
        self._partial = self._target.with_name(partial_names(self._target.name, str(os.getpid())))
        self._open: dict[str, _OpenShard] = {}
        self._done: dict[str, list[Shard]] = {}

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
        self._name_left_behind()
        return self

    def _name_left_behind(self) -> None:
        """Warn of what a preparation that was killed left: it may be large, and nobody else's."""
        alike = partial_names(glob.escape(self._target.name))
        for left in sorted({*self._target.parent.glob(alike)} - {self._partial}):
            log.warning(
                "%s was left by a preparation that was killed, or belongs to one that runs; remove "
                "it if none does",
                left,
            )

    def append(self, split: str, features: Any, labels: Any) -> None:
        """Add rows to `split` ("train" or "test").

        Dense: `features` is an array [n, *feature_shape] of exactly `feature_dtype`, all finite;
        `labels` is [n] of any integer dtype, 0 <= label < number of classes. Sparse: `features` is
        a `Csr` with float32 values, all finite, `labels` one without values; columns ascend in a
        row, which may have none. Raises InputError.
        """
        if split not in SPLITS:
            raise InputError(f"{self.path}: split must be {' or '.join(SPLITS)} (got {split!r})")
        features, labels = self._layout.check(f"{self.path}, split {split}", features, labels)
        start = 0
        while start < len(labels):
            shard = self._open.get(split) or self._start_shard(split)
            stop = shard.content.room(features, labels, start)
            try:
                shard.append(features, labels, start, stop)
            except OSError as error:
                raise _unwritable(shard.path, error) from error
            start = stop
            if shard.content.full:
                self.end_shard(split)
        if self._label_counts is not None and split == "train":
            self._label_counts.add(labels)

    def end_shard(self, split: str) -> None:
        """End the current shard of `split`, if it has rows; the next row begins a new one."""
        shard = self._open.pop(split, None)
        if shard is not None:
            try:
                self._done.setdefault(split, []).append(shard.finish())
            except OSError as error:
                raise _unwritable(shard.path, error) from error

    def _start_shard(self, split: str) -> "_OpenShard":
        path = self._partial / f"{split}-{len(self._done.get(split, ())):04d}.h5"
        try:
            shard = _OpenShard(path, self.name, self._layout, split, self._shard_rows)
        except OSError as error:
            raise _unwritable(path, error) from error
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
            raise _unwritable(self.path, failure) from failure
        finally:
            for shard in self._open.values():
                shard.abandon()
            shutil.rmtree(self._partial, ignore_errors=True)

    def _publish(self) -> None:
        for split in list(self._open):
            self.end_shard(split)
        if not self._done:
            raise InputError(f"{self.path}: no rows were appended; a data set needs at least one")
        side = None
        if self._label_counts is not None and "train" in self._done:
            side = self._label_counts.write(self._partial)
        meta = Meta(
            **vars(self.schema),
            name=self.name,
            made_by=self.made_by,
            shards={split: tuple(self._done[split]) for split in SPLITS if split in self._done},
            label_counts=side,
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


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: cannot be written ({error.strerror or error})")


def _check_schema(schema: Schema) -> None:
    """Raise InputError unless a data set can be so."""
    if schema.kind not in KINDS:
        raise InputError(f"kind must be {' or '.join(KINDS)} (got {schema.kind})")
    dtypes, shape = FEATURE_DTYPES[schema.kind], schema.feature_shape
    if schema.feature_dtype not in dtypes:
        allowed = " or ".join(dtypes)
        raise InputError(f"feature_dtype must be {allowed} (got {schema.feature_dtype})")
    if not shape or min(shape) < 1:
        raise InputError(f"feature_shape must be one or more sizes >= 1 (got {shape})")
    if schema.kind == "sparse" and (len(shape) > 1 or shape[0] > MOST_COLUMNS):
        raise InputError(
            f"feature_shape of a sparse data set must be one size, 1 to {MOST_COLUMNS} "
            f"(got {shape})"
        )
    if not all(isinstance(name, str) for name in schema.classes):
        raise InputError("classes must be strings; for numbers, [str(n) for n in ...]")
    if schema.outputs < 1 or 0 < len(schema.classes) != len(set(schema.classes)):
        raise InputError("classes must be one or more different names, or how many there are")
    if schema.outputs > MOST_COLUMNS:
        raise InputError(f"classes must be at most {MOST_COLUMNS} (got {schema.outputs})")


class _OpenShard:
    """An HDF5 file being written; grows by rows."""

    def __init__(
        self, path: Path, name: str, layout: Layout, split: str, shard_rows: int | None
    ) -> None:
        self.path = path
        self.rows = 0
        self._output = shard_files.begin(path)
        try:
            file = self._output.file
            file.attrs["description"] = (
                f"a shard of the {split} rows of the ist_hpc data set {name}; see meta.json"
            )
            file.attrs["dataset_name"] = name
            file.attrs["split"] = split
            file.attrs["kind"] = layout.schema.kind
            file.attrs["format_version"] = FORMAT_VERSION
            self.content = layout.begin(file, shard_rows)
        except BaseException:
            self._output.abandon()
            raise

    def append(self, features: Any, labels: Any, start: int, stop: int) -> None:
        self.content.append(features, labels, start, stop)
        self._output.check()
        self.rows += stop - start

    def finish(self) -> Shard:
        """Close the file, flush it to disk and read it back for its checksum."""
        self.content.finish()
        self._output.close()
        flush_to_disk(self.path)
        return Shard(self.path.name, self.rows, self.path.stat().st_size, sha256_of(self.path))

    def abandon(self) -> None:
        """Close the file, whatever state it is in; it is about to be removed."""
        self._output.abandon()


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

"""Writing a data set: streaming, checked, and complete or absent.

Everything goes into a hidden sibling folder that is renamed into place at the very end, so a
reader never sees half a data set, and a failure leaves nothing behind; see `shard_place`.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np

from ist_hpc import __version__
from ist_hpc.common.errors import InputError
from ist_hpc.common.files import (
    flush_to_disk,
    sha256_of,
    write_text,
)
from ist_hpc.common.names import command_line
from ist_hpc.data import shard_files
from ist_hpc.data.label_counts import LabelCounts
from ist_hpc.data.shard_layouts import Layout, layout_of
from ist_hpc.data.shard_meta import (
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
from ist_hpc.data.shard_place import Place
from ist_hpc.runtime.stopping import end_request

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
    `overwrite` replaces only a folder that is a data set. An empty folder counts as none.

    While another process, on this host or another, writes the same data set, entering the block
    waits for it. What it made meanwhile is taken, and `AlreadyMadeError` raised, if its kind, names
    and `made_by["parameters"]` are the same; otherwise it is an existing folder like others.

    if_missing  raise `AlreadyMadeError` for any data set that is there, whoever made it
    since_s     time.time() from which on a data set counts as made meanwhile; by default now
    waiting     is told, again and again, for how many seconds it has waited; may raise to give up
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
        if_missing: bool = False,
        since_s: float | None = None,
        waiting: Callable[[float], None] | None = None,
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
        defaults = {"command": command_line(sys.argv), "parameters": {}}
        self.made_by = {**defaults, "package_version": __version__, **(made_by or {})}
        _check_schema(self.schema)
        if shard_rows is not None and shard_rows < 1:
            raise InputError(f"shard_rows must be >= 1 (got {shard_rows})")
        self._shard_rows = shard_rows
        self._layout = layout_of(self.schema)
        self._label_counts = LabelCounts(self.schema.outputs) if kind == "sparse" else None
        since_s = time.time() if since_s is None else since_s
        self._place = Place(self.path, overwrite, if_missing, since_s, waiting)
        self._open: dict[str, _ShardBeingWritten] = {}
        self._done: dict[str, list[Shard]] = {}

    def __enter__(self) -> "DatasetWriter":
        self._place.enter(self._is_the_same)
        return self

    def _is_the_same(self, found: Meta) -> bool:
        """Whether a data set is what this one will be, as far as that is known beforehand."""
        mine, other = (
            [
                *(getattr(schema, field) for field in vars(self.schema)),
                made_by["parameters"],
                sorted(dict(made_by.get("file_bytes", {})).values()),
            ]
            for schema, made_by in (
                (self.schema, json.loads(json.dumps(self.made_by))),
                (found, found.made_by),
            )
        )
        return found.name == self.name and mine == other

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
        with end_request.held_back():
            self._append(split, features, labels)

    def _append(self, split: str, features: Any, labels: Any) -> None:
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
        with end_request.held_back():
            shard = self._open.pop(split, None)
            if shard is not None:
                try:
                    self._done.setdefault(split, []).append(shard.finish())
                except OSError as error:
                    raise _unwritable(shard.path, error) from error

    def _start_shard(self, split: str) -> "_ShardBeingWritten":
        path = self._place.partial / f"{split}-{len(self._done.get(split, ())):04d}.h5"
        try:
            shard = _ShardBeingWritten(path, self.name, self._layout, split, self._shard_rows)
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
            with end_request.held_back(finishing=True):
                try:
                    for shard in self._open.values():
                        shard.abandon()
                finally:
                    self._place.leave()

    def _publish(self) -> None:
        for split in list(self._open):
            self.end_shard(split)
        if not self._done:
            raise InputError(f"{self.path}: no rows were appended; a data set needs at least one")
        side = None
        if self._label_counts is not None and "train" in self._done:
            with end_request.held_back():
                side = self._label_counts.write(self._place.partial)
        meta = Meta(
            **vars(self.schema),
            name=self.name,
            made_by=self.made_by,
            shards={split: tuple(self._done[split]) for split in SPLITS if split in self._done},
            label_counts=side,
        )
        write_text(self._place.partial / META_FILE, meta.to_json())
        with end_request.held_back(finishing=True):
            self._place.publish(self._is_the_same)


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


class _ShardBeingWritten:
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

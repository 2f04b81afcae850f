"""Writes a data set: streaming, checked, and complete or absent.

Everything goes into a hidden sibling folder that is renamed into place at the very end, so a
reader never sees half a data set, and a failure leaves nothing behind; see `place`.
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
from ist_hpc.common.disk.files import write_text
from ist_hpc.common.disk.names import command_line
from ist_hpc.common.errors import InputError
from ist_hpc.data.label_counts import LabelCounts
from ist_hpc.data.shard_files import ShardOutput
from ist_hpc.data.shard_meta import META_FILE, SPLITS, Meta, Schema, Shard
from ist_hpc.data.stores import store_of
from ist_hpc.data.writing.place import Place
from ist_hpc.runtime.stopping import end_request

log = logging.getLogger("ist_hpc")


class DatasetWriter:
    """Writes a data set folder; a context manager.

    with DatasetWriter("data/mine", name="mine", feature_shape=(64,), classes=["no", "yes"],
                       made_by={"command": "python convert.py"}) as writer:
        writer.append("train", features, labels)  # any number of times, any number of rows
        writer.append("test", features, labels)

    With `kind="sparse"` features and labels are `csr.Csr`s. `classes` are names, or a number if
    they have none.

    Rows go to the current shard of their split; a shard ends when it has `shard_rows` rows (by
    default about 256 MiB: of features, or of sparse entries) or at `end_shard`. Memory is bounded
    by the rows of one call, a block of each dataset, and 8 bytes per label of a sparse set. Leaving
    the block normally flushes every file to disk, checksums it, writes `meta.json` and renames the
    folder into place; leaving it by an exception removes everything that was written.

    `made_by` may hold anything JSON can, such as counts; it can be added to until the block ends
    (`writer.made_by["skipped"] = 3`). A missing `command`, `parameters` or `package_version` is
    filled in. All mistakes are `InputError`s, an existing folder without `overwrite` included;
    `overwrite` replaces only a folder that is a data set. An empty folder counts as none.

    While another process, on this host or another, writes the same data set, entering the block
    waits for it. If the kind, names and `made_by["parameters"]` of the result are the same, it is
    used and `AlreadyMadeError` raised; otherwise it is an existing folder like others.

    if_missing  raise `AlreadyMadeError` for any data set that is there, whoever made it
    since_s     time.time() from which on a data set counts as made meanwhile; by default now
    waiting     called again and again with the seconds waited so far; may raise to give up
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
        self.schema.check()
        if shard_rows is not None and shard_rows < 1:
            raise InputError(f"shard_rows must be >= 1 (got {shard_rows})")
        self._shard_rows = shard_rows
        self._store = store_of(self.schema)
        self._label_counts = LabelCounts(self.schema.outputs) if self.schema.sparse else None
        since_s = time.time() if since_s is None else since_s
        self._place = Place(self.path, overwrite, if_missing, since_s, waiting)
        self._open: dict[str, ShardOutput] = {}
        self._done: dict[str, list[Shard]] = {}

    def __enter__(self) -> "DatasetWriter":
        self._place.enter(self._is_the_same)
        return self

    def _is_the_same(self, found: Meta) -> bool:
        """Whether a data set equals this one to be written, as far as that is known beforehand."""
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
        row, which may be empty. Raises InputError.
        """
        if split not in SPLITS:
            raise InputError(f"{self.path}: split must be {' or '.join(SPLITS)} (got {split!r})")
        features, labels = self._store.check(f"{self.path}, split {split}", features, labels)
        with end_request.held_back():
            self._append(split, features, labels)

    def _append(self, split: str, features: Any, labels: Any) -> None:
        start = 0
        while start < len(labels):
            shard = self._open.get(split) or self._start_shard(split)
            stop = shard.room(features, labels, start)
            try:
                shard.append(features, labels, start, stop)
            except OSError as error:
                raise _unwritable(shard.path, error) from error
            start = stop
            if shard.full:
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

    def _start_shard(self, split: str) -> ShardOutput:
        path = self._place.partial / f"{split}-{len(self._done.get(split, ())):04d}.h5"
        try:
            shard = self._store.begin(path, self.name, split, self._shard_rows)
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

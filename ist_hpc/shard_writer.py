"""Writing a data set: streaming, checked, and complete or absent.

Everything goes into a hidden sibling folder that is renamed into place at the very end, so a
reader never sees half a data set, and a failure leaves nothing behind. Whoever writes holds a lock
beside it, `.NAME.lock`: others that want to write the same wait, and take what was made meanwhile.
"""

import errno
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np

from ist_hpc import __version__, shard_files
from ist_hpc.errors import InputError
from ist_hpc.files import (
    flush_to_disk,
    hidden_beside,
    hidden_name,
    is_of_dead_process,
    partial_names,
    put_in_place,
    set_aside,
    sha256_of,
    write_text,
)
from ist_hpc.label_counts import LabelCounts
from ist_hpc.locks import FileLock, owner_facts
from ist_hpc.mpi_environment import rank_of_launcher
from ist_hpc.names import command_line
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
    load_meta,
)
from ist_hpc.stopping import end_request

log = logging.getLogger("ist_hpc")

_KINDS_BESIDE = ("partial", "shuffle", "old")  # of hidden names that a writer may leave
_TERMINAL_EVERY_S, _LOG_EVERY_S = 5.0, 600.0
_TAKEN_MEANWHILE = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}


class AlreadyMadeError(Exception):
    """There is the data set that was to be written: another process made it. No fault.

    The message is one line that says whose it is; whoever wanted to write it can use it.
    """


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
        self._overwrite, self._if_missing = overwrite, if_missing
        self._since_s = time.time() if since_s is None else since_s
        self._waiting = waiting
        _check_schema(self.schema)
        if shard_rows is not None and shard_rows < 1:
            raise InputError(f"shard_rows must be >= 1 (got {shard_rows})")
        self._shard_rows = shard_rows
        self._layout = layout_of(self.schema)
        self._label_counts = LabelCounts(self.schema.outputs) if kind == "sparse" else None
        # Resolved, so that a symbolic link to a data set is followed and not replaced.
        self._target = Path(os.path.realpath(self.path))
        self._lock = FileLock(self._target.parent / hidden_name(self._target.name, "lock"))
        self._partial = hidden_beside(self._target)
        self._seen: _Seen = None
        self._owner, self._next_word_s = "", 0.0
        self._open: dict[str, _OpenShard] = {}
        self._done: dict[str, list[Shard]] = {}

    def __enter__(self) -> "DatasetWriter":
        check_target(self.path, self._overwrite, self._if_missing, self._since_s)
        self._seen = _seen(self._target)
        try:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            self._lock.take(owner_facts(), self._wait)
            try:
                self._clear_what_was_left()
                self._take_what_was_made()
                self._seen = _seen(self._target)
                self._partial.mkdir()
            except BaseException:
                self._leave()
                raise
        except OSError as error:
            where = f": {error.filename}" if error.filename == str(self._lock.path) else ""
            raise InputError(
                f"cannot make the folder {self.path}: {error.strerror}{where}"
            ) from error
        return self

    def _wait(self, owner: str, waited_s: float) -> None:
        """Say, now and then, who is waited for and how far it is."""
        self._owner = owner
        if self._waiting is not None:
            self._waiting(waited_s)
        if waited_s >= self._next_word_s and rank_of_launcher() == 0:
            every_s = _TERMINAL_EVERY_S if sys.stderr.isatty() else _LOG_EVERY_S
            self._next_word_s = waited_s + every_s
            log.warning(
                "%s is being made by %s, %.1f MB so far; waiting for it",
                *(self.path, owner, _bytes_beside(self._target) / 1e6),
            )

    def _take_what_was_made(self) -> None:
        """Raise `AlreadyMadeError` if it was made meanwhile, `InputError` if that is in the way.

        To be asked again before it gets its name: hours may have passed, and a file system may have
        no locks.
        """
        was_made = _made_since(self._target, self._since_s) or (
            _seen(self._target) not in (None, self._seen)
        )
        if was_made and (self._target / META_FILE).is_file():
            found = load_meta(self._target)
            if self._if_missing or self._is_the_same(found):
                raise AlreadyMadeError(_whose(self.path, found, self._owner))
            if not self._overwrite:
                raise InputError(
                    f"{self.path} was made meanwhile with other parameters, by "
                    f"`{found.made_by['command']}`; give another folder, or replace it "
                    "(--overwrite)"
                )
        check_target(self.path, self._overwrite, self._if_missing)

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

    def _clear_what_was_left(self) -> None:
        """Remove what writers that were killed left: it may be large, and is nobody else's.

        That is certain of those of this machine whose process is no more, since their lock is this
        one's now. Others are named. A data set whose replacement was interrupted gets its name.
        """
        parent, name = self._target.parent, self._target.name
        for kind in _KINDS_BESIDE:
            for left in sorted(parent.glob(partial_names(name, kind))):
                certain = self._lock.works and is_of_dead_process(left)
                if (left / META_FILE).is_file() and kind == "old" and _is_absent(self._target):
                    if certain:
                        put_in_place(left, self._target)
                        log.warning("%s is there again: its replacement was interrupted", self.path)
                    else:
                        log.warning(
                            "%s is the data set %s, whose replacement was interrupted or goes on; "
                            "rename it if none does",
                            *(left, self.path),
                        )
                elif certain:
                    log.warning("removing %s, left by a preparation that was killed", left)
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    log.warning(
                        "%s was left by a preparation that was killed, or belongs to one that "
                        "runs; remove it if none does",
                        left,
                    )

    def _leave(self) -> None:
        """Remove what was written and has not got its name, and let others in."""
        try:
            shutil.rmtree(self._partial, ignore_errors=True)
        finally:
            self._lock.release(remove=True)

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
            with end_request.held_back(finishing=True):
                try:
                    for shard in self._open.values():
                        shard.abandon()
                finally:
                    self._leave()

    def _publish(self) -> None:
        for split in list(self._open):
            self.end_shard(split)
        if not self._done:
            raise InputError(f"{self.path}: no rows were appended; a data set needs at least one")
        side = None
        if self._label_counts is not None and "train" in self._done:
            with end_request.held_back():
                side = self._label_counts.write(self._partial)
        meta = Meta(
            **vars(self.schema),
            name=self.name,
            made_by=self.made_by,
            shards={split: tuple(self._done[split]) for split in SPLITS if split in self._done},
            label_counts=side,
        )
        write_text(self._partial / META_FILE, meta.to_json())
        with end_request.held_back(finishing=True):
            self._rename_into_place()

    def _rename_into_place(self) -> None:
        while True:
            self._take_what_was_made()
            try:
                if _is_absent(self._target):
                    put_in_place(self._partial, self._target)
                else:
                    self._replace()
            except OSError as error:
                if error.errno in _TAKEN_MEANWHILE and _made_since(self._target, self._since_s):
                    continue  # by one that the lock did not keep out
                raise
            return

    def _replace(self) -> None:
        old = set_aside(self._target)
        try:
            put_in_place(self._partial, self._target)
        except BaseException:
            if not self._target.exists():
                put_in_place(old, self._target)
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


_Seen = tuple[int, int, int] | None


def _seen(target: Path) -> _Seen:
    """What tells the data set at `target` from another that takes its place; None if it is none."""
    try:
        folder, meta = target.stat(), (target / META_FILE).stat()
    except OSError:
        return None
    return folder.st_dev, folder.st_ino, meta.st_mtime_ns


def _made_since(target: Path, since_s: float) -> bool:
    """Whether a data set got its name at this time or later, by the clock of the file system."""
    try:
        return max(target.stat().st_ctime, (target / META_FILE).stat().st_mtime) >= since_s
    except OSError:
        return False


def _bytes_beside(target: Path) -> int:
    """The bytes in the hidden folders of those that write `target`."""
    total = 0
    for kind in _KINDS_BESIDE[:2]:
        for file in target.parent.glob(f"{partial_names(target.name, kind)}/*"):
            try:
                total += file.stat().st_size
            except OSError:
                continue  # it has gone, or got its name
    return total


def _whose(path: Path, found: Meta, owner: str = "") -> str:
    by = f", {owner}" if owner else ""
    rows = " and ".join(
        f"{sum(shard.rows for shard in shards)} {split}" for split, shards in found.shards.items()
    )
    return f"{path} is there, {rows} rows, made by `{found.made_by['command']}`{by}"


def _is_absent(path: Path) -> bool:
    """Whether there is nothing at `path`, or a folder with nothing in it. Raises OSError."""
    try:
        with os.scandir(path) as entries:
            return next(entries, None) is None
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        if os.path.lexists(path):
            return False
        raise  # one above it is a file


def check_target(
    path: Path, overwrite: bool, if_missing: bool = False, since_s: float | None = None
) -> None:
    """Raise InputError unless a data set may be written at `path`; an empty folder is none.

    overwrite   an existing data set may be replaced; any other folder may not, so that a mistyped
                `--output` never deletes anything else
    if_missing  raise `AlreadyMadeError` if there is a data set
    since_s     time.time() from which on an existing one counts as made meanwhile, which is left to
                `DatasetWriter`, who knows whether it is the same; None: none does
    """
    if overwrite and if_missing:
        raise InputError("--overwrite replaces a data set, --if-missing keeps it: give one of them")
    try:
        if _is_absent(path):
            _refuse_fixed(path)
            return
        is_folder, has_meta = path.is_dir(), (path / META_FILE).is_file()
        inside = os.listdir(path) if is_folder else []
    except OSError as error:
        raise InputError(f"cannot make the folder {path}: {error.strerror}") from None
    strangers = [name for name in inside if name != META_FILE and not _is_of_data_set(name)]
    if has_meta and if_missing:
        raise AlreadyMadeError(_whose(path, load_meta(path)))
    if has_meta and since_s is not None and _made_since(path, since_s):
        return
    exists = f"{path} exists; give another folder"
    if not is_folder:
        raise InputError(f"{exists}: it is not a folder, so it is not overwritten")
    if strangers or not has_meta:
        has = f"it holds {min(strangers)}" if strangers else f"it has no {META_FILE}"
        raise InputError(f"{exists}: it is not a data set ({has}), so it is not overwritten")
    if not overwrite:
        raise InputError(f"{exists}, or replace it (--overwrite)")


def _is_of_data_set(name: str) -> bool:
    # `.nfs...` is a file that was removed while somebody reads it.
    return name.endswith(".h5") or name.startswith(".nfs")


def _refuse_fixed(path: Path) -> None:
    """Raise InputError for a folder whose place no other can take."""
    if os.path.ismount(path):
        raise InputError(f"{path} is the root of a file system; give a folder in it")
    if path.is_dir() and path.samefile(os.curdir):
        raise InputError(f"{path} exists; give another folder: this was started in it")

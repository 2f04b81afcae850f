"""Whether a data set may be written somewhere, and what already exists there."""

import os
from pathlib import Path

from ist_hpc.common.errors import InputError
from ist_hpc.data.meta_reading import load_meta
from ist_hpc.data.shard_meta import META_FILE, Meta


class AlreadyMadeError(Exception):
    """The data set to be written exists: another process made it. Not a fault.

    The message is one line that says who made it; the caller can use it.
    """


def check_target(
    path: Path, overwrite: bool, if_missing: bool = False, since_s: float | None = None
) -> None:
    """Raise InputError unless a data set may be written at `path`; an empty folder does not count.

    overwrite   an existing data set may be replaced; any other folder may not, so that a mistyped
                `--output` never deletes anything else
    if_missing  raise `AlreadyMadeError` if there is a data set
    since_s     time.time() from which on an existing one counts as made meanwhile; `DatasetWriter`
                then decides whether it is the same; None: no data set counts
    """
    if overwrite and if_missing:
        raise InputError("--overwrite replaces a data set, --if-missing keeps it: give one of them")
    try:
        if is_absent(path):
            _refuse_fixed(path)
            return
        is_folder, has_meta = path.is_dir(), (path / META_FILE).is_file()
        inside = os.listdir(path) if is_folder else []
    except OSError as error:
        raise InputError(f"cannot make the folder {path}: {error.strerror}") from None
    strangers = [name for name in inside if name != META_FILE and not _is_of_data_set(name)]
    if has_meta and if_missing:
        raise AlreadyMadeError(whose(path, load_meta(path)))
    if has_meta and since_s is not None and made_since(path, since_s):
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
    """Raise InputError for a folder that cannot be replaced."""
    if os.path.ismount(path):
        raise InputError(f"{path} is the root of a file system; give a folder in it")
    if path.is_dir() and path.samefile(os.curdir):
        raise InputError(f"{path} exists; give another folder: this was started in it")


def whose(path: Path, found: Meta, owner: str = "") -> str:
    """One line about what is there, and who made it."""
    by = f", {owner}" if owner else ""
    rows = " and ".join(
        f"{sum(shard.rows for shard in shards)} {split}" for split, shards in found.shards.items()
    )
    return f"{path} is there, {rows} rows, made by `{found.made_by['command']}`{by}"


def made_since(target: Path, since_s: float) -> bool:
    """Whether a data set got its name at this time or later, by the clock of the file system."""
    try:
        return max(target.stat().st_ctime, (target / META_FILE).stat().st_mtime) >= since_s
    except OSError:
        return False


def is_absent(path: Path) -> bool:
    """Whether there is nothing at `path`, or an empty folder. Raises OSError."""
    try:
        with os.scandir(path) as entries:
            return next(entries, None) is None
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        if os.path.lexists(path):
            return False
        raise  # one above it is a file

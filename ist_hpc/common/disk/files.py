"""Files that are complete or absent: written under another name, flushed to disk, renamed.

Everything that this package writes to disk passes through here: a process writes under its own
hidden name beside the final one, and `put_in_place` gives the file its final name.
"""

import contextlib
import errno
import functools
import glob
import hashlib
import json
import os
import re
import secrets
import socket
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO, cast

from ist_hpc.common.disk.names import ENCODING_ERRORS, printable, quoted
from ist_hpc.common.errors import InputError

_NO_FLUSH_OF_FOLDERS = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
_SURROGATES = re.compile("[\ud800-\udfff]+")
_MOST_NAME_BYTES = 160  # of 255; the rest says who owns a hidden name
_MOST_HOST_CHARACTERS = 24
_OWN_NAME = re.compile(r"-(?P<pid>[0-9]+)-(?P<machine>[0-9a-f]{8})[0-9a-f]{8}")


def refuse_vds_prefix() -> None:
    """Raise `InputError` if HDF5 was told to look for the files of virtual datasets elsewhere.

    HDF5 would then read other rank files than those whose checksums were checked. The library reads
    the variable when it is loaded, so removing it here would be too late.
    """
    if os.environ.get("HDF5_VDS_PREFIX"):
        raise InputError(
            f"HDF5_VDS_PREFIX is set ({os.environ['HDF5_VDS_PREFIX']}), which makes HDF5 read the "
            "files of a checkpoint from another folder; unset it"
        )


def sha256_of(path: Path) -> str:
    """SHA-256 of a file as hexadecimal text; raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush_to_disk(path: Path) -> None:
    """fsync a file, or a folder (which makes the names in it durable). Raises OSError.

    Some file systems cannot flush folders, and report EINVAL or ENOTSUP: for a folder, and only
    then, this is ignored. So is a folder that may be written but not opened. Any other error (a
    failing disk, a full disk) is raised.
    """
    is_folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        if is_folder:
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not is_folder or error.errno not in _NO_FLUSH_OF_FOLDERS:
            raise
    finally:
        os.close(descriptor)


def _fitting(name: str) -> str:
    """The name, or the beginning of a very long name, so that a hidden name has room for more."""
    encoded = os.fsencode(name)
    if len(encoded) <= _MOST_NAME_BYTES:
        return name
    return f"{os.fsdecode(encoded[: _MOST_NAME_BYTES - 10])}-{zlib.crc32(encoded):08x}"


def hidden_name(name: str, suffix: str) -> str:
    """The name of a hidden file beside a file of this name: `.NAME.SUFFIX`."""
    return f".{_fitting(name)}.{suffix}"


def partial_names(name: str, kind: str = "partial") -> str:
    """The glob pattern of names that `hidden_beside` returns for a file or folder of this name."""
    return f"{glob.escape(hidden_name(name, kind))}-*"


@functools.cache
def _machine() -> str:
    """Identifies a machine and its boot: beyond these a process number means nothing."""
    boot = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    return f"{zlib.crc32(f'{socket.gethostname()} {boot}'.encode()):08x}"


def hidden_beside(path: Path, kind: str = "partial") -> Path:
    """A name beside `path`, unique across hosts, that says who owns it.

    kind  its purpose: `partial`, written and then renamed; callers may have others
    """
    host = re.sub("[^A-Za-z0-9]+", "-", socket.gethostname())[:_MOST_HOST_CHARACTERS]
    own = f"{host}-{os.getpid()}-{_machine()}{secrets.token_hex(4)}"
    return path.parent / f"{hidden_name(path.name, kind)}-{own}"


def is_of_dead_process(hidden: Path) -> bool:
    """Whether a name of `hidden_beside` belongs to a process of this machine that has ended.

    False if that is unknown: a process of another host, or from before this machine was booted.
    """
    found = _OWN_NAME.search(hidden.name)
    if found is None or found["machine"] != _machine():
        return False
    try:
        os.kill(int(found["pid"]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:  # it belongs to another user
        return False
    return False


def put_in_place(beside: Path, path: Path, overwrite: bool = True) -> None:
    """Give a finished file or folder its name, on disk when this returns. Raises OSError.

    It replaces what is there: a file replaces a file, a folder only an empty folder. Without
    `overwrite` a file replaces nothing, and FileExistsError is raised.
    """
    flush_to_disk(beside)
    if overwrite or beside.is_dir():
        os.replace(beside, path)
    else:
        _name_new(beside, path)
    flush_to_disk(path.parent)


def _name_new(beside: Path, path: Path) -> None:
    """Rename a file, unless the name exists; two processes may try it at once."""
    try:
        os.link(beside, path)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        os.replace(beside, path)
    else:
        os.unlink(beside)


def set_aside(path: Path) -> Path:
    """Hide a file or folder under another name; return the hidden name."""
    aside = hidden_beside(path, "old")
    os.replace(path, aside)
    return aside


def followed(path: Path) -> Path:
    """The path that would be written: the target of a symbolic link, which is not replaced."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


@contextlib.contextmanager
def replacing(path: Path, overwrite: bool = True) -> Iterator[Path]:
    """The name of a file to write in the block, which then replaces `path`.

    A reader sees the old or the new file; after an error in the block the old one stays. Without
    `overwrite` it also stays, even if another process has just made it: FileExistsError.
    """
    target = followed(path)
    beside = hidden_beside(target)
    try:
        yield beside
        put_in_place(beside, target, overwrite)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write or replace a text file so that a reader sees the old one or the new one.

    It is UTF-8, whatever names are in the text: bytes of a name that are not UTF-8 are written as
    they are printed (`names.printable`).
    """
    with replacing(path) as beside, open_text(beside, "w") as file:
        file.write(text)


def json_text(content: object, indent: int | None = 1) -> str:
    """The content as JSON that is UTF-8, whatever names are in it: see `write_text`.

    Raises ValueError and TypeError for values that JSON does not have, such as NaN.
    """
    text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
    return _SURROGATES.sub(lambda found: json.dumps(printable(found[0]))[1:-1], text)


def open_text(path: Path, mode: str) -> TextIO:
    """Open a file for text of this package: UTF-8, whatever names it has. Raises OSError."""
    return cast(TextIO, path.open(mode, encoding="utf-8", errors=ENCODING_ERRORS))


def refuse_target(target: Path, option: str, overwrite: bool) -> None:
    """Raise `InputError` unless a file may be written at `target`, which `option` names.

    The caller then writes it with `replacing` and the same `overwrite`.
    """
    try:
        status = target.stat()
    except FileNotFoundError:
        folder = followed(target).parent
        if not folder.is_dir():
            raise InputError(
                f"{option} {target}: must be a file in a folder that is there; make it: mkdir -p "
                f"{quoted(folder)}"
            ) from None
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InputError(f"{option} {target}: you may not write into {folder}") from None
        return
    except OSError as error:
        raise InputError(f"{option} {target}: cannot be written ({error.strerror})") from None
    if stat.S_ISDIR(status.st_mode):
        raise InputError(
            f"{option} {target}: must be a file in a folder that is there; this is the folder"
        )
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{option} {target}: is no plain file, so it is not replaced")
    if not overwrite:
        raise exists_error(target, option)


def exists_error(target: Path, option: str) -> InputError:
    """The error for a command that would replace a file unasked."""
    return InputError(f"{option} {target}: the file exists; add --overwrite to replace it")

"""Files that are complete or absent: written beside, flushed to disk, renamed.

Everything that this package puts on disk takes its place here: what a process writes has a hidden
name of its own beside the final one, and `put_in_place` gives it the final one.
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
_MOST_NAME_BYTES = 160  # of 255; the rest is for what says whose a hidden name is
_MOST_HOST_CHARACTERS = 24
_OWN_NAME = re.compile(r"-(?P<pid>[0-9]+)-(?P<machine>[0-9a-f]{8})[0-9a-f]{8}")


def refuse_vds_prefix() -> None:
    """Raise `InputError` if HDF5 was told to look for the files of virtual datasets elsewhere.

    It would then read other rank files than those whose checksums were checked. The library takes
    the variable when it is loaded, so that removing it here would be too late.
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

    Some file systems cannot do it for folders, and say so by EINVAL or ENOTSUP: for a folder, and
    for nothing else, it is then left out. So it is for a folder into which one may write, but which
    one may not open. Any other answer (of a disk that fails, or is full) is raised.
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
    """The name, or the beginning of a very long one, so that more fits into a hidden name."""
    encoded = os.fsencode(name)
    if len(encoded) <= _MOST_NAME_BYTES:
        return name
    return f"{os.fsdecode(encoded[: _MOST_NAME_BYTES - 10])}-{zlib.crc32(encoded):08x}"


def hidden_name(name: str, suffix: str) -> str:
    """The name of a hidden file beside one of this name: `.NAME.SUFFIX`."""
    return f".{_fitting(name)}.{suffix}"


def partial_names(name: str, kind: str = "partial") -> str:
    """The pattern (of glob) of what `hidden_beside` gives for a file or folder of this name."""
    return f"{glob.escape(hidden_name(name, kind))}-*"


@functools.cache
def _machine() -> str:
    """Tells machines, and starts of one machine, apart: a process number means nothing beyond."""
    boot = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    return f"{zlib.crc32(f'{socket.gethostname()} {boot}'.encode()):08x}"


def hidden_beside(path: Path, kind: str = "partial") -> Path:
    """A name beside `path` that nothing else has, here or on another host; says whose it is.

    kind  what it is for: `partial`, written and then given the name; others are of its caller
    """
    host = re.sub("[^A-Za-z0-9]+", "-", socket.gethostname())[:_MOST_HOST_CHARACTERS]
    own = f"{host}-{os.getpid()}-{_machine()}{secrets.token_hex(4)}"
    return path.parent / f"{hidden_name(path.name, kind)}-{own}"


def is_of_dead_process(hidden: Path) -> bool:
    """Whether a name of `hidden_beside` is of a process of this machine that is no more.

    False where that is not known: a process of another host, or from before this one was booted.
    """
    found = _OWN_NAME.search(hidden.name)
    if found is None or found["machine"] != _machine():
        return False
    try:
        os.kill(int(found["pid"]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:  # it is another user's
        return False
    return False


def put_in_place(beside: Path, path: Path, overwrite: bool = True) -> None:
    """Give a finished file or folder its name, on disk when this returns. Raises OSError.

    It takes the place of what is there: a file of a file, a folder of an empty folder only. Without
    `overwrite` a file takes no other's place, and FileExistsError is raised.
    """
    flush_to_disk(beside)
    if overwrite or beside.is_dir():
        os.replace(beside, path)
    else:
        _name_new(beside, path)
    flush_to_disk(path.parent)


def _name_new(beside: Path, path: Path) -> None:
    """Name a file, unless there is one of this name; two processes may try it at once."""
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
    """Take a file or folder its name, by which it is found no more; returns its hidden one."""
    aside = hidden_beside(path, "old")
    os.replace(path, aside)
    return aside


def followed(path: Path) -> Path:
    """The path of what would be written: where a symbolic link leads, as it is not replaced."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


@contextlib.contextmanager
def replacing(path: Path, overwrite: bool = True) -> Iterator[Path]:
    """The name of a file to write in the block, which then takes the place of `path`.

    A reader sees the old one or the new one; after an error in the block the old one is left. So it
    is without `overwrite` if there is an old one, or another process was faster: FileExistsError.
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

    It is UTF-8, whatever names are in the text: bytes of a name that are not are written as they
    are printed (`names.printable`).
    """
    with replacing(path) as beside, open_text(beside, "w") as file:
        file.write(text)


def json_text(content: object, indent: int | None = 1) -> str:
    """The content as JSON that is UTF-8, whatever names are in it: see `write_text`.

    Raises ValueError and TypeError for what JSON does not have: NaN, say.
    """
    text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
    return _SURROGATES.sub(lambda found: json.dumps(printable(found[0]))[1:-1], text)


def open_text(path: Path, mode: str) -> TextIO:
    """Open a file for text of this package: UTF-8, whatever names it has. Raises OSError."""
    return cast(TextIO, path.open(mode, encoding="utf-8", errors=ENCODING_ERRORS))


def refuse_target(target: Path, option: str, overwrite: bool) -> None:
    """Raise `InputError` unless a file may be written at `target`, which `option` names.

    Whoever writes it does so by `replacing`, with the same `overwrite`.
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
    """The answer to a command that would replace a file unasked."""
    return InputError(f"{option} {target}: the file exists; add --overwrite to replace it")

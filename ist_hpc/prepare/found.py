"""Says what was found in the place of a data set's file: the words of every refusal.

Files that downloads, archives, editors and other programs leave are named by their kind
(`file_kinds`), with the command that converts them. Converters open files with `opened`, look
through folders with `names.entries` or `input_folder`, and refuse a file for its contents with
`refused` or `why`.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from ist_hpc.common.disk.names import entries, printable
from ist_hpc.common.errors import InputError
from ist_hpc.prepare.file_kinds import ANOTHER, HEAD_BYTES, kind_of

PADDING = b" \t\r\n\0\x1a"
"""Allowed after the end of a text: blanks, zeros that fill up a block, the ^Z of DOS."""

_SHOWN_BYTES = 40
_MOST_LOOKED_AT = 100  # entries of a folder, in a search
_PACKED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".zip", ".tar.gz", ".tgz", ".tar", ".7z")


class UnusableError(Exception):
    """A file that cannot be used; the message says why, without its name."""


def opened(path: Path) -> BinaryIO:
    """The file, opened for reading. Raises `UnusableError` for anything but a readable file.

    Never waits: a pipe is not opened.
    """
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode):
            return path.open("rb")
    except OSError as error:
        raise UnusableError(_unreadable(path, error)) from error
    raise UnusableError(_no_file(path, status.st_mode))


def head_of(file: BinaryIO) -> bytes:
    """The first bytes of an opened file; restores its position. Raises OSError."""
    place = file.tell()
    file.seek(0)
    head = file.read(HEAD_BYTES)
    file.seek(place)
    return head


def refused(
    name: object, problem: str, head: bytes | None = None, line: int | None = None, own: str = ""
) -> InputError:
    """The error for a file whose content or state is wrong; see `why`.

    head  its first bytes, if the kind of the file may be the reason
    line  the line of the problem, from 1; left out if the whole file is of another kind
    """
    foreign = None if head is None else _foreign(head, str(name), own)
    if foreign:
        return InputError(f"{name}: {foreign}")
    place = "" if line is None else f", line {line}"
    return InputError(f"{name}{place}: {problem}")


def why(name: str, problem: str, head: bytes, own: str = "") -> str:
    """Why a file cannot be used: its kind, if that is not `own`, else `problem`.

    own  "text", "pickle" or "wav"
    """
    return _foreign(head, name, own) or problem


def _foreign(head: bytes, name: str, own: str) -> str | None:
    kind = kind_of(head, name)
    if kind is not None and kind.key != own:
        return kind.sentence()
    if kind is None and own in ("pickle", "wav") and (beginning := _plain_text(head)):
        return f"is text (it begins with {beginning}), must be a {own} file"
    return None


def _plain_text(head: bytes) -> str | None:
    """The beginning of a text, in quotes; None for anything else, and for text pickles."""
    if not head or head.startswith((b"(", b"RIFF")):
        return None
    try:
        text = head.decode("utf-8", "ignore" if len(head) == HEAD_BYTES else "strict")
    except UnicodeDecodeError:
        return None
    if any(ord(character) < ord(" ") and character not in "\t\r\n\x1a" for character in text):
        return None
    words = " ".join(text.split())
    more = "..." if len(words) > _SHOWN_BYTES else ""
    return f"'{printable(words[:_SHOWN_BYTES])}'{more}"


def _unreadable(path: Path, error: OSError) -> str:
    """Why the system cannot open a file, in words."""
    if error.errno == errno.ENOENT:
        if dangling := _dangling(path):
            return dangling
        for suffix in _PACKED_SUFFIXES:
            other = Path(f"{path}{suffix}")
            if _is_regular(other):
                return f"cannot be read ({error.strerror}), but there is {other}: unpack that first"
    return f"cannot be read ({error.strerror})"


def _dangling(path: Path) -> str | None:
    try:
        return f"is a symbolic link to {os.readlink(path)}, which is not there"
    except OSError:
        return None


def _special(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "pipe"
    return "socket" if stat.S_ISSOCK(mode) else "device"


def _no_file(path: Path, mode: int) -> str:
    if stat.S_ISDIR(mode):
        inner = path / path.name
        hint = f"; give the file in it, {inner}" if path.name and _is_regular(inner) else ""
        return f"is a folder, must be a file{hint}"
    special = _special(mode)
    hint = "; write what comes out of it to a file, and give that" if special == "pipe" else ""
    return f"is a {special}, must be a file{hint}"


def _is_regular(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_missing(path: Path) -> bool:
    """Whether nothing has this name; if it cannot be inspected, it may exist."""
    try:
        path.lstat()
        return False
    except FileNotFoundError:
        return True
    except OSError:
        return False


def input_folder(option: str, folder: Path, wanted: str) -> None:
    """Raise `InputError` unless `folder` is a readable folder.

    option  the option that names it
    wanted  what to give, for the message
    """
    try:
        mode = folder.stat().st_mode
        if stat.S_ISDIR(mode):
            os.listdir(folder)
            return
        if stat.S_ISREG(mode):
            problem = f"is a file, must be a folder{_of_file(folder)}"
        else:
            problem = f"is a {_special(mode)}, must be a folder"
    except FileNotFoundError:
        problem = _dangling(folder) or "no such folder"
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    raise InputError(f"{option} {folder}: {problem}; {wanted}")


def _of_file(path: Path) -> str:
    try:
        with opened(path) as file:
            kind = kind_of(file.read(HEAD_BYTES), str(path))
    except (UnusableError, OSError):
        return ""
    if kind is None:
        return ""
    return f"; it {kind.what if kind.fix == ANOTHER else kind.sentence()}"


def folder_refused(
    option: str,
    folder: Path,
    problem: str,
    wanted: str,
    is_it: Callable[[Path], bool],
) -> InputError:
    """The error for a folder without the data set: says where the data set is, if found.

    is_it  whether a folder is the right one; folders below and above are tried, then packed files
           are named
    """
    for place in _around(folder):
        if is_it(place):
            return InputError(f"{option} {folder}: {problem}; give {place}, which has them")
    for path in _looked_at(folder):
        if _is_regular(path) and (found := _of_file(path)) and "unpack" in found:
            return InputError(
                f"{option} {folder}: {problem}; {path.name} in it {found.removeprefix('; it ')}"
            )
    return InputError(f"{option} {folder}: {problem}; {wanted}")


def _around(folder: Path) -> Iterator[Path]:
    inner = [path for path in _looked_at(folder) if _is_folder(path)]
    yield from inner
    for path in inner:
        yield from (below for below in _looked_at(path) if _is_folder(below))
    yield Path(os.path.abspath(folder)).parent


def _looked_at(folder: Path) -> list[Path]:
    return entries(folder, lambda path, reason: None)[:_MOST_LOOKED_AT]


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False

"""Locks between processes, on one or several hosts: who works on a folder.

A lock is a file with a line that says who holds it. The system releases it when its process ends,
however it ends; so a leftover file means nothing.
"""

import errno
import fcntl
import logging
import os
import socket
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from ist_hpc.common.disk.files import open_text
from ist_hpc.common.disk.names import ENCODING_ERRORS

log = logging.getLogger("ist_hpc")

Waiting = Callable[[str, float], None]
"""Called with the lock's holder and the seconds waited so far; raises to give up."""

_HELD_BY_ANOTHER = {errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK}
_FIRST_LOOK_S, _LAST_LOOK_S = 0.05, 1.0
_MOST_REMOVED = 10
"""How often a file may vanish as it is opened before the file system is considered odd."""

_held: "weakref.WeakSet[FileLock]" = weakref.WeakSet()


def owner_facts() -> str:
    """Identifies this process to others that wait for it: process, host, job, since when."""
    job = os.environ.get("SLURM_JOB_ID")
    of_job = f", Slurm job {job}" if job else ""
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return f"process {os.getpid()} on {socket.gethostname()}{of_job}, since {since}"


class FileLock:
    """A lock on a file, held by this process alone until `release` or its end.

    inherited  whether programs that this one starts with the file (`fileno`) share the lock

    It is a POSIX lock (fcntl), which works between hosts on NFS and Lustre; an inherited one uses
    flock. On a file system without locks there is a warning, `works` is False, and nobody is kept
    out. The trap of POSIX: a process that closes any other handle of the file releases its lock. So
    only this module opens one. Nor does POSIX keep a process from taking its own lock again.
    """

    def __init__(self, path: Path, inherited: bool = False) -> None:
        self.path = path
        self.line = ""
        """The line that this process wrote into the file."""
        self.works = False
        """Whether others are kept out: the lock is held, and the file system has locks."""
        self._call = fcntl.flock if inherited else fcntl.lockf
        self._file: TextIO | None = None
        self._pid = 0

    @property
    def held(self) -> bool:
        """Whether this process took the lock; a process forked from it has not."""
        return self._file is not None and self._pid == os.getpid()

    def take(self, line: str, waiting: Waiting) -> None:
        """Take the lock, and write `line` into the file; wait while another process holds it.

        Raises OSError if the file cannot exist, and whatever `waiting` raises.
        """
        begin_s, look_s, removed = time.monotonic(), _FIRST_LOOK_S, 0
        while (owner := self._try(line, removed >= _MOST_REMOVED)) is not None:
            if owner:
                waiting(owner, time.monotonic() - begin_s)
            removed = 0 if owner else removed + 1
            time.sleep(look_s)
            look_s = min(1.5 * look_s, _LAST_LOOK_S)

    def _try(self, line: str, anyhow: bool) -> str | None:
        """Take the lock; else return its holder, or "" if the file was removed meanwhile.

        anyhow  whether to lock a file that seems to be removed; such a lock is not relied on
        """
        file: TextIO | None = open_text(self.path, "a+")
        assert file is not None
        try:
            try:
                self._call(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                works = True
            except OSError as error:
                if error.errno in _HELD_BY_ANOTHER:
                    return _line_of(file)
                if error.errno == errno.ESTALE and not anyhow:
                    return ""
                log.warning("%s cannot be locked: %s", self.path, error.strerror)
                works = False
            if works and not _is_at(file, self.path):
                if not anyhow:
                    return ""
                log.warning("%s cannot be locked: it is removed again and again", self.path)
                works = False
            with suppress(OSError):  # a full disk; the lock holds all the same
                os.ftruncate(file.fileno(), 0)
                os.write(file.fileno(), f"{line}\n".encode("utf-8", ENCODING_ERRORS))
            self._file, self._pid, self.line, self.works = file, os.getpid(), line, works
            _held.add(self)
            file = None
        finally:
            if file is not None:
                with suppress(OSError):
                    file.close()
        return None

    def fileno(self) -> int:
        """The file descriptor of the held lock."""
        assert self._file is not None
        return self._file.fileno()

    def said(self) -> str:
        """The file's present line: that of another process if it was taken over, or replaced.

        Raises OSError if the file is gone.
        """
        if not self.held or not _is_at(self._file, self.path):
            with open_text(self.path, "r") as file:
                return file.read().strip()
        assert self._file is not None
        self._file.seek(0)
        return self._file.read().strip()

    def is_in_place(self) -> bool:
        """Whether the lock is held, and its file still in place for others to find."""
        return self.held and _is_at(self._file, self.path)

    def release(self, remove: bool = False) -> None:
        """Release the lock if held; with `remove` remove its file first, if still in place."""
        if not self.held:
            return
        assert self._file is not None
        if remove and self.works and self.is_in_place():
            with suppress(OSError):
                self.path.unlink()
        _held.discard(self)
        with suppress(OSError):
            self._file.close()
        self._file, self.works = None, False


def owner_of(path: Path) -> str | None:
    """The holder of the lock on a file, as far as this host can see; None if nobody holds it."""
    for lock in list(_held):
        if lock.held and lock.path == path:
            return lock.line  # opening and closing the file would release the lock
    try:
        with open_text(path, "r") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in _HELD_BY_ANOTHER:
                    return _line_of(file)
                return f"perhaps {_line_of(file)}"  # a file system without locks
    except OSError:
        pass
    return None


def _line_of(file: TextIO) -> str:
    with suppress(OSError):
        file.seek(0)
        return file.read().strip() or "unknown"
    return "unknown"


def _is_at(file: TextIO | None, path: Path) -> bool:
    """Whether an open file is still the one at `path`, neither removed nor replaced."""
    assert file is not None
    try:
        mine, there = os.fstat(file.fileno()), path.stat()
    except OSError:
        return False
    return mine.st_nlink > 0 and (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)

"""The place of a data set: who may write it, who waits, and how a complete one gets its name.

The writing process holds a lock beside it, `.NAME.lock`: others that want to write the same wait,
and use what was made meanwhile.
"""

import errno
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from ist_hpc.common.disk.files import (
    hidden_beside,
    hidden_name,
    is_of_dead_process,
    partial_names,
    put_in_place,
    set_aside,
)
from ist_hpc.common.disk.locks import FileLock, owner_facts
from ist_hpc.common.errors import InputError
from ist_hpc.common.mpi_environment import rank_of_launcher
from ist_hpc.data.meta_reading import load_meta
from ist_hpc.data.shard_meta import META_FILE, Meta
from ist_hpc.data.writing.target import (
    AlreadyMadeError,
    check_target,
    is_absent,
    made_since,
    whose,
)

log = logging.getLogger("ist_hpc")

_KINDS_BESIDE = ("partial", "shuffle", "old")  # hidden names that a writer may leave
_TERMINAL_EVERY_S, _LOG_EVERY_S = 5.0, 600.0
_TAKEN_MEANWHILE = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}

IsTheSame = Callable[[Meta], bool]
"""Whether an existing data set is the one to be written."""


class Place:
    """Where one process writes a data set, from `enter` to `leave`; see `DatasetWriter`.

    partial  the hidden folder that takes the data set's place when it is complete
    """

    def __init__(
        self,
        path: Path,
        overwrite: bool,
        if_missing: bool,
        since_s: float,
        waiting: Callable[[float], None] | None,
    ) -> None:
        self.path = path
        self._overwrite, self._if_missing = overwrite, if_missing
        self._since_s, self._waiting = since_s, waiting
        # Resolved, so that a symbolic link to a data set is followed and not replaced.
        self._target = Path(os.path.realpath(path))
        self._lock = FileLock(self._target.parent / hidden_name(self._target.name, "lock"))
        self.partial = hidden_beside(self._target)
        self._seen: _Seen = None
        self._owner, self._next_word_s = "", 0.0

    def enter(self, is_the_same: IsTheSame) -> None:
        """Take the place, and make the hidden folder; wait as long as another process has it.

        Raises `AlreadyMadeError` if it was made meanwhile, `InputError`, and what `waiting` raises.
        """
        check_target(self.path, self._overwrite, self._if_missing, self._since_s)
        self._seen = _seen(self._target)
        try:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            self._lock.take(owner_facts(), self._wait)
            try:
                self._clear_what_was_left()
                self._take_what_was_made(is_the_same)
                self._seen = _seen(self._target)
                self.partial.mkdir()
            except BaseException:
                self.leave()
                raise
        except OSError as error:
            where = f": {error.filename}" if error.filename == str(self._lock.path) else ""
            raise InputError(
                f"cannot make the folder {self.path}: {error.strerror}{where}"
            ) from error

    def _wait(self, owner: str, waited_s: float) -> None:
        """Say, now and then, for which process this one waits and how far that is."""
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

    def _take_what_was_made(self, is_the_same: IsTheSame) -> None:
        """Raise `AlreadyMadeError` if it was made meanwhile, `InputError` if that is in the way.

        Called again before the data set gets its name: hours may have passed, and a file system may
        have no locks.
        """
        was_made = made_since(self._target, self._since_s) or (
            _seen(self._target) not in (None, self._seen)
        )
        if was_made and (self._target / META_FILE).is_file():
            found = load_meta(self._target)
            if self._if_missing or is_the_same(found):
                raise AlreadyMadeError(whose(self.path, found, self._owner))
            if not self._overwrite:
                raise InputError(
                    f"{self.path} was made meanwhile with other parameters, by "
                    f"`{found.made_by['command']}`; give another folder, or replace it "
                    "(--overwrite)"
                )
        check_target(self.path, self._overwrite, self._if_missing)

    def _clear_what_was_left(self) -> None:
        """Remove what killed writers left: it may be large, and belongs to nobody else.

        That is certain for writers of this machine whose process has ended, since this one now has
        their lock. Others are named. A data set whose replacement was interrupted gets its name.
        """
        parent, name = self._target.parent, self._target.name
        for kind in _KINDS_BESIDE:
            for left in sorted(parent.glob(partial_names(name, kind))):
                certain = self._lock.works and is_of_dead_process(left)
                if (left / META_FILE).is_file() and kind == "old" and is_absent(self._target):
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

    def leave(self) -> None:
        """Remove what was written but not published, and let others in."""
        try:
            shutil.rmtree(self.partial, ignore_errors=True)
        finally:
            self._lock.release(remove=True)

    def publish(self, is_the_same: IsTheSame) -> None:
        """Give the complete hidden folder the data set's name.

        Raises `AlreadyMadeError` and `InputError` as `enter` does, and OSError.
        """
        while True:
            self._take_what_was_made(is_the_same)
            try:
                if is_absent(self._target):
                    put_in_place(self.partial, self._target)
                else:
                    self._replace()
            except OSError as error:
                if error.errno in _TAKEN_MEANWHILE and made_since(self._target, self._since_s):
                    continue  # removed by a writer that the lock did not keep out
                raise
            return

    def _replace(self) -> None:
        old = set_aside(self._target)
        try:
            put_in_place(self.partial, self._target)
        except BaseException:
            if not self._target.exists():
                put_in_place(old, self._target)
            raise
        shutil.rmtree(old, ignore_errors=True)


_Seen = tuple[int, int, int] | None


def _seen(target: Path) -> _Seen:
    """Identifies the data set at `target`, in case another replaces it; None without one."""
    try:
        folder, meta = target.stat(), (target / META_FILE).stat()
    except OSError:
        return None
    return folder.st_dev, folder.st_ino, meta.st_mtime_ns


def _bytes_beside(target: Path) -> int:
    """The bytes in the hidden folders of processes that write `target`."""
    total = 0
    for kind in _KINDS_BESIDE[:2]:
        for file in target.parent.glob(f"{partial_names(target.name, kind)}/*"):
            try:
                total += file.stat().st_size
            except OSError:
                continue  # it is gone, or was published
    return total

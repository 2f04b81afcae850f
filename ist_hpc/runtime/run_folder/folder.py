"""The folder of a run: made, locked, and what is replaced in it as the run goes on.

Written by rank 0, but for STATUS by a rank that fails.
"""

import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ist_hpc.common.disk.files import json_text, open_text, partial_names, put_in_place, write_text
from ist_hpc.common.disk.locks import FileLock, owner_facts, owner_of
from ist_hpc.common.errors import InputError
from ist_hpc.config import loading
from ist_hpc.config.keys import Config
from ist_hpc.runtime.run_folder.metrics import MetricsFile, finite

log = logging.getLogger("ist_hpc")
UNSAID_END = "ended without a word: killed, out of memory, or its host was lost"
"""The end of a run that does not run although its STATUS says so."""

_GOING_ON = ("starting", "running")
_LOCK_WAIT_S = 10.0
_LOST_HOST_WAIT_S = 900.0  # until its rank 0 has ended itself, or the file system releases the lock
_MOST_NAMES = 1000  # tried, for runs that start in the same second
_FAILING = ".failing-"  # followed by the start
_REPLACED = ("STATUS", "config.yaml", "metrics.jsonl", "run.json", "summary.json")


class RunFolder:
    """Paths and files of one run."""

    def __init__(self, path: Path, or_beside: bool = False) -> None:
        """The folder at `path`; `or_beside`: if another run takes that, `create` adds a number."""
        self.move_to(path)
        self.or_beside = or_beside
        self.start = ""
        """This start of the run, its `lock_line`. Empty until all ranks are in the folder."""
        self.lock_line = ""
        """The line that this process wrote into `.lock`."""
        self._said_unwritable = False

    def move_to(self, path: Path) -> None:
        """Move the folder to another place, as nothing was made yet."""
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = MetricsFile(path / "metrics.jsonl")
        self._lock = FileLock(path / ".lock")

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Raise an `InputError` if something cannot be written into the folder."""
        try:
            yield
        except OSError as error:
            raise InputError(
                f"cannot write into the run folder {self.path}: {error.strerror}; --runs names the "
                "place of run folders"
            ) from None

    def create(self, resume: bool) -> bool:
        """Make the folder; raise `InputError` if it exists and this is not a resume.

        Returns whether it was made.
        """
        made = False
        try:
            made = self._make(resume)
            self.checkpoints.mkdir(exist_ok=True)
        except OSError as error:
            if made:
                self.remove()
            raise InputError(f"cannot make the run folder {self.path}: {error.strerror}") from None
        return made

    def _make(self, resume: bool) -> bool:
        first = self.path
        for number in range(2, _MOST_NAMES):
            try:
                self.path.mkdir(parents=True)
                return True
            except FileExistsError:
                if resume and self.path.is_dir():
                    return False
                if not self.or_beside:
                    raise self.exists_error() from None
                self.move_to(first.with_name(f"{first.name}-{number}"))
        raise self.exists_error()

    def remove(self) -> None:
        """Remove what this start has just made, as it cannot begin."""
        self.start = ""  # no longer in it
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.release()

    def lock(self, longest_s: float = _LOST_HOST_WAIT_S) -> None:
        """Keep other runs out of the folder for as long as this process lives.

        longest_s  seconds that it may wait at most

        Raises `InputError` that names the holder. Waits a little first: a job may still be ending
        while its successor starts. Waits longer for an earlier start of the same Slurm job, which
        is on a lost host.
        """
        if self._lock.held:
            return
        wait_s = min(_LOCK_WAIT_S, longest_s)

        def waiting(owner: str, waited_s: float) -> None:
            nonlocal wait_s
            if waited_s < wait_s:
                return
            longer_s = min(_LOST_HOST_WAIT_S, longest_s)
            if wait_s < longer_s and _is_of_this_job(owner):
                wait_s = longer_s
                log.warning(
                    "this job's earlier start still has %s (%s); waiting for up to %.0f s",
                    *(self.path, owner, wait_s),
                )
                return
            raise InputError(
                f"another run is writing into {self.path} ({owner}); wait for its end, or give "
                "this one another --name"
            )

        self._lock.take(owner_facts(), waiting)
        self.lock_line = self._lock.line

    def owner(self) -> str | None:
        """The holder of the folder's lock, as far as this host can see; None if nobody holds it."""
        return owner_of(self.path / ".lock")

    def first_to_fail(self, host: str = "") -> bool:
        """Whether this rank is the first of this start, or of a host, to say why the run fails."""
        name = f"{_FAILING}{zlib.crc32((self.start + host).encode()):08x}"
        try:
            os.close(os.open(self.path / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        except OSError:
            return True  # said more than once, rather than not at all
        return True

    def forget_failure(self) -> None:
        """Remove marks of ranks that failed in earlier starts, and half-written files."""
        for left in (f"{_FAILING}*", *map(partial_names, _REPLACED)):
            for path in self.path.glob(left):
                path.unlink(missing_ok=True)

    def is_of_this_start(self) -> bool:
        """Whether all ranks are in the folder, and no later start has taken it over since.

        A host that was cut off may come back after its run has continued elsewhere.
        """
        try:
            said = self._lock.said()
        except OSError:
            return False
        return self.start != "" and said == self.start

    def exists_error(self) -> InputError:
        """The error for a run that would write into the folder of another."""
        return InputError(
            f"the run folder {self.path} exists; go on with it by --resume, or give another --name"
        )

    def status(self) -> str:
        """The first line of STATUS; empty if there is none."""
        path = self.path / "STATUS"
        return path.read_text(encoding="utf-8").strip() if path.exists() else ""

    def goes_on(self) -> bool:
        """Whether STATUS says that the run goes on."""
        return self.status() in _GOING_ON

    def set_status(self, status: str) -> None:
        """Replace STATUS; on a full disk write what fits, with a warning."""
        path, text = self.path / "STATUS", status + "\n"
        try:
            write_text(path, text)
        except OSError as error:
            with suppress(OSError), open_text(path, "w") as file:  # fits in the old one's place
                file.write(text)
            self._say_unwritable(path, error)

    def _say_unwritable(self, path: Path, error: OSError) -> None:
        """Warn once that rows are left out: training is worth more."""
        if not self._said_unwritable:
            log.warning("%s cannot be written: %s", path, error.strerror)
        self._said_unwritable = True

    def record_start(self, settings: Config, facts: dict[str, Any]) -> None:
        """Write config.yaml and add this start to run.json."""
        write_text(self.path / "config.yaml", loading.dump(settings))
        path = self.path / "run.json"
        starts = self._starts(path)
        write_text(path, json_text({"starts": [*starts, facts]}) + "\n")

    def _starts(self, path: Path) -> list[Any]:
        """The starts before this one; sets aside a run.json that cannot be read."""
        if not path.exists():
            return []
        try:
            return list(json.loads(path.read_text(encoding="utf-8"))["starts"])
        except (ValueError, LookupError, TypeError):
            put_in_place(path, path.with_name("damaged-run.json"))
            log.warning("%s is damaged, and renamed to damaged-run.json", path)
            return []

    def add_metrics(self, row: dict[str, Any]) -> None:
        """Append a row; one that cannot be written is left out: training goes on. Said once."""
        try:
            self.metrics.add(row)
        except OSError as error:
            self._say_unwritable(self.metrics.path, error)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json, or warn if that fails: what it sums up is saved."""
        text = json_text(finite(summary))
        try:
            write_text(self.path / "summary.json", text + "\n")
        except OSError as error:
            self._say_unwritable(self.path / "summary.json", error)


def _is_of_this_job(owner: str) -> bool:
    """Whether the owner of a lock is an earlier start of this Slurm job."""
    job = os.environ.get("SLURM_JOB_ID")
    restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
    return job is not None and restarts != "0" and f", Slurm job {job}," in owner

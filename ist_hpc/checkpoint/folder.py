"""Checkpoints as folders: finds the newest, and checks files against the manifest.

This file uses no MPI: `show` reads a checkpoint alone, a resume reads it on every rank.
"""

import json
import re
import socket
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from ist_hpc.checkpoint.read import MAIN_FILE, OpenCheckpoint
from ist_hpc.common.disk.files import refuse_vds_prefix, sha256_of
from ist_hpc.common.disk.hdf5_reading import ADVICE, reporting
from ist_hpc.common.errors import InputError, UnreadableError

MANIFEST = "manifest.json"
FOLDER_PATTERN = re.compile(r"round-([0-9]{8})")


def round_folder(checkpoints: Path, round_index: int) -> Path:
    """The folder of the checkpoint after `round_index` rounds."""
    return checkpoints / f"round-{round_index:08d}"


def newest_first(checkpoints: Path) -> list[Path]:
    """The complete checkpoints of a run, newest first, unchecked."""
    if not checkpoints.is_dir():
        return []
    found = [path for path in checkpoints.iterdir() if FOLDER_PATTERN.fullmatch(path.name)]
    return sorted(found, reverse=True)


def resolve(path: Path) -> Path:
    """The checkpoint folder that a user means: it, its main file, or a run's newest.

    Raises `InputError`.
    """
    if path.is_file():
        return path.parent
    if (path / MANIFEST).is_file() or FOLDER_PATTERN.fullmatch(path.name):
        return path
    for checkpoints in (path / "checkpoints", path):
        candidates = newest_first(checkpoints)
        if candidates:
            return candidates[0]
    raise InputError(
        f"no checkpoint at {path}; give a run folder, a folder such as "
        "runs/NAME/checkpoints/round-00000040, or the checkpoint.h5 in it"
    )


class Checkpoint:
    """A checkpoint whose manifest was read; call `check_files` before HDF5 reads anything.

    folder  its folder
    files   (bytes, SHA-256) of each file, by name
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = _manifest(folder)

    def check_files(self, names: Iterable[str]) -> None:
        """Check size and SHA-256 of the named files. Raises `InputError` that names the file."""
        for name in names:
            path = self.folder / name
            size, digest = self.files[name]
            try:
                found = path.stat()
                if not stat.S_ISREG(found.st_mode):  # a pipe or a device would be read for ever
                    raise InputError(f"{path}: must be a plain file, and is none; {ADVICE}")
                if found.st_size != size:
                    raise InputError(
                        f"{path}: {found.st_size} bytes, its manifest says {size}; {ADVICE}"
                    )
                if sha256_of(path) != digest:
                    raise InputError(f"{path}: SHA-256 differs from its manifest; {ADVICE}")
            except FileNotFoundError as error:
                raise InputError(f"{path}: {error.strerror}; {ADVICE}") from None
            except OSError as error:
                raise _unreadable(path, error) from None

    def check_contents(self) -> None:
        """Raise `InputError` if another version or other ranks wrote the main file."""
        with self.opened():
            pass

    @contextmanager
    def opened(self) -> Iterator[OpenCheckpoint]:
        """The contents, through the main file. Raises `InputError` if they cannot be read."""
        refuse_vds_prefix()
        path = self.folder / MAIN_FILE
        with reporting(path):
            file = h5py.File(path, "r", locking=False)
        with file:
            yield OpenCheckpoint(path, file, len(self.files) - 1)


def _unreadable(path: Path, error: OSError) -> UnreadableError:
    return UnreadableError(
        f"{path}: {error.strerror} on {socket.gethostname()}, so nothing is known of the "
        "checkpoint; see to the file system and to permissions, and start again"
    )


def _manifest(folder: Path) -> dict[str, tuple[int, str]]:
    path = folder / MANIFEST
    try:
        if path.exists() and not path.is_file():  # a pipe would be read for ever
            raise InputError(f"{path}: must be a plain file, and is none; {ADVICE}")
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: {error.strerror}; the checkpoint is not complete; use another"
        ) from None
    except OSError as error:
        raise _unreadable(path, error) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); {ADVICE}") from None
    try:
        files = {
            str(name): (int(entry["bytes"]), str(entry["sha256"]))
            for name, entry in content["files"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise InputError(f"{path}: not a manifest; {ADVICE}") from None
    return files

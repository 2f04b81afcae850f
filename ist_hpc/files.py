"""Files that are complete or absent: written beside, flushed to disk, renamed."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from ist_hpc.errors import InputError


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
    """fsync a file, or a folder (which makes the names in it durable)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def partial_names(name: str, process: str = "*") -> str:
    """What a file or folder of this name is called while a process writes it."""
    return f".{name}.partial-{process}"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The name of a file to write in the block, which then takes the place of `path`.

    A reader sees the old one or the new one; after an error in the block the old one is left.
    """
    beside = path.with_name(partial_names(path.name, str(os.getpid())))
    try:
        yield beside
        flush_to_disk(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    flush_to_disk(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write or replace a text file so that a reader sees the old one or the new one."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")

"""Reads HDF5 files that may be damaged: a damage is reported as an `InputError`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ist_hpc.common.errors import InputError

# What h5py raises for a damaged file; the last two come from sizes that the file only claims.
_OF_DAMAGE = (
    OSError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    OverflowError,
    MemoryError,
)
ADVICE = "the checkpoint is damaged; copy it again or use another"


@contextmanager
def reporting(path: Path) -> Iterator[None]:
    """Turn any error of h5py for a damaged file into an `InputError` that names the file."""
    try:
        yield
    except _OF_DAMAGE as error:
        raise InputError(
            f"{path}: cannot be read ({_first_line(error)}); the file is damaged or another kind "
            "of file; copy it again or use another"
        ) from None


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__

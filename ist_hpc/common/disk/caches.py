"""Folders in which libraries cache results as they are imported: one must be writable.

If numba, which librosa uses, can write nowhere, it raises an exception, and matplotlib prints
notes: in a container, or on a node where a home folder is missing, read-only or full. They then get
a folder of our own, which is removed when the process that made it ends. Processes that it starts
get the same folder through their environment.
"""

import atexit
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

from ist_hpc.common.errors import InputError

NUMBA_VARIABLE = "NUMBA_CACHE_DIR"
MATPLOTLIB_VARIABLE = "MPLCONFIGDIR"


_own: set[str] = set()
"""The variables that name folders which this process has made."""


def is_own(variable: str) -> bool:
    """Whether this process made the folder that `variable` names, so that it was empty."""
    return variable in _own


def for_numba(package: str) -> bool:
    """Let numba find a folder for the functions of `package`, before that is imported.

    Returns whether the folder had to be made. Raises `InputError` if there is no room for one.
    """
    given = os.environ.get(NUMBA_VARIABLE)
    if given and _writable(Path(given)):
        return False
    beside = _beside_the_sources(package)
    if beside and all(_writable(folder) for folder in beside):
        return False
    if _writable(_usual("XDG_CACHE_HOME", ".cache", "numba")):
        return False
    _make_own(NUMBA_VARIABLE, package)
    return True


def for_matplotlib() -> bool:
    """Let matplotlib find a folder, before it is imported; see `for_numba`."""
    given = os.environ.get(MATPLOTLIB_VARIABLE)
    usual = [
        _usual("XDG_CONFIG_HOME", ".config", "matplotlib"),
        _usual("XDG_CACHE_HOME", ".cache", "matplotlib"),
    ]
    if all(_writable(folder) for folder in ([Path(given)] if given else usual)):
        return False
    _make_own(MATPLOTLIB_VARIABLE, "matplotlib")
    return True


def _beside_the_sources(package: str) -> list[Path]:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        return []
    roots = [Path(root) for root in found.submodule_search_locations]
    inner = [init.parent for root in roots for init in root.glob("*/__init__.py")]
    return [folder / "__pycache__" for folder in (*roots, *inner)]


def _usual(variable: str, below_home: str, name: str) -> Path | None:
    base = os.environ.get(variable) or os.path.expanduser(f"~/{below_home}")
    # An unknown home stays `~`, which would be a folder of this name right here.
    return Path(base) / name if os.path.isabs(base) else None


def _writable(folder: Path | None) -> bool:
    """Whether a file can be made in the folder, as libraries try; makes the folder if possible."""
    if folder is None:
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
        return True
    except OSError:
        return False


def _make_own(variable: str, package: str) -> None:
    try:
        own = tempfile.mkdtemp(prefix="ist_hpc-cache-")
    except OSError as error:
        raise InputError(
            f"{package} needs a folder to write to as it is imported, and neither the home folder "
            f"nor a temporary folder can be written to ({error}); set TMPDIR to one that can"
        ) from None
    os.environ[variable] = own
    _own.add(variable)
    atexit.register(_remove, own, os.getpid())


def _remove(folder: str, maker: int) -> None:
    if os.getpid() == maker:
        shutil.rmtree(folder, ignore_errors=True)

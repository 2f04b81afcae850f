"""The memory that a node grants to the ranks on it.

Bounds on the ranks of a node together: its physical memory, their cgroups, Slurm's allocation, and
the memory that is free at the moment. Bounds on each rank: `ulimit -v` and `ulimit -d`. Nothing
here communicates: every rank reports what it finds, and `limits.refusal` judges what all ranks of a
node have found.
"""

import os
import re
import resource
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

_NODE = "node"
_UNLIMITED = 1 << 60  # cgroup v1 writes the largest number of pages if there is no limit
_SUFFIXES = {"": 1 << 20, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True)
class SharedLimit:
    """A bound on processes together.

    limit_bytes  bytes that they may have
    source       where the bound comes from, in words
    shared_by    a name that is equal for the ranks of a node that the bound counts together
    """

    limit_bytes: int
    source: str
    shared_by: str


@dataclass(frozen=True)
class ProcessLimit:
    """A bound on one process; `used_bytes` is what the process used of it at the time."""

    limit_bytes: int
    used_bytes: int
    source: str


@dataclass(frozen=True)
class Grant:
    """The bounds that one rank found, to compare with those of the other ranks of its node.

    host             name of the node
    shared           at least one, the physical memory; the smallest first
    available_bytes  physical memory that no process holds now; page cache counts as free
    process          the `ulimit` that leaves least, None if there is none
    """

    host: str
    shared: tuple[SharedLimit, ...]
    available_bytes: int
    process: ProcessLimit | None


def granted_bytes(root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> Grant:
    """The memory granted by this process's node. Local; raises nothing: unreadable bounds are none.

    root     the folder that contains /proc/self/cgroup and /sys/fs/cgroup
    environ  the environment that contains Slurm's variables
    """
    memory = psutil.virtual_memory()
    physical = SharedLimit(memory.total, "physical memory", _NODE)
    shared = (physical, *_slurm_limits(environ), *_cgroup_limits(root))
    return Grant(
        host=socket.gethostname(),
        shared=tuple(sorted(shared, key=lambda limit: limit.limit_bytes)),
        available_bytes=memory.available,
        process=_process_limit(),
    )


def _process_limit() -> ProcessLimit | None:
    used = psutil.Process().memory_info()
    found = []
    for which, used_bytes, source in (
        (resource.RLIMIT_AS, used.vms, "ulimit -v"),
        (resource.RLIMIT_DATA, getattr(used, "data", used.rss), "ulimit -d"),
    ):
        limit_bytes, _ = resource.getrlimit(which)
        if limit_bytes != resource.RLIM_INFINITY:
            found.append(ProcessLimit(limit_bytes, used_bytes, source))
    return min(found, key=lambda limit: limit.limit_bytes - limit.used_bytes, default=None)


def _slurm_limits(environ: Mapping[str, str]) -> list[SharedLimit]:
    """Slurm's allocation on this node (man sbatch, "output environment variables")."""
    for name, counted_by in (
        ("SLURM_MEM_PER_NODE", None),
        ("SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE"),
        ("SLURM_MEM_PER_GPU", "SLURM_GPUS_ON_NODE"),
    ):
        each_bytes = _slurm_bytes(environ.get(name, ""))
        source, count = f"{name}={environ.get(name)}", "1"
        if counted_by:
            count = environ.get(counted_by, "")
            source += f" x {counted_by}={count}"
        if each_bytes and re.fullmatch("[1-9][0-9]*", count):
            return [SharedLimit(each_bytes * int(count), f"Slurm ({source})", _NODE)]
    return []


def _slurm_bytes(text: str) -> int:
    """Bytes of `16000` (MiB) or `16G`; 0, which means the whole node, also for other words."""
    found = re.fullmatch(r"([0-9]+)([KMGT]?)", text.strip().upper())
    return int(found[1]) * _SUFFIXES[found[2]] if found else 0


def _cgroup_limits(root: Path) -> list[SharedLimit]:
    """Limits of this process's memory cgroups (version 2 and 1) and of those around them."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    mount = root / "sys/fs/cgroup"
    limits = []
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            limits += _limits_upward(mount / "memory", path, "memory.limit_in_bytes")
        elif (number, controllers) == ("0", ""):
            for hierarchy in (mount, mount / "unified"):
                limits += _limits_upward(hierarchy, path, "memory.max")
    return limits


def _limits_upward(mount: Path, path: str, name: str) -> list[SharedLimit]:
    """Limits of the group at `path` and of every group around it, as far as they are visible.

    Inside a container the path may be the host's, where only the top is mounted.
    """
    parts = PurePosixPath(path).relative_to("/").parts if path.startswith("/") else ()
    if ".." in parts:  # the process is outside what this namespace shows
        parts = ()
    limits = []
    for depth in range(len(parts), -1, -1):
        group = mount.joinpath(*parts[:depth])
        try:
            limit_bytes = int((group / name).read_text(encoding="utf-8"))
            status = group.stat()
        except (OSError, ValueError):  # ValueError: the word max
            continue
        if limit_bytes < _UNLIMITED:
            identity = f"cgroup {status.st_dev}:{status.st_ino}"
            limits.append(SharedLimit(limit_bytes, f"cgroup {group / name}", identity))
    return limits

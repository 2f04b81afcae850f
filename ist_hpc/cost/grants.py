"""The memory that a node grants to the ranks on it.

What bounds the ranks of a node together: its physical memory, the cgroups they are in, Slurm's
allocation; and what is free at the moment. What bounds each: `ulimit -v` and `ulimit -d`. Nothing
here communicates: every rank says what it finds, and `limits.refusal` judges what all ranks of a
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
_UNLIMITED = 1 << 60  # cgroup v1 writes the largest number of pages where there is no limit
_SUFFIXES = {"": 1 << 20, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True)
class SharedLimit:
    """A bound on processes together.

    limit_bytes  what they may have
    source       where it comes from, for people
    shared_by    a name that is equal for those ranks of a node which the bound counts together
    """

    limit_bytes: int
    source: str
    shared_by: str


@dataclass(frozen=True)
class ProcessLimit:
    """A bound on one process; `used_bytes` is what it had of it when the bound was looked up."""

    limit_bytes: int
    used_bytes: int
    source: str


@dataclass(frozen=True)
class Grant:
    """What one rank found, to be compared with what the other ranks of its node found.

    host             name of the node
    shared           at least one, the physical memory; the smallest first
    available_bytes  of the physical memory what no process holds now; page cache counts as free
    process          the `ulimit` that leaves least, None if there is none
    """

    host: str
    shared: tuple[SharedLimit, ...]
    available_bytes: int
    process: ProcessLimit | None


def granted_bytes(root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> Grant:
    """What this process' node grants. Local; raises nothing: what cannot be read is no bound.

    root     where /proc/self/cgroup and /sys/fs/cgroup are looked for
    environ  where Slurm's variables are looked for
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
    """Bytes of `16000` (MiB) or `16G`; 0, which means all of the node, also for other words."""
    found = re.fullmatch(r"([0-9]+)([KMGT]?)", text.strip().upper())
    return int(found[1]) * _SUFFIXES[found[2]] if found else 0


def _cgroup_limits(root: Path) -> list[SharedLimit]:
    """Limits of the memory cgroups (version 2 and 1) of this process and of those around them."""
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
    """Of the group at `path` and of every group that it is in, as far as they can be seen.

    Inside a container the path may be the host's, of which only the top is mounted here.
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

"""The memory that a node grants to the ranks on it, and the words of a run that would need more.

What bounds the ranks of a node together: its physical memory, the cgroups they are in, Slurm's
allocation; and what is free at the moment. What bounds each: `ulimit -v` and `ulimit -d`. Nothing
here communicates: every rank says what it finds (`granted_bytes`), and `refusal` judges what all
ranks of a node have found.
"""

import os
import re
import resource
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

BASE_BYTES = 315 << 20
"""Resident memory of a rank beside its model, as in most runs. About 155 MiB of it are its own; the
rest are pages of PyTorch's libraries, of which the kernel may map more (630 MiB in all were seen),
and which it takes back when memory is short."""

_NODE = "node"
_FIRST_USE_BYTES = 16 << 20  # what MPI, BLAS and HDF5 take when they are first used
_UNLIMITED = 1 << 60  # cgroup v1 writes the largest number of pages where there is no limit
_SUFFIXES = {"": 1 << 20, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SMALLER = "a smaller `data.batch_size`, `exchange.buffer_mib` or `data.window_mib`"


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

    @property
    def node_bytes(self) -> int:
        """The smallest bound on the ranks of this node together."""
        return self.shared[0].limit_bytes

    @property
    def node_source(self) -> str:
        """Where `node_bytes` comes from, for people."""
        return self.shared[0].source

    @property
    def process_bytes(self) -> int | None:
        """The bound on this process alone, None if there is none."""
        return self.process.limit_bytes if self.process else None

    @property
    def process_source(self) -> str | None:
        """Where `process_bytes` comes from, for people."""
        return self.process.source if self.process else None


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


# The verdict.


@dataclass(frozen=True)
class _Demand:
    """What is needed beside what is granted, and how a refusal says so."""

    need_bytes: int
    granted_bytes: int
    words: str

    @property
    def times(self) -> float:
        """Need over grant; above one it does not fit."""
        return self.need_bytes / max(1, self.granted_bytes)


def refusal(
    predicted_bytes_a_rank: int,
    node_grants: Sequence[Grant],
    base_bytes: int = BASE_BYTES,
    configured_gb: float | None = None,
) -> str | None:
    """One line that says why the ranks of a node cannot have what they need; None if they can.

    predicted_bytes_a_rank  what a rank will need beside what it has before it makes its model
    node_grants             of every rank on the node, so that all of them come to the same answer
    base_bytes              what a rank has before that: Python, PyTorch, MPI
    configured_gb           `runtime.memory_gb`: GB of the node, instead of everything found

    Local. A `ulimit` counts addresses, not memory, and what is free now is what the ranks have
    left: there the prediction is added to what was found, and `base_bytes` has no part in it.
    The threads of Horovod, where a model needs it, and of `runtime.threads` reserve addresses
    later, which are not counted: about 480 MiB, and 80 MiB each.
    """
    ranks = len(node_grants)
    if configured_gb is not None:
        limit = SharedLimit(round(configured_gb * 1e9), "`runtime.memory_gb`", _NODE)
        demands = [_together(limit, ranks, predicted_bytes_a_rank, base_bytes)]
    else:
        demands = [
            _together(limit, count, predicted_bytes_a_rank, base_bytes)
            for limit, count in _counted(node_grants).items()
        ]
        demands.append(_free_now(node_grants, predicted_bytes_a_rank))
        demands += [
            _alone(grant.process, predicted_bytes_a_rank) for grant in node_grants if grant.process
        ]
    worst = max(demands, key=lambda demand: demand.times)
    if worst.times <= 1:
        return None
    return f"not enough memory on {node_grants[0].host}: {worst.words}"


def _counted(node_grants: Sequence[Grant]) -> Counter[SharedLimit]:
    """Every bound on ranks together, with the number of ranks that it bounds."""
    return Counter(limit for grant in node_grants for limit in set(grant.shared))


def _together(limit: SharedLimit, ranks: int, predicted_bytes: int, base_bytes: int) -> _Demand:
    need_bytes = ranks * (predicted_bytes + base_bytes)
    return _Demand(
        need_bytes,
        limit.limit_bytes,
        f"{ranks} rank(s) need {_gb(need_bytes)} (each {_gb(predicted_bytes)} to train, "
        f"{_gb(base_bytes)} for Python, PyTorch and MPI), and may have {_gb(limit.limit_bytes)}: "
        f"{limit.source}; take more nodes, {_SMALLER}, or set `runtime.memory_gb` if the node has "
        "more",
    )


def _free_now(node_grants: Sequence[Grant], predicted_bytes: int) -> _Demand:
    ranks, need_bytes = len(node_grants), len(node_grants) * predicted_bytes
    free_bytes = min(grant.available_bytes for grant in node_grants)
    return _Demand(
        need_bytes,
        free_bytes,
        f"{ranks} rank(s) need {_gb(need_bytes)} more (each {_gb(predicted_bytes)} to train), and "
        f"{_gb(free_bytes)} are free, page cache included; end what else runs there, take more "
        f"nodes, {_SMALLER}, or set `runtime.memory_gb` if the node has more",
    )


def _alone(limit: ProcessLimit, predicted_bytes: int) -> _Demand:
    has_bytes = limit.used_bytes + _FIRST_USE_BYTES
    need_bytes = predicted_bytes + has_bytes
    return _Demand(
        need_bytes,
        limit.limit_bytes,
        f"a rank needs {_gb(need_bytes)} ({_gb(predicted_bytes)} to train, {_gb(has_bytes)} for "
        f"Python, PyTorch and MPI), and a process may have {_gb(limit.limit_bytes)}: "
        f"{limit.source}; take more ranks, {_SMALLER}, raise the limit, or set `runtime.memory_gb` "
        "if it does not hold",
    )


def _gb(value_bytes: int) -> str:
    """GB of 10^9 bytes, to 10 MB."""
    return f"{value_bytes / 1e9:,.2f} GB"

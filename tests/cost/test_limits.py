"""What a node grants: fake cgroup trees, Slurm's variables, real ulimits; and the refusals."""

import os
import resource
import subprocess
import sys
from dataclasses import replace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ist_hpc.cost.limits import (
    BASE_BYTES,
    Grant,
    ProcessLimit,
    SharedLimit,
    granted_bytes,
    refusal,
)

GB = 10**9
NO_SLURM: dict[str, str] = {}


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def cgroups_of(root):
    """(limit, source below the root) of the cgroup limits that are found, the smallest first."""
    shared = granted_bytes(root, NO_SLURM).shared
    return [
        (limit.limit_bytes, limit.source.removeprefix(f"cgroup {root}/"))
        for limit in shared
        if limit.source.startswith("cgroup")
    ]


# What is found.


def test_a_bare_machine_grants_its_physical_memory(tmp_path):
    grant = granted_bytes(tmp_path, NO_SLURM)
    assert (grant.node_bytes, grant.node_source) == (
        psutil.virtual_memory().total,
        "physical memory",
    )
    assert 0 < grant.available_bytes <= grant.node_bytes
    assert grant.host


def test_cgroup_2_is_searched_upward(tmp_path):
    write(tmp_path / "proc/self/cgroup", "0::/system.slice/job_7/step_0\n")
    mount = tmp_path / "sys/fs/cgroup"
    write(mount / "system.slice/job_7/step_0/memory.max", "max\n")
    write(mount / "system.slice/job_7/memory.max", "7000000000\n")
    write(mount / "system.slice/memory.max", "9000000000\n")
    assert cgroups_of(tmp_path) == [
        (7 * GB, "sys/fs/cgroup/system.slice/job_7/memory.max"),
        (9 * GB, "sys/fs/cgroup/system.slice/memory.max"),
    ]
    assert granted_bytes(tmp_path, NO_SLURM).node_bytes <= 7 * GB


def test_cgroup_1_has_its_own_names_and_its_own_unlimited(tmp_path):
    write(
        tmp_path / "proc/self/cgroup",
        "5:cpu,cpuacct:/other\n4:memory:/slurm/uid_1/job_7\n1:name=systemd:/init\n0::/\n",
    )
    memory = tmp_path / "sys/fs/cgroup/memory"
    write(memory / "memory.limit_in_bytes", "9223372036854771712\n")
    write(memory / "slurm/uid_1/memory.limit_in_bytes", "9223372036854710272\n")
    write(memory / "slurm/uid_1/job_7/memory.limit_in_bytes", "3000000000\n")
    write(memory / "other/memory.limit_in_bytes", "1\n")
    assert cgroups_of(tmp_path) == [
        (3 * GB, "sys/fs/cgroup/memory/slurm/uid_1/job_7/memory.limit_in_bytes")
    ]


def test_a_hybrid_hierarchy_has_both(tmp_path):
    write(tmp_path / "proc/self/cgroup", "4:memory:/a\n0::/b\n")
    mount = tmp_path / "sys/fs/cgroup"
    write(mount / "memory/a/memory.limit_in_bytes", "4000000000")
    write(mount / "unified/b/memory.max", "5000000000")
    assert [limit for limit, _ in cgroups_of(tmp_path)] == [4 * GB, 5 * GB]


@pytest.mark.parametrize("path", ["/docker/0123", "/../../outside", ""])
def test_in_a_container_only_the_top_may_be_seen(tmp_path, path):
    write(tmp_path / "proc/self/cgroup", f"0::{path}\n")
    write(tmp_path / "sys/fs/cgroup/memory.max", "2000000000\n")
    assert cgroups_of(tmp_path) == [(2 * GB, "sys/fs/cgroup/memory.max")]


@pytest.mark.parametrize("text", ["", "nonsense", "0::/gone\n", "\x00:\n:::"])
def test_what_cannot_be_read_is_no_bound(tmp_path, text):
    write(tmp_path / "proc/self/cgroup", text)
    write(tmp_path / "sys/fs/cgroup/memory.max", "")
    assert cgroups_of(tmp_path) == []


def test_ranks_of_one_cgroup_share_it_and_others_do_not(tmp_path):
    def found(name):
        write(tmp_path / "proc/self/cgroup", f"0::/job/{name}\n")
        return granted_bytes(tmp_path, NO_SLURM)

    for name, limit in (("job", 10 * GB), ("job/a", 4 * GB), ("job/b", 4 * GB)):
        write(tmp_path / f"sys/fs/cgroup/{name}/memory.max", str(limit))
    a, again, b = found("a"), found("a"), found("b")
    assert a == replace(again, available_bytes=a.available_bytes)
    assert a.shared[0] != b.shared[0]
    assert a.shared[1] == b.shared[1]


@pytest.mark.parametrize(
    ("environ", "mib", "source"),
    [
        ({"SLURM_MEM_PER_NODE": "16000"}, 16000, "Slurm (SLURM_MEM_PER_NODE=16000)"),
        ({"SLURM_MEM_PER_NODE": "2G"}, 2048, "Slurm (SLURM_MEM_PER_NODE=2G)"),
        (
            {"SLURM_MEM_PER_CPU": "500", "SLURM_CPUS_ON_NODE": "3"},
            1500,
            "Slurm (SLURM_MEM_PER_CPU=500 x SLURM_CPUS_ON_NODE=3)",
        ),
        (
            {"SLURM_MEM_PER_GPU": "700", "SLURM_GPUS_ON_NODE": "2"},
            1400,
            "Slurm (SLURM_MEM_PER_GPU=700 x SLURM_GPUS_ON_NODE=2)",
        ),
        ({"SLURM_MEM_PER_NODE": "0"}, None, None),
        ({"SLURM_MEM_PER_NODE": "lots"}, None, None),
        ({"SLURM_MEM_PER_CPU": "500"}, None, None),
        ({"SLURM_MEM_PER_CPU": "500", "SLURM_CPUS_ON_NODE": "4(x2)"}, None, None),
    ],
)
def test_slurm_grants_what_its_variables_say(tmp_path, monkeypatch, environ, mib, source):
    for name in list(os.environ):
        if name.startswith("SLURM_"):
            monkeypatch.delenv(name)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    found = [limit for limit in granted_bytes(tmp_path).shared if limit.source.startswith("Slurm")]
    if mib is None:
        assert found == []
    else:
        assert [(limit.limit_bytes, limit.source) for limit in found] == [(mib << 20, source)]


UNDER_A_LIMIT = """
import mmap, resource, sys
from ist_hpc.cost.limits import granted_bytes, refusal
limit_bytes, over_bytes = map(int, sys.argv[2:])
resource.setrlimit(getattr(resource, sys.argv[1]), (limit_bytes, limit_bytes))
grant = granted_bytes()
predicted_bytes = limit_bytes - grant.process.used_bytes + over_bytes
print(grant.process_source, grant.process_bytes, refusal(predicted_bytes, [grant]), sep=";")
try:
    mmap.mmap(-1, predicted_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    print("had it")
except OSError:
    print("could not have it")
"""


@pytest.mark.parametrize(("name", "source"), [("AS", "ulimit -v"), ("DATA", "ulimit -d")])
@pytest.mark.parametrize("over_mib", [-32, 32])
def test_under_a_real_ulimit_the_verdict_is_the_kernels(name, source, over_mib):
    command = [sys.executable, "-c", UNDER_A_LIMIT, f"RLIMIT_{name}", str(1 << 30)]
    done = subprocess.run(
        [*command, str(over_mib << 20)], capture_output=True, text=True, timeout=60, check=True
    )
    found, kernel = done.stdout.splitlines()
    got_source, limit, refused = found.split(";", maxsplit=2)
    assert (got_source, int(limit)) == (source, 1 << 30)
    if over_mib > 0:
        assert f"may have 1.07 GB: {source}" in refused
        assert kernel == "could not have it"
    else:
        assert (refused, kernel) == ("None", "had it")


def test_no_ulimit_is_no_bound():
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        pytest.skip("these tests run under a ulimit -v")
    assert granted_bytes().process_bytes is None
    assert granted_bytes().process_source is None


# The verdict.


def grant(node_gb=100.0, free_gb=100.0, process=None, more=()):
    physical = SharedLimit(round(node_gb * GB), "physical memory", "node")
    shared = sorted((physical, *more), key=lambda limit: limit.limit_bytes)
    return Grant("n1", tuple(shared), round(free_gb * GB), process)


def test_what_fits_is_not_refused():
    assert refusal(24 * GB, [grant()] * 4, base_bytes=GB) is None
    assert refusal(24 * GB + 1, [grant()] * 4, base_bytes=GB) is not None


def test_a_refusal_has_all_numbers_and_the_cures_in_one_line():
    slurm = SharedLimit(8 * GB, "Slurm (SLURM_MEM_PER_NODE=8000)", "node")
    said = refusal(3 * GB, [grant(more=[slurm])] * 4, base_bytes=GB // 4)
    assert said == (
        "not enough memory on n1: 4 rank(s) need 13.00 GB (each 3.00 GB to train, 0.25 GB for "
        "Python, PyTorch and MPI), and may have 8.00 GB: Slurm (SLURM_MEM_PER_NODE=8000); take "
        "more nodes, a smaller `data.batch_size`, `exchange.buffer_mib` or `data.window_mib`, or "
        "set `runtime.memory_gb` if the node has more"
    )


def test_what_other_processes_hold_is_not_free():
    said = refusal(3 * GB, [grant(free_gb=11.5), grant(free_gb=40)] * 2)
    assert "4 rank(s) need 12.00 GB more" in said
    assert "11.50 GB are free, page cache included" in said
    assert refusal(3 * GB, [grant(free_gb=12)] * 4) is None


def test_each_rank_must_fit_its_own_limit():
    free, bound = grant(), grant(process=ProcessLimit(4 * GB, GB, "ulimit -v"))
    assert refusal(2 * GB, [free, bound]) is None
    said = refusal(3 * GB, [free, bound])
    assert "a rank needs 4.02 GB (3.00 GB to train, 1.02 GB for Python, PyTorch and MPI)" in said
    assert "a process may have 4.00 GB: ulimit -v" in said


def test_a_cgroup_counts_the_ranks_in_it_only():
    own = [grant(more=[SharedLimit(4 * GB, f"cgroup {i}", f"cgroup {i}")]) for i in range(4)]
    together = [grant(more=[SharedLimit(4 * GB, "cgroup", "cgroup 9")])] * 4
    assert refusal(3 * GB, own, base_bytes=GB) is None
    assert "4 rank(s) need 16.00 GB" in refusal(3 * GB, together, base_bytes=GB)
    assert "1 rank(s) need 4.50 GB" in refusal(3 * GB + GB // 2, own, base_bytes=GB)


def test_the_configuration_has_the_last_word():
    tight = grant(1, 1, ProcessLimit(GB, GB, "ulimit -v"))
    assert refusal(3 * GB, [tight] * 2, base_bytes=GB, configured_gb=8) is None
    said = refusal(3 * GB, [grant()] * 2, base_bytes=GB, configured_gb=7.5)
    assert "2 rank(s) need 8.00 GB" in said
    assert "may have 7.50 GB: `runtime.memory_gb`" in said


AMOUNT = st.integers(0, 40)
PROCESS = st.none() | st.builds(ProcessLimit, AMOUNT, AMOUNT, st.just("ulimit -v"))
GROUPS = st.lists(st.tuples(AMOUNT, st.sampled_from("ab")), max_size=2, unique_by=lambda g: g[1])


@given(
    predicted=AMOUNT,
    base=st.integers(0, 3),
    found=st.lists(st.tuples(AMOUNT, PROCESS, GROUPS), min_size=1, max_size=4),
)
def test_refused_means_that_one_bound_is_too_small(predicted, base, found):
    """Against the rule said plainly: in units of 16 MiB, of which first use takes one."""
    unit = 16 << 20
    limits = {name: size for _, _, groups in reversed(found) for size, name in groups}
    grants, members = [], dict.fromkeys(limits, 0)
    for free, process, groups in found:
        shared = [SharedLimit(30 * unit, "physical memory", "node")]
        for _, name in groups:
            shared.append(SharedLimit(limits[name] * unit, name, name))
            members[name] += 1
        if process:
            process = replace(
                process,
                limit_bytes=process.limit_bytes * unit,
                used_bytes=process.used_bytes * unit,
            )
        grants.append(Grant("n", tuple(shared), free * unit, process))
    fits = (
        len(found) * (predicted + base) <= 30
        and all(members[name] * (predicted + base) <= limits[name] for name in limits)
        and all(len(found) * predicted <= free for free, _, _ in found)
        and all(
            predicted + process.used_bytes + 1 <= process.limit_bytes
            for _, process, _ in found
            if process
        )
    )
    said = refusal(predicted * unit, grants, base_bytes=base * unit)
    assert (said is None) == fits
    assert fits or "\n" not in said


def test_the_base_is_what_a_rank_has_without_a_model():
    """Its own memory is well inside the base; pages of libraries come beside, and vary."""
    code = (
        "import torch, h5py, mpi4py.MPI\n"
        "x = torch.rand(500, 500, requires_grad=True)\n(x @ x).sum().backward()\n"
        "print(*(l.split()[1] for l in open('/proc/self/status') if l.startswith('RssAnon')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert BASE_BYTES / 4 < int(done.stdout) << 10 < BASE_BYTES

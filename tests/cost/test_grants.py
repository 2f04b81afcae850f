"""What a node grants: fake cgroup trees, Slurm's variables, real ulimits."""

import os
import resource
from dataclasses import replace

import psutil
import pytest

from ist_hpc.cost.grants import granted_bytes

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


def test_a_bare_machine_grants_its_physical_memory(tmp_path):
    grant = granted_bytes(tmp_path, NO_SLURM)
    smallest = grant.shared[0]
    assert (smallest.limit_bytes, smallest.source) == (
        psutil.virtual_memory().total,
        "physical memory",
    )
    assert 0 < grant.available_bytes <= smallest.limit_bytes
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
    assert granted_bytes(tmp_path, NO_SLURM).shared[0].limit_bytes <= 7 * GB


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


def test_no_ulimit_is_no_bound():
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        pytest.skip("these tests run under a ulimit -v")
    assert granted_bytes().process is None

"""The refusals, by real ulimits and by grants that are made up."""

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ist_hpc.cost.grants import Grant, ProcessLimit, SharedLimit
from ist_hpc.cost.limits import BASE_BYTES, refusal

GB = 10**9

UNDER_A_LIMIT = """
import mmap, resource, sys
from ist_hpc.cost.grants import granted_bytes
from ist_hpc.cost.limits import refusal
limit_bytes, over_bytes = map(int, sys.argv[2:])
resource.setrlimit(getattr(resource, sys.argv[1]), (limit_bytes, limit_bytes))
grant = granted_bytes()
predicted_bytes = limit_bytes - grant.process.used_bytes + over_bytes
print(grant.process.source, grant.process.limit_bytes, refusal(predicted_bytes, [grant]), sep=";")
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

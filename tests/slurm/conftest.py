"""What tests of jobs share: a site of small scripts; a real Slurm cluster, and shards for it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.job_site import Site, make_site
from tests.helpers.slurm_cluster import HOSTS, NODES, every_node_is_idle, wait_until, write_text

_DAEMONS = ("slurmctld", "slurmd", "munged", "ip", "tc")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A folder with all that a job needs, and small scripts in place of Slurm's commands."""
    return make_site(tmp_path)


@pytest.fixture(scope="module")
def cluster(own_hosts: None) -> Iterator[None]:
    """Four nodes, h1 to h4, of a Slurm cluster of their own."""
    missing = [name for name in _DAEMONS if not shutil.which(name)]
    if os.geteuid() != 0 or missing:
        pytest.skip(
            "a Slurm cluster needs root, iproute2 (ip, tc), slurm-wlm, munge and libpmix-dev; "
            f"missing: {', '.join(missing) or 'root'}"
        )
    subprocess.run([HOSTS, "up", str(NODES), "1gbit"], check=True, timeout=60)
    try:
        subprocess.run([HOSTS, "slurm"], check=True, timeout=60)
        wait_until(every_node_is_idle)  # hosts.sh waits for one only
        yield
    finally:
        subprocess.run([HOSTS, "down"], check=True, timeout=90)


@pytest.fixture
def healed(cluster: None) -> Iterator[None]:
    """The cluster, whose nodes are brought back after the test."""
    yield
    for number in range(1, NODES + 1):
        subprocess.run([HOSTS, "heal", f"h{number}"], check=True, timeout=20)
    wait_until(every_node_is_idle)


@pytest.fixture(scope="module")
def shards(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made data of Amazon-670k's kind, as shards."""
    folder = tmp_path_factory.mktemp("slurm")
    text = write_text(folder / "text")
    words = ["prepare", "xmc", "--train", f"{text}/train.txt", "--test", f"{text}/test.txt"]
    words[0] = "ist_hpc.prepare"
    subprocess.run(
        [sys.executable, "-m", *words, "--output", folder / "data"],
        check=True,
        timeout=60,
        capture_output=True,
    )
    return folder / "data"

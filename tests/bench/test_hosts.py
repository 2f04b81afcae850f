"""The exchange between hosts that have nothing in common but a slow network."""

import json
import os
import shutil
import subprocess

import pytest

from tests.helpers.launching import ROOT

pytestmark = pytest.mark.long

HOSTS = str(ROOT / "bench" / "hosts.sh")


@pytest.fixture
def hosts(own_hosts):
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("tc"):
        pytest.skip("network namespaces need root and iproute2 (ip, tc)")
    subprocess.run([HOSTS, "up", "2", "1gbit"], check=True, timeout=60)
    yield
    subprocess.run([HOSTS, "down"], check=True, timeout=60)


def test_a_round_crosses_the_network_between_two_hosts(hosts, tmp_path):
    command = [HOSTS, "mpirun", "2", "env", "OMP_NUM_THREADS=1", "python", "-m", "ist_hpc.bench"]
    command += ["exchange", "--json", "--rounds", "2", "--config"]
    command += [str(ROOT / "configs/quickstart.yaml"), "--set", "model.hidden=[1024,1024]"]
    command += ["model.inputs=512", "model.outputs=10", "optimizer.momentum=0"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["ranks"] == 2
    # What a host receives cannot be faster than its link: 2 MiB at 1 Gbit/s, less one burst of
    # half a MiB that the shaper lets through at once.
    received_bits = figures["mib_received_a_rank"] * 2**20 * 8
    assert received_bits > 8e6
    assert min(figures["exchange_s"]) > (received_bits - 2 * 8 * 512e3) / 1e9

"""The rehearsal of what a machine with a GPU is to prove."""

import subprocess

import pytest

from tests.helpers.launching import ROOT, outside_make

pytestmark = pytest.mark.long


def test_every_stage_comes_to_its_end(tmp_path):
    """From set-up to learning curves, tiny, on the CPU; each leaves what it printed."""
    done = subprocess.run(
        [ROOT / "bench/gpu.sh", "--pretend", "--results", tmp_path, "1", "2", "3", "4", "5", "6"],
        env={**outside_make(), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    seconds = (tmp_path / "seconds.txt").read_text().splitlines()
    assert [line.partition(":")[0] for line in seconds] == [f"stage {n}" for n in range(1, 7)]
    assert all(line.endswith("to its end") for line in seconds)
    for stage, said in {
        1: "2 ranks on cpu: exchanged, and averaged by Horovod: right",
        2: "from the oracle; a second run has the same bits",
        3: "| amazon670k | bf16 |",
        4: "exchange, s",
        5: "| amazon-n2 | 2 |",
        6: "local_sgd",
    }.items():
        assert said in (tmp_path / f"{stage}.txt").read_text(), stage

"""Checkpoints of the version before configurations had a section for each kind of network.

In `written_before/` are runs of two ranks after two rounds: `mlp` on the digits, `resnet` on the
images of `helpers/image_runs.py`. Their configurations have the keys of all kinds.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest

from ist_hpc.config import loading
from tests.helpers import checkpoints, image_runs
from tests.helpers.launching import one_error_line, run_python, run_ranks

WRITTEN = Path(__file__).parent / "written_before"
SAVED = "checkpoints/round-00000002"


@pytest.fixture
def old(trained, tmp_path):
    """A folder with the old runs and their data."""
    shutil.copytree(WRITTEN, tmp_path / "runs")
    shutil.copytree(trained.data, tmp_path / "digits")
    image_runs.make_images(tmp_path / "images")
    return tmp_path


@pytest.mark.parametrize("name", ["mlp", "resnet"])
def test_they_are_whole_and_go_on(old, name):
    run = old / "runs" / name
    text = (run / "config.yaml").read_text()
    assert "label_block: 2048" in text
    assert "sections:" in text
    checked = run_python(["-m", "ist_hpc.show", run / SAVED, "--verify"], old)
    assert "whole" in checked.stdout
    before = checkpoints.tensors(run / SAVED)
    settings = ["checkpoint.keep=9", "train.rounds=3"]
    arguments = ["-m", "ist_hpc.train", "--name", name, "--config", run / "config.yaml"]
    run_ranks(2, [*arguments, "--resume", "--set", *settings], cwd=old)
    after = checkpoints.tensors(run / "checkpoints/round-00000003")
    assert after.keys() == before.keys()
    assert any(not np.array_equal(after[key], before[key]) for key in before)
    now = (run / "config.yaml").read_text()
    assert ("label_block:" in now, "sections:" in now) == (name == "mlp", name == "resnet")


def test_a_key_of_another_kind_that_means_something_is_refused(old):
    config = old / "runs" / "resnet" / "config.yaml"
    config.write_text(config.read_text().replace("label_block: 2048", "label_block: 64"))
    done = run_python(["-m", "ist_hpc.plan", "--config", config, "--ranks", "2"], old, check=False)
    assert "`model.label_block` is of `model.kind: mlp`, not of resnet" in one_error_line(done)


def test_their_configurations_are_what_they_were():
    mlp, resnet = (loading.load(WRITTEN / name / "config.yaml").model for name in ("mlp", "resnet"))
    assert (mlp.kind, mlp.hidden, mlp.loss) == ("mlp", [7, 5], "auto")
    assert (resnet.sections, resnet.channels, resnet.min_blocks) == ([1, 1, 3, 1], [2, 2, 3, 3], 1)

"""The batch templates as far as a plain shell can read and run them."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.job_site import AMAZON, AMAZON_CPU, NAMES, RESIST, SCALING, SPEECH, TEMPLATE_PATHS, VGG11
from tests.launching import ROOT


@pytest.mark.parametrize("template", TEMPLATE_PATHS, ids=lambda path: path.name)
def test_the_options_are_ahead_of_the_first_command(template):
    """Slurm reads #SBATCH lines up to the first command and leaves out later ones, silently."""
    lines = template.read_text(encoding="utf-8").splitlines()
    commands = [i for i, line in enumerate(lines) if line and not line.startswith("#")]
    options = [i for i, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert options[-1] < commands[0]
    words = [lines[i].split() for i in options]
    assert all(len(line) == 2 and re.fullmatch(r"--[a-z-]+(=\S+)?", line[1]) for line in words)
    names = {line[1].partition("=")[0] for line in words}
    assert {"--nodes", "--ntasks-per-node", "--requeue", "--time", "--open-mode"} <= names
    # a study that is ended goes on with the runs that are missing; a run must be warned
    assert ("--signal" in names) == (template != SCALING)
    assert not names & {"--account", "--partition", "--qos"}  # of one site only


@pytest.mark.parametrize("template", TEMPLATE_PATHS, ids=lambda path: path.name)
def test_bash_accepts_the_template(template):
    done = subprocess.run(
        ["bash", "-n", template], capture_output=True, text=True, timeout=20, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("template", "variable", "address"),
    [
        (AMAZON, "TEXT", "http://manikvarma.org/downloads/XC/XMLRepository.html"),
        (AMAZON_CPU, "TEXT", "http://manikvarma.org/downloads/XC/XMLRepository.html"),
        (VGG11, "IMAGES", "https://www.cs.toronto.edu/~kriz/cifar.html"),
        (RESIST, "IMAGES", "https://www.cs.toronto.edu/~kriz/cifar.html"),
        (SPEECH, "RECORDINGS", "http://download.tensorflow.org/data/speech_commands_v0.02"),
        (SCALING, "", "slurm/speech.sbatch prepares them"),
    ],
    ids=NAMES,
)
def test_without_data_it_says_where_to_get_them(tmp_path, template, variable, address):
    source = str(tmp_path / "source")
    settings = {"DATA": str(tmp_path / "data"), **({variable: source} if variable else {})}
    done = _in_bash(template, settings)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert f" {template.stem}: error: " in line
    assert not variable or source in line
    assert address in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("template", TEMPLATE_PATHS, ids=lambda path: path.name)
def test_without_an_environment_it_says_so(tmp_path, template):
    done = _in_bash(template, {"VENV": str(tmp_path / "none")})
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert "make setup" in line


def _in_bash(template: Path, settings: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """A template in a plain shell, as far as it comes before it needs Slurm."""
    ours = {
        "VENV": sys.prefix,
        "LAUNCHER": "mpirun",
        "SLURM_JOB_NAME": template.stem,
        "SLURM_NTASKS": "2",
        "SLURM_ARRAY_TASK_ID": "2",
    }
    return subprocess.run(
        ["bash", template],
        cwd=ROOT,
        env={**os.environ, **ours, **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

"""The batch templates as far as a plain shell can read and run them."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.helpers.job_site import (
    AMAZON,
    AMAZON_CPU,
    NAMES,
    RESIST,
    SCALING,
    SPEECH,
    TEMPLATE_PATHS,
    VGG11,
    Site,
    make_site,
)
from tests.helpers.launching import ROOT

pytestmark = pytest.mark.long


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


TRAINING = sorted({path.stem for path in TEMPLATE_PATHS} - {"scaling"})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return make_site(tmp_path_factory.mktemp("site"))


class TestRanks:
    """How many ranks there are, where Slurm says it, says it in part, or is not there."""

    @pytest.mark.parametrize("name", TRAINING)
    @pytest.mark.parametrize(
        ("variables", "ranks"),
        [
            ({"RANKS": "3", "SLURM_NTASKS": "8"}, 3),
            ({"SLURM_NTASKS": "8", "SLURM_TASKS_PER_NODE": "2(x3),1"}, 8),
            ({"SLURM_TASKS_PER_NODE": "2(x3),1", "SLURM_NNODES": "4"}, 7),
        ],
        ids=["given", "sbatch", "salloc"],
    )
    def test_every_template_has_as_many_as_it_was_given(self, site, name, variables, ranks):
        done = _without_slurm(site, name, {"SLURM_JOB_ID": "41", **variables})
        assert (done.returncode, done.stderr) == (0, "")
        assert f", {ranks} ranks on " in done.stdout
        assert f"--ntasks={ranks}" in site.got("launcher")
        assert site.value("plan", "--ranks") == str(ranks)

    @pytest.mark.parametrize(
        ("variables", "ranks"),
        [
            ({"SLURM_TASKS_PER_NODE": "5"}, 5),
            ({"SLURM_TASKS_PER_NODE": "1(x12)"}, 12),
            ({"SLURM_TASKS_PER_NODE": "1,2(x2),3"}, 8),
            ({"SLURM_JOB_NUM_NODES": "3", "SLURM_NTASKS_PER_NODE": "2"}, 6),
            ({"SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "2"}, 4),
            ({"RANKS": "1"}, 1),
        ],
    )
    def test_they_follow_from_what_is_there(self, site, variables, ranks):
        words = "count_ranks tasks; echo $RANKS"
        ours = {"SLURM_NTASKS": "", **variables}
        assert site.function("eval", words, **ours) == [str(ranks)]

    @pytest.mark.parametrize("name", TRAINING)
    @pytest.mark.parametrize(
        "variables", [{}, {"SLURM_JOB_ID": "41", "SLURM_NNODES": "2"}], ids=["plain", "no tasks"]
    )
    def test_without_any_it_says_what_is_missing_and_what_works(self, site, name, variables):
        done = _without_slurm(site, name, variables)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert "none of RANKS, SLURM_NTASKS and SLURM_TASKS_PER_NODE is set" in line
        assert f"`sbatch slurm/{name}.sbatch`, or `RANKS=4 bash slurm/{name}.sbatch`" in line
        (advice,) = re.findall(r"`(RANKS=4 bash [^`]*)`", line)
        done = _without_slurm(site, name, variables, command=["bash", "-c", advice])
        assert (done.returncode, done.stderr) == (0, "")

    @pytest.mark.parametrize(
        ("variables", "says"),
        [
            ({"RANKS": "four"}, "RANKS is four; it may be a whole number from 1 on"),
            ({"RANKS": "0"}, "RANKS is 0;"),
            ({"RANKS": "08"}, "RANKS is 08;"),
            ({"RANKS": "4 4"}, "RANKS is 4 4;"),
            ({"RANKS": "a[$(touch bad)]"}, "RANKS is a[$(touch bad)];"),
            ({"RANKS": "99999999999999999999"}, "RANKS is 99999999999999999999;"),
            ({"SLURM_NTASKS": "-2"}, "SLURM_NTASKS is -2;"),
            ({"SLURM_NTASKS": "4\x1b[1m"}, r"SLURM_NTASKS is 4\x1b[1m;"),
            (
                {"SLURM_TASKS_PER_NODE": "2(x"},
                "SLURM_TASKS_PER_NODE is 2(x; it may be such as 2(x3),1",
            ),
            ({"SLURM_TASKS_PER_NODE": "2,,1"}, "SLURM_TASKS_PER_NODE is 2,,1;"),
            (
                {"SLURM_NNODES": "h[1-2]", "SLURM_NTASKS_PER_NODE": "2"},
                "SLURM_JOB_NUM_NODES is h[1-2]",
            ),
            ({"SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "no"}, "SLURM_NTASKS_PER_NODE is no;"),
            ({"RANKS": "4", "SLURM_CPUS_PER_TASK": "8x"}, "SLURM_CPUS_PER_TASK is 8x;"),
            ({"RANKS": "4", "SLURM_RESTART_COUNT": "one"}, "SLURM_RESTART_COUNT is one;"),
            ({"RANKS": "4", "MAX_REQUEUES": "08"}, "MAX_REQUEUES is 08;"),
            ({"RANKS": "4", "LEAD_TIME_S": "1e2"}, "LEAD_TIME_S is 1e2;"),
        ],
    )
    def test_what_is_no_number_is_refused_in_one_line(self, site, variables, says):
        done = _without_slurm(site, "speech", variables)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert says in line
        assert not (site.folder / "bad").exists()

    @pytest.mark.parametrize(
        ("variables", "ranks"),
        [
            ({"SLURM_ARRAY_JOB_ID": "41", "SLURM_ARRAY_TASK_ID": "2", "RANKS": "8"}, "2"),
            ({"SLURM_ARRAY_TASK_ID": "2"}, "2"),
            ({"RANKS": "8"}, "8"),
        ],
        ids=["an element", "by hand", "RANKS"],
    )
    def test_a_study_is_of_the_elements_number(self, site, variables, ranks):
        ours = {"SLURM_JOB_ID": "41", "SLURM_NTASKS": "16", **variables}
        done = _without_slurm(site, "scaling", ours)
        assert (done.returncode, done.stderr) == (0, "")
        assert site.value("bench", "--ranks") == ranks
        assert site.value("bench", "--output") == f"runs/scaling/ranks-{ranks}"

    @pytest.mark.parametrize(
        ("variables", "says"),
        [
            ({}, "`RANKS=4 bash slurm/scaling.sbatch`"),
            # of the job that submitted this one
            (
                {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2", "SHOWN": "JobId=7 A=b"},
                "`RANKS=4 bash slurm/scaling.sbatch`",
            ),
            ({"SLURM_ARRAY_TASK_ID": "0"}, "SLURM_ARRAY_TASK_ID is 0;"),
            ({"SLURM_ARRAY_TASK_ID": "two"}, "SLURM_ARRAY_TASK_ID is two;"),
        ],
        ids=["none", "another's", "0", "two"],
    )
    def test_a_study_without_a_number_says_so(self, site, variables, says):
        done = _without_slurm(site, "scaling", {"SLURM_JOB_ID": "41", **variables})
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert says in line

    @pytest.mark.parametrize("name", ["speech", "scaling"])
    def test_where_there_is_no_launcher(self, site, name):
        programs = site.folder / "programs"
        programs.mkdir(exist_ok=True)
        for path in [*Path("/usr/bin").iterdir(), *(site.folder / "venv/bin").iterdir()]:
            if path.name not in ("srun", "mpirun"):
                (programs / path.name).unlink(missing_ok=True)
                (programs / path.name).symlink_to(path)
        venv = site.folder / "other/bin"
        venv.mkdir(parents=True, exist_ok=True)
        (venv / "python").unlink(missing_ok=True)
        (venv / "python").symlink_to(site.folder / "venv/bin/python")
        ours = {"RANKS": "2", "PATH": str(programs), "VENV": "other"}
        done = _without_slurm(site, name, ours)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert "no srun on PATH" in line


def _without_slurm(
    site: Site, name: str, variables: Mapping[str, str], command: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """A template of a site where of Slurm's variables there are only these."""
    away = ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_ARRAY_TASK_ID")
    words = [word for one in away if one not in variables for word in ("-u", one)]
    command = command or ["bash", f"slurm/{name}.sbatch"]
    return site.run("env", *words, *command, **variables)

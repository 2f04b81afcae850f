"""What a Slurm job makes of `~` in paths.

Small scripts stand in for Slurm's commands and for the training; test_slurm.py has the real ones.
"""

import os
import pwd
import shutil
from pathlib import Path

import pytest

from tests.helpers.job_site import Site
from tests.helpers.launching import ROOT

pytestmark = pytest.mark.long


class TestPaths:
    """`~` where the shell left it: after an equals sign, in quotes, in slurm/env.sh."""

    @pytest.fixture
    def home(self, site: Site) -> Path:
        """A home folder with data, a configuration, an environment and sources."""
        home = site.folder / "home"
        for name in ("data", "data/speech", "a b"):
            (home / name).mkdir(parents=True)
            (home / name / "meta.json").touch()
        shutil.copy(ROOT / "configs/speech3.yaml", home / "mine.yaml")
        shutil.copytree(site.folder / "venv", home / "venv")
        return home

    @pytest.mark.parametrize(
        ("arguments", "settings", "lines"),
        [
            (["--runs=~/r"], {"DATA_ROOT": "~/data"}, ""),
            (["--runs", "~/r"], {"DATA": "~/data/speech"}, ""),
            ([], {"DATA_ROOT": "~/data", "RUNS": "~/r"}, ""),
            ([], {}, "DATA_ROOT='~/data'\nRUNS=\"~/r\"\nVENV='~/venv'\n"),
            (["--set", "train.rounds=1", "data.path=~/data/speech"], {"RUNS": "~/r"}, ""),
            (["--set=data.path='~/data/speech'"], {"RUNS": "~/r", "VENV": "~/venv"}, ""),
        ],
    )
    def test_is_the_home_folder(self, site, home, arguments, settings, lines):
        (site.folder / "slurm/env.sh").write_text(lines, encoding="utf-8")
        words = ["--config=~/mine.yaml", *arguments]
        done = site.job("speech", *words, HOME=str(home), **settings)
        assert (done.returncode, done.stderr) == (0, "")
        for program in ("plan", "train"):
            assert site.data_path(program) == f"{home}/data/speech"
            assert site.value(program, "--config") == f"{home}/mine.yaml"
        assert site.value("train", "--runs") == f"{home}/r"
        assert f"{home}/mine.yaml, run {home}/r/mine, data in {home}/data/speech," in done.stdout

    def test_without_the_variable_it_is_the_users(self, site, home):
        words = ["env", "-u", "HOME", "bash", "slurm/speech.sbatch", "--runs=~/r"]
        done = site.run(*words)
        assert (done.returncode, done.stderr) == (0, "")
        own = pwd.getpwuid(os.geteuid())
        assert site.value("train", "--runs") == f"{own.pw_dir}/r"
        assert site.function("expanded", f"~{own.pw_name}/x y") == [f"{own.pw_dir}/x y"]

    @pytest.mark.parametrize(
        ("template", "variable", "value"),
        [
            ("amazon670k", "TEXT", "~/text"),
            ("vgg11", "IMAGES", "~/images"),
            ("resist", "IMAGES", "~/images"),
            ("speech", "RECORDINGS", "~/recordings"),
            ("scaling", "DATA", "~/none"),
            ("amazon670k_cpu", "VENV", "~/none"),
        ],
    )
    def test_a_message_names_the_path_that_was_looked_at(
        self, site, home, template, variable, value
    ):
        ours = {"DATA_ROOT": "new", variable: value, "HOME": str(home)}
        done = site.job(template, **ours)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert f"{home}/{value[2:]}" in line

    @pytest.mark.parametrize(
        ("arguments", "settings"),
        [
            (["--runs=~nobody-here/x"], {}),
            (["--config=~nobody-here/x"], {}),
            ([], {"DATA_ROOT": "~nobody-here/x"}),
            ([], {"DATA": "~nobody-here/x"}),
            ([], {"VENV": "~nobody-here/x"}),
            ([], {"RECORDINGS": "~nobody-here/x"}),
            (["--set=data.path=~nobody-here/x"], {}),
        ],
    )
    def test_a_home_that_there_is_not_is_refused(self, site, arguments, settings):
        for command in (
            ["bash", "slurm/speech.sbatch"],
            ["slurm/submit.sh", "configs/speech2.yaml", "--"],
        ):
            done = site.run(*command, *arguments, **settings)
            (line,) = done.stderr.splitlines()
            assert done.returncode == 2
            assert "~nobody-here/x: " in line
            assert "the home folder ~nobody-here cannot be found" in line
            assert site.got("train") == site.got("sbatch") == []

    @pytest.mark.parametrize(
        "path", ["~+/x", "~-", "~1/x", "~$(touch bad)/x", "~`touch bad`", "~;x"]
    )
    def test_what_else_a_shell_makes_of_it_is_not_made(self, site, path):
        done = site.job("speech", RUNS=path)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert line.partition("error: ")[2].startswith(f"{path}: the home folder ~")
        assert not (site.folder / "bad").exists()

    @pytest.mark.parametrize("path", ["a~/b", "./~/b", "/tmp/~", "a b/~c"])
    def test_elsewhere_it_is_a_character_as_any(self, site, path):
        assert site.function("expanded", path) == [path]

    def test_submit_reads_it_as_the_job_does(self, site, home):
        shutil.copy(ROOT / "slurm/speech.sbatch", home / "own.sbatch")
        words = ["--template=~/own.sbatch", "~/mine.yaml", "--", "--set=data.path=~/data/speech"]
        done = site.run("slurm/submit.sh", *words, HOME=str(home), VENV="~/venv")
        assert (done.returncode, done.stderr) == (0, "")
        assert site.data_path("plan") == f"{home}/data/speech"
        assert f"data in {home}/data/speech," in done.stdout
        assert site.got("sbatch")[:3] == ["home/own.sbatch", "--config", "home/mine.yaml"]

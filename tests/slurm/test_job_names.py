"""What a Slurm job makes of names of files, folders, runs and keys.

Small scripts stand in for Slurm's commands and for the training; test_slurm.py has the real ones.
"""

import re
import shutil

import pytest

from ist_hpc.config import loading
from tests.helpers.job_site import TEMPLATES, TIME_IS_OVER
from tests.helpers.launching import ROOT

pytestmark = pytest.mark.long


class TestNames:
    """Blanks, and what a terminal or YAML would take for something else."""

    @pytest.mark.parametrize("name", ["a b", "it's", "1e3", "null", "[1]", "a: b #c", "é", "-x"])
    def test_of_folders_are_kept(self, site, name):
        folder = site.folder / name
        (folder / "speech").mkdir(parents=True)
        (folder / "speech/meta.json").touch()
        shutil.copy(ROOT / "configs/speech3.yaml", folder / "my config.yaml")
        ours = {"CONFIG": f"./{name}/my config.yaml", "RUNS": f"./{name}", "NAME": "my-run"}
        for settings in ({"DATA_ROOT": name}, {"DATA": f"{name}/speech"}):
            done = site.job("speech", TRAINING=TIME_IS_OVER, **ours, **settings)
            assert (done.returncode, done.stderr) == (75, "")
            (given,) = site.got("train")[-1:]
            assert loading.load(None, [given]).data.path == f"{name}/speech"
            assert (folder / "my-run/requeues").exists()
        (site.folder / name / "meta.json").touch()
        words = [f"./{name}/my config.yaml", "--", "--name=my-run"]
        done = site.run("slurm/submit.sh", *words, DATA=name)
        assert (done.returncode, done.stderr) == (0, "")
        assert loading.load(None, site.got("plan")[-1:]).data.path == name
        assert site.got("sbatch")[1:] == ["--config", f"{name}/my config.yaml", "--name=my-run"]

    @pytest.mark.parametrize("template", TEMPLATES)
    def test_with_blanks_go_through_every_template(self, site, template):
        (site.folder / "my data").mkdir()
        (site.folder / "my data/meta.json").touch()
        shutil.copytree(site.folder / "venv", site.folder / "my venv")
        shutil.copy(ROOT / "configs/speech3.yaml", site.folder / "my config.yaml")
        ours = {"DATA": "my data", "RUNS": "my runs", "CONFIG": "my config.yaml"}
        done = site.job(template, VENV="my venv", **ours)
        assert (done.returncode, done.stderr) == (0, "")
        program = "bench" if template == "scaling" else "train"
        assert site.value(program, "--config") == "my config.yaml"
        name = "my-config_cpu" if template == "amazon670k_cpu" else "my-config"
        assert template == "scaling" or site.value("train", "--name") == name
        assert site.data_path(program) == "'my data'"
        place = site.value(program, "--output" if template == "scaling" else "--runs")
        assert place.startswith("my runs")

    @pytest.mark.parametrize("name", ["my run", "a/b", "..", "x-%a"])
    def test_that_no_run_may_have_are_refused_before_anything_is_prepared(self, site, name):
        (site.folder / "speech_commands").mkdir()
        done = site.job("speech", DATA_ROOT="new", NAME=name)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert f"got '{name}'; give another name by --name or NAME" in line
        assert site.got("prepare") == []
        if "%" not in name:
            done = site.run("slurm/submit.sh", "configs/speech2.yaml", "--", "--name", name)
            (line,) = done.stderr.splitlines()
            assert done.returncode == 2
            assert f"got '{name}'; give another name by --name" in line
            assert site.got("sbatch") == []

    def test_of_a_key_that_is_none_nothing_is_prepared_for(self, site):
        """Nor where DATA says where the data go to."""
        (site.folder / "speech_commands").mkdir()
        done = site.job("speech", "--set", "train.stpes=3", DATA="new")
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert "unknown key `train.stpes`" in line
        assert site.got("prepare") == []

    def test_to_be_pasted_are_quoted(self, site):
        shutil.copy(site.folder / "slurm/speech.sbatch", site.folder / "slurm/my own.sbatch")
        done = site.run("env", "-u", "SLURM_NTASKS", "bash", "slurm/my own.sbatch")
        (advice,) = re.findall(r"`(RANKS=4 bash [^`]*)`", done.stderr)
        done = site.run("env", "-u", "SLURM_NTASKS", "bash", "-c", advice)
        assert (done.returncode, done.stderr) == (0, "")

    @pytest.mark.parametrize(
        ("name", "shown"),
        [
            ("a\x1b[31mb", r"a\x1b[31mb"),
            ("a\nb", r"a\x0ab"),
            ("a\udce9b", r"a\xe9b"),
            ("é b", "é b"),
            ("a\u0085b", r"a\xc2\x85b"),
        ],
    )
    def test_that_are_no_text_are_shown_by_their_bytes(self, site, name, shown):
        done = site.job("speech", DATA=name)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert f"no shards in {shown}, the value of DATA" in line
        done = site.run("slurm/submit.sh", name)
        assert done.stderr == f"submit: error: no configuration {shown}\n"

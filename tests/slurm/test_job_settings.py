"""What a Slurm job makes of its configuration and arguments.

Small scripts stand in for Slurm's commands and for the training; test_slurm.py has the real ones.
"""

import re

import pytest

from ist_hpc.config import loading
from tests.helpers.job_site import TEMPLATES, TIME, TIME_IS_OVER
from tests.helpers.launching import ROOT

pytestmark = pytest.mark.long


def test_a_setting_that_cannot_be_is_refused_with_the_time(site):
    done = site.job("speech", "--set", "train.stpes=3")
    assert done.returncode == 2
    assert re.fullmatch(rf"{TIME} job: error: unknown key `train.stpes`.*\n", done.stderr)


class TestSettings:
    """What a job makes of its configuration and arguments."""

    @pytest.mark.parametrize(
        ("template", "settings", "name", "data"),
        [
            ("speech", {}, "speech2", "data/speech"),
            ("speech", {"CONFIG": "configs/speech3.yaml"}, "speech3", "data/speech"),
            ("speech", {"CONFIG": "configs/amazon670k.yaml"}, "amazon670k", "data/amazon670k"),
            ("speech", {"NAME": "mine"}, "mine", "data/speech"),
            ("amazon670k", {}, "amazon670k", "data/amazon670k"),
            ("amazon670k_cpu", {}, "amazon670k_cpu", "data/amazon670k"),
            ("amazon670k_cpu", {"CONFIG": "configs/speech2.yaml"}, "speech2_cpu", "data/speech"),
            ("amazon670k_cpu", {"NAME": "mine"}, "mine", "data/amazon670k"),
            ("vgg11", {}, "vgg11_cifar100", "data/cifar100"),
            ("resist", {}, "resist_cifar100", "data/cifar100"),
        ],
    )
    def test_a_run_and_its_data_are_those_of_the_configuration(
        self, site, template, settings, name, data
    ):
        done = site.job(template, **settings)
        assert (done.returncode, done.stderr) == (0, "")
        assert site.value("train", "--name") == name
        assert site.data_path("train") == site.data_path("plan") == data

    @pytest.mark.parametrize(
        ("template", "arguments", "config", "folder"),
        [
            ("speech", "--config {}", "amazon670k", "runs/amazon670k"),
            ("speech", "--config={}", "amazon670k", "runs/amazon670k"),
            ("speech", "--set train.rounds=1 --config {} --resume", "delicious", "runs/delicious"),
            ("amazon670k", "--config {} --name mine", "speech3", "runs/mine"),
            ("amazon670k_cpu", "--config={}", "speech3", "runs/speech3_cpu"),
            ("vgg11", "--runs=there --config {} --name=mine", "speech3", "there/mine"),
            ("resist", "--config {}", "vgg11_cifar100", "runs/vgg11_cifar100"),
            ("vgg11", "--config none.yaml --runs there --config {}", "speech3", "there/speech3"),
        ],
    )
    def test_what_the_arguments_name_is_planned_trained_and_counted(
        self, site, template, arguments, config, folder
    ):
        """The variables that they replace may be set, too."""
        data = loading.load(ROOT / f"configs/{config}.yaml").data.path
        (site.folder / data).mkdir(exist_ok=True)
        (site.folder / data / "meta.json").touch()
        path = f"configs/{config}.yaml"
        words = arguments.format(path).split()
        ours = {"CONFIG": "configs/quickstart.yaml", "RUNS": "runs", "TRAINING": TIME_IS_OVER}
        done = site.job(template, *words, **ours)
        assert (done.returncode, done.stderr) == (75, "")
        for program in ("plan", "train"):
            assert site.value(program, "--config") == path
            assert site.data_path(program) == data
        name, runs = site.value("train", "--name"), site.value("train", "--runs")
        assert f"{runs}/{name}" == folder
        assert (site.folder / folder / "requeues").exists()
        assert ("train.rounds=1" in site.got("plan")) == ("train.rounds=1" in words)

    def test_a_study_of_the_configuration_among_the_arguments(self, site):
        words = ["--config", "configs/amazon670k.yaml", "--steps", "5"]
        done = site.job("scaling", *words)
        assert (done.returncode, done.stderr) == (0, "")
        assert site.value("bench", "--config") == "configs/amazon670k.yaml"
        assert site.data_path("bench") == "data/amazon670k"
        assert site.value("bench", "--steps") == "5"

    @pytest.mark.parametrize(
        ("words", "problem"),
        [
            (
                "--conf configs/speech3.yaml",
                "--conf is not understood by the templates; write --config",
            ),
            ("--na=mine", "--na is not understood by the templates; write --name in full"),
            ("--se data.path=data", "write --set in full"),
            ("--config", "--config wants a value, as in --config=VALUE, got ''"),
            ("--config=", "--config wants a value"),
            ("--name --resume", "--name wants a value, as in --name=VALUE, got '--resume'"),
        ],
    )
    def test_arguments_that_only_the_training_would_understand(self, site, words, problem):
        for command in (
            ["bash", "slurm/speech.sbatch"],
            ["slurm/submit.sh", "configs/speech2.yaml", "--"],
        ):
            done = site.run(*command, *words.split())
            (line,) = done.stderr.splitlines()
            assert done.returncode == 2
            assert problem in line
            assert site.got("plan") == site.got("train") == site.got("sbatch") == []

    @pytest.mark.parametrize("name", TEMPLATES)
    def test_a_job_of_another_folder_says_where_it_belongs(self, site, tmp_path, name):
        folder = tmp_path / "elsewhere"
        folder.mkdir()
        job = 'cd "$1"; bash "$2"'
        done = site.run("bash", "-c", job, "bash", str(folder), f"../slurm/{name}.sbatch")
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert re.match(rf"{TIME} error: no slurm/job.sh in {folder}; sbatch from the repo", line)
        assert "--chdir=FOLDER" in line

    def test_a_site_may_unset_what_it_defines_for_something_else(self, site):
        names = ["CONFIG", "NAME", "DATA", "DEVICE", "TEXT"]
        lines = f"unset {' '.join(names)}\n"
        (site.folder / "slurm/env.sh").write_text(lines, encoding="utf-8")
        devices = {}
        for template in ("amazon670k", "amazon670k_cpu"):
            done = site.job(template, **dict.fromkeys(names, "of-the-site"))
            assert (done.returncode, done.stderr) == (0, "")
            assert site.value("train", "--name") == template
            assert site.value("train", "--config") == "configs/amazon670k.yaml"
            assert site.data_path("train") == "data/amazon670k"
            words = site.got("train")
            devices[template] = [word for word in words if word.startswith("device=")][-1]
        assert devices == {"amazon670k": "device=cuda", "amazon670k_cpu": "device=cpu"}

    @pytest.mark.parametrize(
        ("arguments", "settings"),
        [
            (["--set=a=1", "--set=b=2"], ["a=1", "b=2"]),
            (["--set=a=1", "word"], ["a=1"]),
            (["--set", "a=1", "b=2", "--name", "c=3", "--set", "d=4"], ["a=1", "b=2", "d=4"]),
            (["--set", "a=one two", "model.hidden=[1, 2]"], ["a=one two", "model.hidden=[1, 2]"]),
            (["--set=model.hidden=[1, 2]"], ["model.hidden=[1, 2]"]),
            (["--name", "a=1"], []),
        ],
    )
    def test_settings_are_found_among_arguments(self, site, arguments, settings):
        assert site.function("settings_of", *arguments) == settings

    @pytest.mark.parametrize(
        ("settings", "own", "seconds"),
        [({}, [], 120), ({"LEAD_TIME_S": "300"}, [], 300), ({}, ["runtime.lead_time_s=30"], 30)],
    )
    def test_the_lead_time_is_the_sites_or_the_users(self, site, settings, own, seconds):
        done = site.job("speech", "--set", "train.rounds=2", *own, **settings)
        assert (done.returncode, done.stderr) == (0, "")
        given = [word for word in site.got("train") if "=" in word]
        loaded = loading.load(ROOT / "configs/speech2.yaml", given)
        assert loaded.runtime.lead_time_s == seconds

    def test_a_sites_lines_may_read_variables_that_are_not_set(self, site):
        lines = "module() { echo $NOT_SET_BY_THE_SITE; }\nmodule\nRUNS=${RUNS:-there}\n"
        (site.folder / "slurm/env.sh").write_text(lines, encoding="utf-8")
        _, options, runs = site.function("eval", 'echo "$-"; echo "$RUNS"')
        assert "u" in options  # in our own lines it is an error again
        assert runs == "there"

    @pytest.mark.parametrize(
        ("launcher", "words"),
        [
            ("srun", "srun --mpi=pmix --kill-on-bad-exit=1 --nodes={ranks} --ntasks={ranks}"),
            (
                "mpirun",
                "mpirun -np {ranks} --bind-to none -x PATH -x OMP_NUM_THREADS "
                "-x HDF5_USE_FILE_LOCKING",
            ),
        ],
    )
    def test_a_study_starts_its_ranks_as_a_run_does(self, site, launcher, words):
        done = site.job("scaling", LAUNCHER=launcher)
        assert (done.returncode, done.stderr) == (0, "")
        assert site.value("bench", "--launcher") == words
        of_run = words.replace("--nodes={ranks} ", "").replace("{ranks}", "4")
        assert site.function("launcher_words", "4", LAUNCHER=launcher) == [of_run]

    @pytest.mark.parametrize(("launcher", "processors"), [("srun", ["8"]), ("mpirun", [])])
    def test_the_ranks_environment(self, site, launcher, processors):
        ours = {"SLURM_CPUS_PER_TASK": "8", "SLURM_EXPORT_ENV": "NONE", "LAUNCHER": launcher}
        done = site.job("speech", **ours)
        assert (done.returncode, done.stderr) == (0, "")
        pairs = [line.partition("=") for line in site.got("environment")]
        # mpirun's srun starts one process a node, which must have all of the node's processors
        assert [value for name, _, value in pairs if name == "SRUN_CPUS_PER_TASK"] == processors
        assert ("OMP_NUM_THREADS", "=", "8") in pairs
        assert ("SLURM_EXPORT_ENV", "=", "ALL") in pairs  # srun takes it as --export

    @pytest.mark.parametrize("template", ["speech", "scaling"])
    @pytest.mark.parametrize(
        ("name", "value"),
        [("LAUNCHER", "aprun"), ("MAX_REQUEUES", "a few"), ("LEAD_TIME_S", "2:00")],
    )
    def test_a_setting_of_the_site_that_cannot_be(self, site, template, name, value):
        done = site.job(template, **{name: value})
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert re.match(rf"{TIME} job: error: {name} is {value}; it may be", line)

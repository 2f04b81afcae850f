"""What a Slurm job makes of its configuration and arguments.

Small scripts stand in for Slurm's commands and for the training; test_slurm.py has the real ones.
"""

import os
import pwd
import re
import shutil
from pathlib import Path

import pytest

from ist_hpc.config import loading
from tests.helpers.job_site import TEMPLATES, TIME, TIME_IS_OVER, Site, make_site
from tests.helpers.launching import ROOT

pytestmark = pytest.mark.long


@pytest.fixture
def site(tmp_path):
    return make_site(tmp_path)


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

    @pytest.mark.parametrize("template", sorted({*TEMPLATES} - {"amazon670k_cpu"}))
    @pytest.mark.parametrize(
        ("arguments", "settings", "origin"),
        [
            (
                [],
                {"DATA": "new"},
                "the value of DATA, a variable of your environment or of slurm/env.sh",
            ),
            (["--set", "data.path=new"], {"DATA": "old"}, "which --set data.path says"),
            ([], {"DATA_ROOT": "new"}, "the data of configs/"),
        ],
        ids=["the environment", "the arguments", "the configuration"],
    )
    def test_missing_data_are_named_by_their_origin(
        self, site, template, arguments, settings, origin
    ):
        """A site may define DATA for something else."""
        done = site.job(template, *arguments, **settings)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert re.search(rf"no shards in new\S*, {origin}", line)

    @pytest.mark.parametrize(
        ("arguments", "settings", "data"),
        [
            ([], {}, "data/speech"),
            ([], {"DATA_ROOT": "elsewhere"}, "elsewhere/speech"),
            ([], {"DATA_ROOT": "elsewhere", "DATA": "given"}, "given"),
            (["--set", "train.rounds=1", "data.path=set"], {"DATA": "given"}, "set"),
            (["--set=data.path=data/set"], {"DATA_ROOT": "elsewhere"}, "data/set"),
        ],
    )
    def test_the_check_and_the_jobs_read_the_same_data(self, site, arguments, settings, data):
        (site.folder / data).mkdir(parents=True, exist_ok=True)
        (site.folder / data / "meta.json").touch()
        words = ["configs/speech3.yaml", "--", *arguments]
        done = site.run("slurm/submit.sh", *words, **settings)
        assert (done.returncode, done.stderr) == (0, "")
        assert site.data_path("plan") == data

        done = site.job("speech", *arguments, CONFIG="configs/speech3.yaml", **settings)
        assert (done.returncode, done.stderr) == (0, "")
        assert site.data_path("train") == data
        done = site.job("scaling", *arguments, CONFIG="configs/speech3.yaml", **settings)
        assert (done.returncode, done.stderr) == (0, "")
        assert site.data_path("bench") == data

    @pytest.mark.parametrize(
        ("template", "config", "folder"),
        [
            ("speech", "delicious", "data/delicious"),
            ("amazon670k", "delicious", "data/delicious"),
            ("vgg11", "quickstart", "data/digits"),
            ("resist", "delicious", "data/delicious"),
            ("scaling", "delicious", "data/delicious"),
        ],
    )
    def test_only_its_own_source_is_converted(self, site, template, config, folder):
        for source in ("speech_commands/yes", "Amazon670K.bow", "cifar-100-python"):
            (site.folder / source).mkdir(parents=True)
        for file in (
            "Amazon670K.bow/train.txt",
            "Amazon670K.bow/test.txt",
            "cifar-100-python/train",
        ):
            (site.folder / file).touch()
        done = site.job(template, CONFIG=f"configs/{config}.yaml")
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert f"no shards in {folder}, the data of configs/{config}.yaml" in line
        assert template == "scaling" or f"not of configs/{config}.yaml" in line
        assert site.got("prepare") == site.got("train") == []

    def test_recordings_are_converted_to_where_the_configuration_looks(self, site):
        (site.folder / "speech_commands").mkdir()
        done = site.job("speech", CONFIG="configs/speech3.yaml", DATA_ROOT="new")
        assert (done.returncode, done.stderr) == (0, "")
        assert site.value("prepare", "--output") == site.data_path("train") == "new/speech"

    def test_a_configuration_that_is_none_ends_the_job_before_anything_is_made(self, site):
        done = site.job("speech", CONFIG="configs/speech9.yaml", DATA_ROOT="new")
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert "configs/speech9.yaml" in line
        assert site.got("prepare") == []

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

"""slurm/submit.sh: what it refuses, and what it passes to sbatch.

Small scripts stand in for Slurm's commands and for the training; test_slurm.py has the real ones.
"""

import shutil
import sys

import pytest

from tests.helpers.launching import ROOT

pytestmark = pytest.mark.long


class TestSubmit:
    @pytest.mark.parametrize(
        ("words", "problem"),
        [
            (["configs/none.yaml"], "no configuration configs/none.yaml"),
            (["configs/speech2.yaml", "--", "--set", "train.local_step=3"], "train.local_step"),
            (["configs/amazon670k.yaml", "--mem=1G"], "does not fit"),
            (["configs/amazon670k.yaml", "--mem", "1000"], "does not fit"),
            (["configs/amazon670k.yaml", "--mem-per-cpu=100M"], "does not fit"),
        ],
        ids=["no file", "a misspelt key", "too little memory", "in MB", "of a processor"],
    )
    def test_refuses_before_anything_is_queued(self, site, words, problem):
        done = site.run("slurm/submit.sh", *words, VENV=sys.prefix, DATA_ROOT="none")
        assert done.returncode == 2
        assert problem in done.stderr
        assert site.got("sbatch") == []

    @pytest.mark.parametrize(
        ("words", "ranks", "gb"),
        [  # the template has 4 nodes, 1 rank a node, 8 processors a rank and --mem=16G
            ("", 4, 17.1799),
            ("--nodes=8", 8, 17.1799),
            ("--nodes 8", 8, 17.1799),
            ("-N8", 8, 17.1799),
            ("-N 8", 8, 17.1799),
            ("-N8 --nodes=2", 2, 17.1799),
            ("--ntasks=6", 6, 8.58993),  # two of the nodes have two
            ("--ntasks 3", 3, 17.1799),
            ("-n6", 6, 8.58993),
            ("-n 6 -N 6", 6, 17.1799),
            ("--ntasks-per-node=2", 8, 8.58993),
            ("--ntasks-per-node 2", 8, 8.58993),
            ("--mem=16000", 4, 16.7772),
            ("--mem 16000", 4, 16.7772),
            ("--mem=16000M", 4, 16.7772),
            ("--mem=16000MB", 4, 16.7772),
            ("--mem=16384000K", 4, 16.7772),
            ("--mem=16GB", 4, 17.1799),
            ("--mem=16g", 4, 17.1799),
            ("--mem=1T", 4, 1099.51),
            ("--mem-per-cpu=1G", 4, 8.58993),
            ("--mem-per-cpu 1000 -c2", 4, 2.09715),
            ("--mem-per-cpu=1G --cpus-per-task=4", 4, 4.29497),
            ("--mem-per-cpu=1G --mem=16G", 4, 17.1799),
            ("--time 1:00 --mem-bind=local -J some --no-kill --ntasks-per-core=1", 4, 17.1799),
        ],
    )
    def test_reads_the_options_as_sbatch_does(self, site, words, ranks, gb):
        done = site.run(
            "slurm/submit.sh", "configs/speech3.yaml", *words.split(), "--", "--name", "a"
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert f"configs/speech3.yaml on {ranks} ranks" in done.stdout
        assert site.value("plan", "--ranks") == str(ranks)
        assert float(site.value("plan", "--memory-gb")) == pytest.approx(gb, rel=1e-5)
        job = ["slurm/speech.sbatch", "--config", "configs/speech3.yaml", "--name", "a"]
        assert site.got("sbatch") == [*words.split(), *job]

    @pytest.mark.parametrize(
        ("words", "problem"),
        [
            ("--nodes=2-4", "write --nodes=2 or --nodes=4"),
            ("-N 2-4", "write --nodes=2 or --nodes=4"),
            ("--nodes=two", "--nodes wants a number from 1 on, as in --nodes=4, got 'two'"),
            ("--nodes=", "--nodes wants a number"),
            ("--nodes", "--nodes wants a value, as in --nodes=4"),
            ("-n 0", "--ntasks wants a number from 1 on"),
            ("--ntasks-per-n=2", "write an option in full, such as --ntasks-per-node=..."),
            ("--ntasks-per-gpu=1", "write --ntasks-per-node=RANKS"),
            ("--mem=much", "--mem wants a size, as in --mem=16G"),
            ("--mem=1.5G", "--mem wants a size"),
            ("--mem-per-cpu=1P", "--mem-per-cpu wants a size"),
            ("--mem-per-gpu=8G", "write --mem=SIZE, of a node"),
        ],
    )
    def test_refuses_what_it_cannot_read(self, site, words, problem):
        done = site.run("slurm/submit.sh", "configs/speech3.yaml", *words.split())
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert line.startswith("submit: error: ")
        assert problem in line
        assert site.got("plan") == site.got("sbatch") == []

    def test_one_configuration_only(self, site):
        words = ["configs/speech3.yaml", "--", "--config", "configs/speech2.yaml"]
        done = site.run("slurm/submit.sh", *words)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert "--config configs/speech2.yaml after -- and configs/speech3.yaml before it" in line
        assert site.got("plan") == site.got("sbatch") == []

    def test_options_before_the_configuration(self, site):
        done = site.run("slurm/submit.sh", "--nodes=4", "configs/speech3.yaml")
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert "the configuration comes before options" in line

    def test_files_are_those_that_are_seen_from_where_it_is_called(self, site, tmp_path):
        folder = tmp_path / "elsewhere"
        folder.mkdir()
        shutil.copy(ROOT / "configs/speech3.yaml", folder / "mine.yaml")
        shutil.copy(ROOT / "slurm/speech.sbatch", folder / "own.sbatch")
        call = 'cd "$1"; shift; ../slurm/submit.sh "$@"'
        words = ["--template", "own.sbatch", "mine.yaml"]
        done = site.run("bash", "-c", call, "bash", str(folder), *words)
        assert (done.returncode, done.stderr) == (0, "")
        assert site.got("sbatch") == ["elsewhere/own.sbatch", "--config", "elsewhere/mine.yaml"]
        assert site.data_path("plan") == "data/speech"

        done = site.run("bash", "-c", call, "bash", str(folder), "configs/speech3.yaml")
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert line == "submit: error: no configuration elsewhere/configs/speech3.yaml"

    def test_says_that_memory_is_not_checked(self, site):
        done = site.run("slurm/submit.sh", "configs/speech3.yaml", "--mem=0")
        assert (done.returncode, done.stderr) == (0, "")
        assert "memory is not checked" in done.stdout
        assert "--memory-gb" not in site.got("plan")

    def test_the_environment_replaces_the_templates_memory(self, site):
        words = ["slurm/submit.sh", "configs/speech3.yaml"]
        site.run(*words, SBATCH_MEM_PER_NODE="8G")
        assert float(site.value("plan", "--memory-gb")) == pytest.approx(8.58993, rel=1e-5)
        site.run(*words, "--mem=4G", SBATCH_MEM_PER_NODE="8G")
        assert float(site.value("plan", "--memory-gb")) == pytest.approx(4.29497, rel=1e-5)

    def test_the_number_of_ranks_must_be_given(self, site):
        (site.folder / "own.sbatch").write_text(
            "#!/bin/bash\n#SBATCH --nodes=4\n", encoding="utf-8"
        )
        words = ["--template", "own.sbatch", "configs/speech3.yaml"]
        done = site.run("slurm/submit.sh", *words)
        assert done.returncode == 2
        assert "the number of ranks is not given" in done.stderr
        assert site.run("slurm/submit.sh", *words, "-n8").returncode == 0
        assert site.value("plan", "--ranks") == "8"

    @pytest.mark.parametrize(
        "words", [["--template=slurm/vgg11.sbatch"], ["--template", "slurm/vgg11.sbatch"]]
    )
    def test_the_template_in_both_forms(self, site, words):
        done = site.run("slurm/submit.sh", *words, "configs/speech3.yaml")
        assert (done.returncode, done.stderr) == (0, "")
        assert site.got("sbatch")[0] == "slurm/vgg11.sbatch"

    @pytest.mark.parametrize(
        ("words", "settings", "problem"),
        [
            (["--template"], {}, "--template wants a file"),
            (["--template="], {}, "--template wants a file"),
            (["--template=~nobody-here/x", "a.yaml"], {}, "~nobody-here/x: the home folder"),
            (["~nobody-here/a.yaml"], {}, "~nobody-here/a.yaml: the home folder"),
            (
                ["configs/speech3.yaml"],
                {"RANKS": "4x"},
                "RANKS is 4x; it may be a whole number from 1",
            ),
            (["configs/speech3.yaml"], {"VENV": "none"}, "no none/bin/python"),
        ],
    )
    def test_what_is_wrong_is_said_in_one_line(self, site, words, settings, problem):
        done = site.run("slurm/submit.sh", *words, **settings)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert line.startswith("submit: error: ")
        assert problem in line
        assert site.got("sbatch") == []

    def test_what_it_advises_for_memory_of_a_gpu_is_taken(self, site):
        words = ["slurm/submit.sh", "configs/speech3.yaml"]
        done = site.run(*words, SBATCH_MEM_PER_GPU="8G")
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert "set SBATCH_MEM_PER_NODE=SIZE in its place" in line
        assert site.run(*words, SBATCH_MEM_PER_NODE="8G").returncode == 0

    def test_the_ranks_that_the_job_will_take(self, site):
        """RANKS reaches the job, too."""
        done = site.run("slurm/submit.sh", "configs/speech3.yaml", "--mem=08G", RANKS="2")
        assert (done.returncode, done.stderr) == (0, "")
        assert site.value("plan", "--ranks") == "2"
        assert float(site.value("plan", "--memory-gb")) == pytest.approx(8.58993, rel=1e-5)

"""Which data a Slurm job reads, and what it converts.

Small scripts stand in for Slurm's commands and for the training; test_slurm.py has the real ones.
"""

import re

import pytest

from tests.helpers.job_site import TEMPLATES

pytestmark = pytest.mark.long


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
def test_missing_data_are_named_by_their_origin(site, template, arguments, settings, origin):
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
def test_the_check_and_the_jobs_read_the_same_data(site, arguments, settings, data):
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
def test_only_its_own_source_is_converted(site, template, config, folder):
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


def test_recordings_are_converted_to_where_the_configuration_looks(site):
    (site.folder / "speech_commands").mkdir()
    done = site.job("speech", CONFIG="configs/speech3.yaml", DATA_ROOT="new")
    assert (done.returncode, done.stderr) == (0, "")
    assert site.value("prepare", "--output") == site.data_path("train") == "new/speech"


def test_a_configuration_that_is_none_ends_the_job_before_anything_is_made(site):
    done = site.job("speech", CONFIG="configs/speech9.yaml", DATA_ROOT="new")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert "configs/speech9.yaml" in line
    assert site.got("prepare") == []

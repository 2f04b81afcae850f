"""The folder of a run: never another run's, never half a file, and no row of a round twice."""

import json
import os

import pytest

from ist_hpc import config, files, runfolder
from ist_hpc.errors import InputError
from ist_hpc.runfolder import RunFolder, facts_of_start


@pytest.fixture
def folder(tmp_path):
    made = RunFolder(tmp_path / "runs" / "one")
    made.create(resume=False)
    return made


def rows_of(folder):
    return [json.loads(line)["round"] for line in folder.metrics.read_text().splitlines()]


def test_a_folder_that_exists_is_refused_and_left_as_it_is(folder):
    folder.set_status("finished")
    with pytest.raises(InputError, match=r"runs/one exists; go on with it by --resume"):
        RunFolder(folder.path).create(resume=False)
    assert (folder.path / "STATUS").read_text() == "finished\n"


def test_a_resume_enters_a_folder_or_makes_it(folder, tmp_path):
    folder.set_status("running")
    RunFolder(folder.path).create(resume=True)
    assert (folder.path / "STATUS").read_text() == "running\n"
    RunFolder(tmp_path / "other").create(resume=True)
    assert (tmp_path / "other" / "checkpoints").is_dir()


def test_a_folder_that_cannot_be_made_is_an_answer(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot make the run folder .*file/one: Not a directory"):
        RunFolder(tmp_path / "file" / "one").create(resume=False)


def test_rewinding_drops_later_rows_and_one_that_was_cut_off(folder):
    for index in range(1, 6):
        folder.add_metrics({"kind": "round", "round": index})
        folder.add_metrics({"kind": "evaluation", "round": index})
    with folder.metrics.open("a") as file:
        file.write('{"kind": "round", "rou')
    folder.rewind_metrics(3)
    assert rows_of(folder) == [1, 1, 2, 2, 3, 3]
    folder.add_metrics({"kind": "round", "round": 4})  # on a line of its own
    assert rows_of(folder) == [1, 1, 2, 2, 3, 3, 4]
    folder.rewind_metrics(0)
    assert rows_of(folder) == []


def test_rewinding_without_rows_is_nothing(folder):
    folder.rewind_metrics(0)
    assert not folder.metrics.exists()


def test_a_reader_of_the_status_sees_the_old_one_or_the_new_one(folder, monkeypatch):
    """The new one is complete and on disk under another name before it takes its own."""
    status = folder.path / "STATUS"
    folder.set_status("running")
    replace, flushed, seen = os.replace, [], []
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: flushed.append(descriptor))

    def look(source, target):
        seen.append((status.read_text(), source.read_text(), bool(flushed)))
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", look)
    folder.set_status("failed: rank 3: no space")
    assert seen == [("running\n", "failed: rank 3: no space\n", True)]
    assert status.read_text() == "failed: rank 3: no space\n"

    def fail(source, target):
        raise OSError("no")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError, match="no"):
        folder.set_status("finished")
    assert status.read_text() == "failed: rank 3: no space\n"
    assert sorted(os.listdir(folder.path)) == ["STATUS", "checkpoints"]


def test_every_start_is_recorded(folder, monkeypatch):
    monkeypatch.setattr(runfolder, "_git_state", lambda: "abc-dirty")
    settings = config.load(None)
    for ranks in (2, 3):
        folder.record_start(settings, facts_of_start(ranks, 1, "Open MPI v4.1\n\0more"))
    starts = json.loads((folder.path / "run.json").read_text())["starts"]
    assert [start["ranks"] for start in starts] == [2, 3]
    assert starts[0]["git"] == "abc-dirty"
    assert starts[0]["mpi"] == "Open MPI v4.1"
    assert config.load(folder.path / "config.yaml") == settings

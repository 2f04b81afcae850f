"""The folder of a run: never another run's, never half a file, and no row of a round twice."""

import json
import logging
import os
import time

import pytest

from ist_hpc import config, files, runfolder, starting, train
from ist_hpc.checkpoint_read import Progress
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


def test_a_reader_of_the_status_sees_the_old_one_or_the_new_one(folder, monkeypatch, caplog):
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
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", fail)
    with caplog.at_level(logging.WARNING, "ist_hpc"):
        folder.set_status("stopped")
        folder.set_status("finished")
        folder.write_summary({})
    assert caplog.text.count("No space left") == 1
    assert status.read_text() == "finished\n"  # there is room for a word where one was
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


def test_only_what_is_on_the_list_is_kept_of_slurms_variables(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JWT", "secret")
    assert facts_of_start(1, 1, "MPI")["slurm"].keys() & {"SLURM_JOB_ID", "SLURM_JWT"} == {
        "SLURM_JOB_ID"
    }


def test_a_run_json_that_is_damaged_is_put_aside(folder):
    (folder.path / "run.json").write_text("")
    folder.record_start(config.load(None), facts_of_start(2, 1, "MPI"))
    assert len(json.loads((folder.path / "run.json").read_text())["starts"]) == 1
    assert (folder.path / "damaged-run.json").read_text() == ""


def test_rows_that_are_none_are_left_out(folder):
    folder.add_metrics({"kind": "round", "round": 1, "seconds": {"train": 2.0}, "bytes_sent": 3})
    with folder.metrics.open("ab") as file:
        file.write(b'[1]\n"x"\n{"round": "1"}\n\xff\xfe\n{"round": 2, "seconds": 4}\n')
    assert folder.totals()["seconds"]["train"] == 2.0
    folder.rewind_metrics(5)
    assert rows_of(folder) == [1]


class TestAnotherStart:
    """Two starts of one run: the older may be on a host that was cut off, and comes back."""

    @pytest.fixture
    def older_and_newer(self, folder, monkeypatch):
        newer = RunFolder(folder.path)
        for number, one in enumerate((folder, newer)):
            monkeypatch.setattr(runfolder, "owner_facts", lambda number=number: f"start {number}")
            one.lock()  # a process does not keep itself out
            one.start = one.lock_line
        newer.forget_failure()
        newer.set_status("running")
        return folder, newer

    def test_the_older_says_nothing_in_the_folder(self, older_and_newer, capsys):
        older, newer = older_and_newer
        assert not older.is_of_this_start()
        train._lost(older, "rank 2 is silent")
        assert "rank 2 is silent" in capsys.readouterr().err
        assert newer.status() == "running"
        assert newer.is_of_this_start()
        train._lost(newer, "rank 1 is silent")
        assert newer.status() == "failed: rank 1 is silent"
        assert not newer.first_to_fail()

    def test_to_ask_does_not_give_the_lock_up(self, folder):
        folder.lock()
        folder.start = folder.lock_line
        assert folder.is_of_this_start()
        child = os.fork()
        if (
            not child
        ):  # POSIX: a process that closes any handle of a file has no lock of it any more
            os._exit(RunFolder(folder.path).owner() is None)
        assert os.waitpid(child, 0)[1] == 0

    def test_who_failed_first_is_known_of_each_start(self, older_and_newer):
        older, newer = older_and_newer
        assert [one.first_to_fail() for one in (older, older, newer, newer)] == [
            *(True, False),
            *(True, False),
        ]
        newer.forget_failure()
        assert newer.first_to_fail()

    def test_a_checkpoint_that_came_meanwhile_is_not_trained_over(self, folder):
        (folder.checkpoints / "round-00000004").mkdir()
        starting._refuse_later(folder, Progress(round=4))
        with pytest.raises(InputError, match=r"another run has just saved .*round-00000004"):
            starting._refuse_later(folder, Progress(round=3))

    @pytest.mark.parametrize(("job", "restarts", "waits"), [("7", "1", True), ("7", "0", False)])
    def test_an_earlier_start_of_the_job_is_waited_for(
        self, folder, monkeypatch, caplog, job, restarts, waits
    ):
        monkeypatch.setattr(runfolder, "_LOCK_WAIT_S", 0.2)
        monkeypatch.setattr(runfolder, "_LOST_HOST_WAIT_S", 20.0)
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
        ready, told = os.pipe()
        child = os.fork()
        if not child:
            held = RunFolder(folder.path)  # as long as it lives
            held.lock()
            os.write(told, b"x")
            time.sleep(1.5)
            os._exit(0)
        os.read(ready, 1)
        try:
            with caplog.at_level(logging.WARNING, "ist_hpc"):
                if waits:
                    folder.lock()
                    assert "this job's earlier start still has" in caplog.text
                else:
                    with pytest.raises(InputError, match="another run is writing"):
                        folder.lock()
        finally:
            os.waitpid(child, 0)

"""The folder of a run: never another run's, never half a file, and no row of a round twice."""

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ist_hpc
from ist_hpc.checkpoint.read import Progress
from ist_hpc.common.disk import files
from ist_hpc.common.errors import InputError
from ist_hpc.config import loading
from ist_hpc.runtime.run_folder import folder as folder_module
from ist_hpc.runtime.run_folder import start_facts
from ist_hpc.runtime.run_folder.folder import RunFolder
from ist_hpc.runtime.run_folder.outcome import record_silence
from ist_hpc.runtime.run_folder.start_facts import facts_of_start
from ist_hpc.training import start as starting

pytestmark = pytest.mark.long

PACKAGE = Path(ist_hpc.__file__).parent


@pytest.fixture
def folder(tmp_path):
    made = RunFolder(tmp_path / "runs" / "one")
    made.create(resume=False)
    return made


def rows_of(folder):
    return [json.loads(line)["round"] for line in folder.metrics.path.read_text().splitlines()]


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
    with folder.metrics.path.open("a") as file:
        file.write('{"kind": "round", "rou')
    folder.metrics.rewind(3)
    assert rows_of(folder) == [1, 1, 2, 2, 3, 3]
    folder.add_metrics({"kind": "round", "round": 4})  # on a line of its own
    assert rows_of(folder) == [1, 1, 2, 2, 3, 3, 4]
    folder.metrics.rewind(0)
    assert rows_of(folder) == []


def test_rewinding_without_rows_is_nothing(folder):
    folder.metrics.rewind(0)
    assert not folder.metrics.path.exists()


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
    monkeypatch.setattr(start_facts, "_git_state", lambda: "abc-dirty")
    settings = loading.load(None)
    for ranks in (2, 3):
        folder.record_start(settings, facts_of_start(ranks, 1, "Open MPI v4.1\n\0more"))
    starts = json.loads((folder.path / "run.json").read_text())["starts"]
    assert [start["ranks"] for start in starts] == [2, 3]
    assert starts[0]["git"] == "abc-dirty"
    assert starts[0]["mpi"] == "Open MPI v4.1"
    assert loading.load(folder.path / "config.yaml") == settings


def test_only_what_is_on_the_list_is_kept_of_slurms_variables(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JWT", "secret")
    assert facts_of_start(1, 1, "MPI")["slurm"].keys() & {"SLURM_JOB_ID", "SLURM_JWT"} == {
        "SLURM_JOB_ID"
    }


def test_a_run_json_that_is_damaged_is_put_aside(folder):
    (folder.path / "run.json").write_text("")
    folder.record_start(loading.load(None), facts_of_start(2, 1, "MPI"))
    assert len(json.loads((folder.path / "run.json").read_text())["starts"]) == 1
    assert (folder.path / "damaged-run.json").read_text() == ""


def test_rows_that_are_none_are_left_out(folder):
    folder.add_metrics({"kind": "round", "round": 1, "seconds": {"train": 2.0}, "bytes_sent": 3})
    with folder.metrics.path.open("ab") as file:
        file.write(b'[1]\n"x"\n{"round": "1"}\n\xff\xfe\n{"round": 2, "seconds": 4}\n')
    assert folder.metrics.totals()["seconds"]["train"] == 2.0
    folder.metrics.rewind(5)
    assert rows_of(folder) == [1]


def test_a_name_that_is_taken_gets_a_number(tmp_path):
    """Of a default name: it has the second in which the run began, and so may another's."""
    made = []
    for _ in range(3):
        folder = RunFolder(tmp_path / "runs/one", or_beside=True)
        assert folder.create(resume=False)
        folder.set_status("running")
        made.append(folder.path.name)
    assert made == ["one", "one-2", "one-3"]
    assert (tmp_path / "runs/one-3/STATUS").exists()
    assert not RunFolder(tmp_path / "runs/one").create(resume=True)
    assert RunFolder(tmp_path / "runs/two").create(resume=True)


class TestGit:
    """What run.json says of the commit is so, or empty: of a copy of the package in many places."""

    @pytest.fixture
    def repository(self, tmp_path):
        if not shutil.which("git"):
            pytest.skip("no git")
        made = tmp_path / "repository"
        made.mkdir()
        self.git(made, "init", "-q")
        (made / "thesis.tex").write_text("x")
        self.commit(made, "thesis.tex")
        return made

    def git(self, folder, *words):
        own = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
        who = ["-c", "user.name=n", "-c", "user.email=e", "-c", "protocol.file.allow=always"]
        done = subprocess.run(
            ["git", *who, *words],
            cwd=folder,
            env={**os.environ, **own},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout.strip()

    def commit(self, folder, *paths):
        self.git(folder, "add", "--", *paths)
        self.git(folder, "commit", "-q", "-m", "x")
        return self.git(folder, "rev-parse", "--short=12", "HEAD")

    def put_package(self, place):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PACKAGE, place / "ist_hpc", ignore=ignored, dirs_exist_ok=True)
        (place / "ist_hpc/.gitignore").write_text("__pycache__/\n")
        return place

    def said(self, place, **environment):
        """What the package at `place` says, started elsewhere."""
        program = (
            "from ist_hpc.runtime.run_folder import start_facts\n"
            "print(start_facts.__file__, start_facts._git_state())"
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd="/",
            env={**os.environ, "PYTHONPATH": str(place), **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        file, _, state = done.stdout.rstrip("\n").partition(" ")
        assert file == str(place / "ist_hpc/runtime/run_folder/start_facts.py")
        return state

    @pytest.mark.parametrize("place", ["venv/lib/python3/site-packages", ""])
    def test_in_a_repository_of_other_things(self, repository, place):
        assert self.said(self.put_package(repository / place)) == ""

    def test_git_told_of_another_repository(self, repository, tmp_path):
        other = {"GIT_DIR": str(repository / ".git"), "GIT_WORK_TREE": str(repository)}
        (tmp_path / "plain").mkdir()
        assert self.said(self.put_package(tmp_path / "plain"), **other) == ""
        own = tmp_path / "own"
        self.git(tmp_path, "init", "-q", "own")
        self.put_package(own)
        assert self.said(own, **other) == ""  # nothing was added to it yet
        commit = self.commit(own, "ist_hpc")
        assert self.said(own, **other) == commit

    def test_of_a_checkout(self, repository):
        self.put_package(repository)
        commit = self.commit(repository, "ist_hpc")
        assert self.said(repository) == commit
        (repository / "notes.txt").write_text("no part of it")
        assert self.said(repository) == commit
        (repository / "ist_hpc/mine.py").write_text("")
        assert self.said(repository) == f"{commit}-dirty"
        (repository / "ist_hpc/mine.py").unlink()
        with (repository / "ist_hpc/common/disk/names.py").open("a") as file:
            file.write("# changed\n")
        assert self.said(repository) == f"{commit}-dirty"

    def test_of_a_worktree_and_of_a_submodule(self, repository, tmp_path):
        self.put_package(repository)
        commit = self.commit(repository, "ist_hpc")
        self.git(repository, "worktree", "add", "-q", str(tmp_path / "tree"))
        assert self.said(tmp_path / "tree") == commit
        outer = tmp_path / "outer"
        self.git(tmp_path, "init", "-q", "outer")
        self.git(outer, "submodule", "add", "-q", str(repository), "inner")
        self.commit(outer, "inner")
        assert self.said(outer / "inner") == commit

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
    def test_of_a_checkout_that_git_does_not_trust(self, repository):
        self.put_package(repository)
        self.commit(repository, "ist_hpc")
        for path in (repository, repository / ".git", repository / "ist_hpc"):
            os.chown(path, 65534, 65534)
        assert self.said(repository, HOME=str(repository)) == ""

    def test_without_git(self, repository, tmp_path):
        self.put_package(repository)
        self.commit(repository, "ist_hpc")
        assert self.said(repository, PATH=str(tmp_path)) == ""


def test_versions_are_of_what_runs(monkeypatch):
    """A copy on PYTHONPATH is imported, whatever pip installed."""
    monkeypatch.setattr(sys.modules["numpy"], "__version__", "0.0.mine")
    assert facts_of_start(1, 1, "MPI")["versions"]["numpy"] == "0.0.mine"


class TestAnotherStart:
    """Two starts of one run: the older may be on a host that was cut off, and comes back."""

    @pytest.fixture
    def older_and_newer(self, folder, monkeypatch):
        newer = RunFolder(folder.path)
        for number, one in enumerate((folder, newer)):
            monkeypatch.setattr(
                folder_module, "owner_facts", lambda number=number: f"start {number}"
            )
            one.lock()  # a process does not keep itself out
            one.start = one.lock_line
        newer.forget_failure()
        newer.set_status("running")
        return folder, newer

    def test_the_older_says_nothing_in_the_folder(self, older_and_newer, capsys):
        older, newer = older_and_newer
        assert not older.is_of_this_start()
        record_silence(older, "rank 2 is silent")
        assert "rank 2 is silent" in capsys.readouterr().err
        assert newer.status() == "running"
        assert newer.is_of_this_start()
        record_silence(newer, "rank 1 is silent")
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

    def test_a_lock_file_that_was_replaced_is_another_ones(self, folder):
        folder.lock()
        folder.start = folder.lock_line
        (folder.path / ".lock").unlink()
        assert not folder.is_of_this_start()
        (folder.path / ".lock").write_text("process 1 on mars\n")
        assert not folder.is_of_this_start()

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
        monkeypatch.setattr(folder_module, "_LOCK_WAIT_S", 0.2)
        monkeypatch.setattr(folder_module, "_LOST_HOST_WAIT_S", 20.0)
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

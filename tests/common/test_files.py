"""Files that take the place of others: whole, or not at all, on file systems of every kind."""

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest

from ist_hpc.common.disk.files import hidden_beside, json_text, refuse_target, replacing, write_text
from ist_hpc.common.errors import InputError
from ist_hpc.config import loading
from ist_hpc.runtime.run_folder.folder import RunFolder
from ist_hpc.runtime.run_folder.start_facts import facts_of_start
from tests.helpers.launching import ROOT, run_python
from tests.helpers.small_runs import SMALL, command

pytestmark = pytest.mark.long

BYTES = os.fsdecode(b"caf\xe9")  # a name that is not UTF-8


def test_what_was_written_takes_the_place(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")
    with replacing(path) as beside:
        beside.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert [found.name for found in tmp_path.iterdir()] == ["picture.png"]


def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")

    def write_half() -> None:
        with replacing(path) as beside:
            beside.write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["picture.png"]


def test_a_file_that_came_up_meanwhile_is_not_replaced_unasked(tmp_path):
    path = tmp_path / "model.pt"

    def write() -> None:
        with replacing(path, overwrite=False) as beside:
            beside.write_bytes(b"mine")
            path.write_bytes(b"another's")

    with pytest.raises(FileExistsError):
        write()
    assert path.read_bytes() == b"another's"
    path.unlink()
    with replacing(path, overwrite=False) as beside:
        beside.write_bytes(b"mine")
    assert path.read_bytes() == b"mine"
    assert [found.name for found in tmp_path.iterdir()] == ["model.pt"]


def test_a_link_is_followed_and_not_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "link.png"
    link.symlink_to(tmp_path / "there/picture.png")
    for content in (b"first", b"second"):  # the file is not there at first
        with replacing(link) as beside:
            assert beside.parent == tmp_path / "there"
            beside.write_bytes(content)
        assert link.is_symlink()
        assert (tmp_path / "there/picture.png").read_bytes() == content


def test_long_names_have_hidden_ones(tmp_path):
    for name in ("n" * 255, "é" * 127, BYTES * 50):
        write_text(tmp_path / name, "text")
        assert (tmp_path / name).read_text() == "text"
        assert hidden_beside(tmp_path / name) != hidden_beside(tmp_path / name)


@pytest.mark.parametrize("option", ["--predictions", "--export", "--output"])
def test_what_is_no_file_is_refused(tmp_path, option):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "lost").symlink_to("away/file")
    for name, message in (
        ("", "must be a file in a folder that is there; this is the folder"),
        ("away/file", "must be a file in a folder that is there; make it: mkdir -p .*/away"),
        ("lost", "must be a file in a folder that is there; make it: mkdir -p .*/away"),
        ("pipe", "is no plain file"),
        ("file/file", "cannot be written .Not a directory"),
        ("loop", "cannot be written .Too many levels"),
        ("n" * 256, "cannot be written .File name too long"),
    ):
        with pytest.raises(InputError, match=f"^{option} .*{message}"):
            refuse_target(tmp_path / name, option, overwrite=True)
    refuse_target(tmp_path / "file", option, overwrite=True)
    refuse_target(tmp_path / "new", option, overwrite=False)
    with pytest.raises(InputError, match="the file exists; add --overwrite to replace it"):
        refuse_target(tmp_path / "file", option, overwrite=False)


class TestNames:
    """Whatever names are in it, what is written is UTF-8, and JSON is JSON."""

    def test_text_is_written_as_it_is(self, tmp_path):
        write_text(tmp_path / "a", "größer\n")
        assert (tmp_path / "a").read_bytes() == "größer\n".encode()

    def test_a_name_that_is_no_text_is_written_as_it_is_printed(self, tmp_path):
        write_text(tmp_path / BYTES, f"größer: {BYTES}\n")
        assert (tmp_path / BYTES).read_bytes() == "größer: caf\\xe9\n".encode()

    def test_json_stays_json(self):
        content = {BYTES: [f"é {BYTES} \\ \n"], "n": None}
        text = json_text(content)
        text.encode()
        assert json.loads(text) == {"caf\\xe9": ["é caf\\xe9 \\ \n"], "n": None}

    def test_of_a_run(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sys, "orig_argv", ["python", BYTES])
        monkeypatch.setattr("socket.gethostname", lambda: BYTES)
        folder = RunFolder(tmp_path / BYTES)
        folder.create(resume=False)
        folder.lock()
        folder.start = folder.lock_line
        folder.record_start(loading.load(None), facts_of_start(1, 1, "MPI"))
        folder.set_status(f"failed: {BYTES}")
        folder.add_metrics({"kind": "round", "round": 1, "note": BYTES})
        for path in folder.path.rglob("*"):
            if path.is_file():
                path.read_bytes().decode("utf-8")
        start = json.loads((folder.path / "run.json").read_text())["starts"][0]
        assert "caf\\xe9" in start["command"]
        assert start["host"] == "caf\\xe9"
        assert next(folder.metrics.rows())["note"] == "caf\\xe9"


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    if not shutil.which("gcc"):
        pytest.skip("no gcc to compile what stands for another file system")
    made = tmp_path_factory.mktemp("shim") / "shim.so"
    words = [
        "gcc",
        "-shared",
        "-fPIC",
        "-o",
        made,
        ROOT / "tests/helpers/no_folder_flush.c",
        "-ldl",
    ]
    subprocess.run(words, check=True, timeout=60)
    return made


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    place = tmp_path_factory.mktemp("digits")
    run_python(["-m", "ist_hpc.prepare", "digits", "--output", "digits"], place)
    return place / "digits"


class TestOtherFileSystems:
    """Real processes on one that lacks what is no necessity, by way of the C library."""

    def run(self, shim, words, cwd, **settings):
        env = {"LD_PRELOAD": str(shim), **{name: str(value) for name, value in settings.items()}}
        return run_python(words, cwd, env=env, check=False)

    @pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
    def test_folders_that_cannot_be_flushed(self, shim, digits, tmp_path, number):
        (tmp_path / "digits").symlink_to(digits)
        prepare = ["-m", "ist_hpc.prepare", "digits", "--output", "made"]
        for words in (
            prepare,
            command("a", *SMALL, "train.rounds=2"),
            command("a", *SMALL, "train.rounds=3", resume=True),
            ["-m", "ist_hpc.show", "runs/a", "--export", "a.pt"],
            ["-m", "ist_hpc.evaluate", "runs/a", "--data", "digits", "--predictions", "a.h5"],
        ):
            done = self.run(shim, words, tmp_path, FOLDER_ERRNO=number)
            assert done.returncode == 0, done.stderr
        assert (tmp_path / "runs/a/STATUS").read_text() == "finished\n"

    @pytest.mark.parametrize(
        "settings",
        [{"FOLDER_ERRNO": errno.EIO}, {"FOLDER_ERRNO": errno.EACCES}, {"FILE_ERRNO": errno.EINVAL}],
    )
    def test_a_disk_that_fails_is_another_thing(self, shim, digits, tmp_path, settings):
        """And leaves no data set and no run folder that looks like one."""
        (tmp_path / "digits").symlink_to(digits)
        words = ["-m", "ist_hpc.prepare", "digits", "--output", "made"]
        done = self.run(shim, words, tmp_path, **settings)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "cannot be written (" in done.stderr
        done = self.run(shim, command("a", *SMALL, "train.rounds=2"), tmp_path, **settings)
        assert done.returncode == 2
        assert "cannot write into the run folder runs/a: " in done.stderr.splitlines()[-1]
        assert [path.name for path in (tmp_path / "runs").iterdir()] == []
        assert sorted(path.name for path in tmp_path.iterdir()) == ["digits", "runs"]

    def test_no_locks_are_a_warning(self, shim, digits, tmp_path):
        (tmp_path / "digits").symlink_to(digits)
        words = ["-m", "ist_hpc.prepare", "digits", "--output", "made"]
        study = ["-m", "ist_hpc.bench", "scaling", "--methods", "sgd", "--ranks", "1"]
        study += ["--output", "study", "--set", *SMALL, "train.rounds=2"]
        for command_words, file in (
            (words, ".made.lock"),
            (command("a", *SMALL, "train.rounds=2"), "runs/a/.lock"),
            (study, "study/.scaling.lock"),
        ):
            done = self.run(shim, command_words, tmp_path, NO_LOCKS=1)
            assert done.returncode == 0, done.stderr
            assert f"{file} cannot be locked: No locks available" in done.stderr

    def test_two_at_once_without_locks_are_one_data_set(self, shim, tmp_path):
        words = [sys.executable, "-m", "ist_hpc.prepare", "digits", "--output", "made"]
        env = {**os.environ, "LD_PRELOAD": str(shim), "NO_LOCKS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        both = [subprocess.Popen(words, cwd=tmp_path, env=env, text=True, **pipes) for _ in "ab"]
        said = [process.communicate(timeout=120) for process in both]
        assert [process.returncode for process in both] == [0, 0], said
        left = sorted(path.name for path in tmp_path.iterdir() if path.name != ".made.lock")
        assert left == ["made"]


class TestFoldersThatAreNotOnesOwn:
    """Root may write everywhere; so its process gives that right up."""

    def run(self, words, cwd):
        """`python WORDS`, to which the modes of folders apply."""
        asks = []
        if os.geteuid() == 0:
            if not shutil.which("setpriv"):
                pytest.skip("no setpriv, and root may write everywhere")
            asks = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner"]
        return subprocess.run(
            [*asks, sys.executable, *words],
            cwd=cwd,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def test_a_folder_into_which_one_may_not_write(self, digits, tmp_path):
        shutil.copytree(digits, tmp_path / "digits")
        (tmp_path / "runs").mkdir()
        before = sorted(tmp_path.rglob("*"))
        (tmp_path / "runs").chmod(0o555)
        tmp_path.chmod(0o555)
        try:
            for words in (
                ["-m", "ist_hpc.prepare", "digits", "--output", "x"],
                command("a", *SMALL, "train.rounds=2"),
                ["-m", "ist_hpc.plan", "--figure2", "--output", "a.png"],
            ):
                done = self.run(words, tmp_path)
                assert done.returncode == 2, done.stderr
                assert len(done.stderr.splitlines()) == 1, done.stderr
            # Of what is there the answer is the same.
            words = ["-m", "ist_hpc.prepare", "digits", "--output", "digits"]
            assert "digits exists; give another" in self.run(words, tmp_path).stderr
            assert self.run([*words, "--if-missing"], tmp_path).returncode == 0
        finally:
            tmp_path.chmod(0o755)
        assert sorted(tmp_path.rglob("*")) == before

    def test_a_folder_into_which_one_may_only_write(self, tmp_path):
        """A drop folder, which cannot be opened to be flushed."""
        drop = tmp_path / "drop"
        drop.mkdir(mode=0o300)
        code = (
            "import pathlib; from ist_hpc.common.disk.files import write_text; "
            "write_text(pathlib.Path('drop/a'), 'x')"
        )
        done = self.run(["-c", code], tmp_path)
        assert done.returncode == 0, done.stderr
        drop.chmod(0o700)
        assert [path.name for path in drop.iterdir()] == ["a"]
        assert (drop / "a").read_text() == "x"

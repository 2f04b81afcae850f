"""Converters where nothing can be written, and where input claims more than there is."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ist_hpc.data.shards import Dataset
from tests.helpers.found_input import ROOT, TEXT, TIME_LIMIT_S, cifar, clips, error_of, images

pytestmark = pytest.mark.long

IN_SANDBOX = """
mount --bind -o ro "$1" "$1" && mount -o remount,ro,bind "$1" || exit 77
shift
exec "$@"
"""


def _can_mount() -> bool:
    done = subprocess.run(
        [*_unshare(), "sh", "-c", 'mount --bind -o ro "$0" "$0"', str(ROOT)],
        capture_output=True,
        timeout=60,
        check=False,
    )
    return done.returncode == 0


def _unshare() -> list[str]:
    return (
        ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    )


class TestNothingCanBeWritten:
    """The folder of the packages is read-only, and there is no home folder."""

    def run(self, code: str, tmp_path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        if shutil.which("unshare") is None or not _can_mount():
            pytest.skip("this system does not let one mount a folder read-only")
        packages = str(Path(np.__file__).parent.parent)
        home = "/dev/null/home"  # nobody can make it, not even root
        return subprocess.run(
            [*_unshare(), "sh", "-c", IN_SANDBOX, "sh", packages, sys.executable, "-c", code],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "HOME": home, "TMPDIR": str(tmp_path)} | variables,
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT_S,
            check=False,
        )

    REQUIRE = """
import os
from ist_hpc.prepare.common import require
require("librosa", "pip")
print(os.path.isdir(os.environ["NUMBA_CACHE_DIR"]), os.environ["NUMBA_CACHE_DIR"])
"""

    def test_librosa_is_imported_and_nothing_is_left(self, tmp_path):
        pytest.importorskip("librosa")
        done = self.run(self.REQUIRE, tmp_path, NUMBA_CACHE_DIR="/dev/null/cache")
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert done.stdout.startswith(f"True {tmp_path}/ist_hpc-cache-")
        assert list(tmp_path.iterdir()) == []

    def test_recordings_are_converted(self, tmp_path):
        pytest.importorskip("librosa")
        folder = clips(tmp_path / "in")
        (tmp_path / "temporary").mkdir()
        code = (
            "import sys; from ist_hpc.prepare.__main__ import main\n"
            "if __name__ == '__main__':\n"
            f"    sys.exit(main(['speech', '--input', {str(folder)!r}, '--workers', '1',"
            f" '--output', {str(tmp_path / 'out')!r}]))"
        )
        done = self.run(code, tmp_path / "temporary", TMPDIR=str(tmp_path / "temporary"))
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert Dataset.open(tmp_path / "out").classes == ("no", "yes")
        assert list((tmp_path / "temporary").iterdir()) == []

    def test_matplotlib_is_imported_without_a_word(self, tmp_path):
        pytest.importorskip("matplotlib")
        code = "from ist_hpc.studies.plots.pictures import new_figure; new_figure(1, 1, 'x')"
        done = self.run(code, tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stderr == done.stdout == ""
        assert list(tmp_path.iterdir()) == []

    def test_nowhere_at_all(self, tmp_path):
        code = (
            "import tempfile; tempfile._candidate_tempdir_list = lambda: ['/dev/null/x']\n"
            "from ist_hpc.common.disk import caches; from ist_hpc.common.errors import InputError\n"
            "try: caches.for_numba('librosa')\n"
            "except InputError as error: print(error)"
        )
        done = self.run(code, tmp_path)
        assert "librosa needs a folder to write to as it is imported" in done.stdout, done.stderr
        assert "set TMPDIR to one that can" in done.stdout

    def test_a_folder_that_can_be_written_is_taken(self, tmp_path, monkeypatch):
        from ist_hpc.common.disk import caches

        monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
        monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))
        assert not caches.for_numba("librosa")
        assert not caches.for_matplotlib()
        assert os.environ["NUMBA_CACHE_DIR"] == os.environ["MPLCONFIGDIR"] == str(tmp_path)


def with_memory(mebibytes: int, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    limit = ["prlimit", f"--as={mebibytes << 20}", sys.executable, "-m", "ist_hpc.prepare"]
    return subprocess.run(
        [*limit, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
        check=False,
    )


class TestNumbersThatInputClaims:
    @pytest.mark.parametrize("labels", [2**31 - 1, 3 * 10**8])
    def test_labels_of_line_1(self, labels, tmp_path):
        (tmp_path / "a").write_text(TEXT.replace("3 4 5", f"3 4 {labels}"))
        files = ("--train", tmp_path / "a", "--test", tmp_path / "a")
        done = with_memory(2500, "xmc", *files, "--output", tmp_path / "out")
        assert done.returncode == 2, done.stderr
        assert f"a, line 1: {labels} labels: needs {32 * labels / 1e9:.1f} GB" in done.stderr
        assert "(what ulimit -v leaves)" in done.stderr
        assert done.stderr.count("\n") == 1
        assert [path.name for path in tmp_path.iterdir()] == ["a"]

    def test_labels_of_made_data(self, tmp_path):
        sizes = ("--labels", "100000000", "--workers", "1")
        output = ("--output", tmp_path / "out")
        done = with_memory(2500, "synthetic", "--like", "delicious", *sizes, *output)
        assert done.returncode == 2, done.stderr
        assert "100000000 labels in 1 processes (--train-rows" in done.stderr
        assert done.stderr.count("\n") == 1

    def test_a_pickle_for_which_there_is_no_memory_is_not_called_damaged(self, tmp_path):
        source = cifar(tmp_path / "in")
        rows = 130_000  # the file has 400 MB, and needs three times as much
        with (source / "train").open("wb") as file:
            pickle.dump(images() | {"data": np.zeros((rows, 3072), np.uint8)}, file, 4)
        output = ("--output", tmp_path / "out")
        done = with_memory(650, "cifar100", "--input", source, *output)
        assert done.returncode == 2, done.stderr
        assert "out of memory" in done.stderr
        assert done.stderr.count("\n") == 1

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["speech", "--input", ".", "--shards", "1000000000"], "--shards must be 1 to 10000"),
            (["speech", "--input", ".", "--workers", "1000000"], "--workers must be 1 to 1024"),
            (["speech", "--input", ".", "--fold", "9" * 4000], "(got a number of many digits)"),
            (["cifar100", "--input", ".", "--shards", "1000000000"], "--shards must be 1 to 10000"),
            (["xmc", "--shards", "1000000000"], "--shards must be 1 to 10000 (got 1000000000)"),
            (["xmc", "--seed", "9" * 4000], "--seed must be 0 to 18446744073709551615 (got a numb"),
            (["xmc", "--split-column", "-" + "9" * 4000], "(got a number of many digits)"),
            (["synthetic", "--like", "delicious", "--workers", "99999"], "--workers must be 1 to"),
            (["synthetic", "--like", "delicious", "--labels", "9" * 99], "--labels must be 1 to"),
            (["digits", "--seed", "9" * 5000], "--seed"),
        ],
    )
    def test_options(self, arguments, words, tmp_path, capsys):
        said = error_of([*arguments, "--output", str(tmp_path / "out")], capsys)
        assert words in said

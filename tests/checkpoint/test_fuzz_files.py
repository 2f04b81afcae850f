"""Damaged checkpoints and shards, in short; `make fuzz` runs ten thousand cases."""

import faulthandler
import json
import multiprocessing
import os
import shutil
import signal

import h5py
import pytest

from ist_hpc.checkpoint.folder import Checkpoint
from ist_hpc.common.errors import InputError
from tests.helpers import fuzz_files, mutations

pytestmark = pytest.mark.long

MAIN, RANK = "checkpoint.h5", "rank-0001.h5"
SEEN = 3  # an exit code


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    fuzz_files.make(folder)
    return folder


@pytest.fixture(scope="module")
def whole(made):
    return fuzz_files.read_whole(made)


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made / "checkpoint", tmp_path / "checkpoint")


def refusal(made, folder):
    """What a resume from the folder says, its checksums made to fit."""
    mutations.fit_manifest(folder)
    with pytest.raises(InputError) as caught:
        fuzz_files.read_checkpoint(folder, made)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_is_refused_or_read_as_what_it_was(made):
    outcomes = fuzz_files.fuzz(made, cases=600, seed=0)
    for kind in fuzz_files.KINDS:
        assert outcomes[f"{kind.name} refused"] > 100
        assert outcomes[f"{kind.name} read"] > 5 or kind.fit is None


def test_the_fuzzer_sees_that_a_check_is_missing(made, whole, tmp_path, monkeypatch):
    """In a process of its own: without the check, HDF5 itself crashes on some of the cases."""
    monkeypatch.setattr(Checkpoint, "check_files", lambda *_: None)

    def check_checkpoints():
        faulthandler.disable()
        for case in range(0, 3000, len(fuzz_files.KINDS)):
            try:
                fuzz_files.check(made, whole, 1, case, tmp_path)
            except AssertionError:
                os._exit(SEEN)

    process = multiprocessing.get_context("fork").Process(target=check_checkpoints)
    process.start()
    process.join(60)
    process.kill()
    process.join()
    assert process.exitcode in (SEEN, -signal.SIGSEGV)


def test_a_file_that_is_not_seen_where_it_is_read_is_named(copy):
    """HDF5 would read NaN; the host that has checked it is another one."""
    with Checkpoint(copy).opened() as opened:
        (copy / RANK).unlink()
        with pytest.raises(InputError, match=RANK):
            opened.rows("parameters", "fc1.weight", (9, 5))


@pytest.mark.parametrize("name", [MAIN, RANK, "manifest.json"])
def test_a_pipe_is_refused_and_not_waited_for(made, copy, name):
    (copy / name).unlink()
    os.mkfifo(copy / name)
    with pytest.raises(InputError, match=f"{name}: must be a plain file"):
        fuzz_files.read_checkpoint(copy, made)


def test_another_version_is_said_to_be_one(made, copy):
    with h5py.File(copy / MAIN, "r+") as file:
        file.attrs["format_version"] = 1
        del file.attrs["owes_evaluation"]
    message = refusal(made, copy)
    assert "`format_version` must be 2, got 1 (a whole number)" in message
    assert "written by another ist_hpc ('0.1.0' there)" in message


def test_the_manifest_has_a_file_for_each_rank(copy):
    content = json.loads((copy / "manifest.json").read_text())
    del content["files"][RANK]
    (copy / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"1 rank files, checkpoint\.h5 is of 2"):
        Checkpoint(copy).opened().__enter__()

"""Hostile checkpoints and shards, in short; `make fuzz` runs ten thousand cases."""

import faulthandler
import json
import multiprocessing
import os
import shutil
import signal

import h5py
import numpy as np
import pytest

from ist_hpc.checkpoint import read
from ist_hpc.checkpoint.read import Checkpoint, OpenCheckpoint
from ist_hpc.common.errors import InputError
from tests.helpers import fuzz_files, mutations

pytestmark = pytest.mark.long

MAIN, RANK = "checkpoint.h5", "rank-0001.h5"
SEEN = 3  # an exit code
CHECKPOINT = fuzz_files.KINDS[0]


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
        assert outcomes[f"{kind.name} read"] > 5


@pytest.mark.parametrize("name", [MAIN, RANK])
def test_an_attribute_of_any_value_is_refused_or_read_as_it_is(made, whole, copy, name):
    outcomes = []
    with h5py.File(copy / name) as file:
        keys = sorted(file.attrs)
    for key in keys:
        for value in mutations.ODD:
            shutil.copy(made / "checkpoint" / name, copy)
            with h5py.File(copy / name, "r+") as file:
                file.attrs[key] = value
            mutations.fit_manifest(copy)
            try:
                outcomes.append(fuzz_files.judge(CHECKPOINT, copy, made, whole, fitted=True))
            except BaseException as error:
                error.add_note(f"{key}: {value!r:.60}")
                raise
    assert outcomes.count(True) == (23 if name == MAIN else 1)


@pytest.mark.parametrize(
    ("owner", "check"),
    [
        (OpenCheckpoint, "check_map"),
        (OpenCheckpoint, "check_part"),
        (read, "_is_stored"),
    ],
)
def test_the_fuzzer_sees_that_a_check_is_missing(made, whole, tmp_path, monkeypatch, owner, check):
    """In a process of its own: without the checks, HDF5 itself crashes on some of the cases."""
    monkeypatch.setattr(owner, check, lambda *_: True)

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


@pytest.mark.parametrize("swapped", [True, False])
def test_a_part_is_checked_before_it_is_read_by_whoever_checks_none(copy, swapped):
    """As `show` and `model.body_from` read: without `check_parts`."""
    if swapped:
        other = copy / "rank-0000.h5"
        content = other.read_bytes()
        shutil.copy(copy / RANK, other)
        (copy / RANK).write_bytes(content)
    else:
        with h5py.File(copy / RANK, "r+") as file:
            of_itself(file)
    mutations.fit_manifest(copy)
    with Checkpoint(copy).opened() as opened, pytest.raises(InputError, match="rank-000"):
        opened.rows("parameters", "fc1.weight", (9, 5))


# What was found by reading the code.


@pytest.mark.parametrize(
    "name",
    [
        "rank-00001.h5",
        "rank-000\u0661.h5",  # another alphabet's 1
        "rank-0002.h5",
        "..",
        "",
        "a\0b",
        "\udcff",
        "a" * 999,
    ],
)
def test_a_manifest_lists_the_files_that_hdf5_opens_and_no_others(copy, name):
    content = json.loads((copy / "manifest.json").read_text())
    content["files"][name] = content["files"].pop(RANK)
    (copy / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"list checkpoint\.h5 and rank-0000\.h5 to rank-0001"):
        Checkpoint(copy)


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


@pytest.mark.parametrize("ranks", [1, 2])
def test_more_than_the_files_can_hold_is_refused_before_it_is_read(made, copy, ranks):
    """HDF5 makes up what is not there, so that a few bytes can ask for all memory."""
    name = "parameters/fc1.weight"
    with h5py.File(copy / MAIN, "r+") as file:
        layout = h5py.VirtualLayout((9, 2**40), "f4")
        layout[...] = h5py.VirtualSource("rank-0000.h5", name, (9, 2**40))
        del file[name]
        if ranks == 1:
            file.create_dataset(name, (9, 2**40), "f4")
        else:
            file.create_virtual_dataset(name, layout)
    mutations.fit_manifest(copy)
    with pytest.raises(InputError, match=r"fc1.weight \(9, 1099511627776\) is not stored"):
        Checkpoint(copy).opened().__enter__()


def in_a_circle(file):
    file["parameters/again"] = file["parameters"]


def very_deep(file):
    file.create_group("statistics/" + "x/" * 2000)


def a_scalar(file):
    del file["parameters/fc1.weight"]
    file["parameters/fc1.weight"] = np.float32(1)


def no_values(file):
    del file["parameters/fc1.weight"]
    file["parameters/fc1.weight"] = h5py.Empty("f4")


def a_dataset_for_a_group(file):
    del file["parameters"]
    file["parameters"] = np.zeros(3, "f4")


def a_group_for_a_dataset(file):
    del file["parameters/fc1.weight"]
    file.create_group("parameters/fc1.weight")


def a_group_elsewhere(file):
    del file["parameters"]
    file["parameters"] = h5py.SoftLink("/optimizer/momentum")


def of_itself(file):
    """HDF5 2.0 follows this until its stack ends."""
    layout = h5py.VirtualLayout(file["parameters/fc1.weight"].shape, "f4")
    layout[...] = h5py.VirtualSource(".", "parameters/fc1.weight", layout.shape)
    del file["parameters/fc1.weight"]
    file.create_virtual_dataset("parameters/fc1.weight", layout)


def in_another_file(file):
    shape = file["parameters/fc1.weight"].shape
    place = [("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
    del file["parameters/fc1.weight"]
    file.create_dataset("parameters/fc1.weight", shape, "f4", external=place)


def not_written(file):
    shape = file["parameters/fc1.weight"].shape
    del file["parameters/fc1.weight"]
    file.create_dataset("parameters/fc1.weight", shape, "f4", chunks=(1, shape[1]))


def half_written(file):
    not_written(file)
    file["parameters/fc1.weight"][1:] = 1


def not_unicode(file):
    file["parameters"].id.link(b"fc1.weight", b"\xff")


def a_type(file):
    del file["parameters/fc1.weight"]
    file["parameters/fc1.weight"] = np.dtype("f4")


@pytest.mark.parametrize("name", [MAIN, RANK])
@pytest.mark.parametrize(
    "edit",
    [
        in_a_circle,
        very_deep,
        a_scalar,
        no_values,
        a_dataset_for_a_group,
        a_group_for_a_dataset,
        a_group_elsewhere,
        of_itself,
        in_another_file,
        not_written,
        half_written,
        not_unicode,
        a_type,
    ],
)
def test_what_is_no_dataset_of_its_own_is_refused(made, copy, name, edit):
    with h5py.File(copy / name, "r+") as file:
        edit(file)
    refusal(made, copy)

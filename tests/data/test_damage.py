"""Damaged shards: whatever is wrong with a file is named, and never a wrong number."""

import os

import h5py
import numpy as np
import pytest

from ist_hpc.common.errors import InputError
from ist_hpc.data.shards import Dataset
from tests.helpers.both_kinds import DATASETS, ROWS, WIDTH
from tests.helpers.data_sets import assert_refused_when_changed, chunk_offset, flip


class TestBothKinds:
    def test_flipped_byte_is_found_by_the_sha(self, made):
        file = made.path / "train-0001.h5"
        flip(file, chunk_offset(file, DATASETS[made.kind][0]))
        data = Dataset.open(made.path)
        data.check_shard("train", 0)
        with pytest.raises(InputError, match=r"train-0001\.h5: the SHA-256 .* made by: "):
            data.check_shard("train", 1)

    @pytest.mark.parametrize(
        ("made", "name"),
        [(kind, name) for kind, names in DATASETS.items() for name in names],
        indirect=["made"],
    )
    def test_flipped_byte_is_found_on_reading(self, made, name):
        flip(made.path / "train-0001.h5", chunk_offset(made.path / "train-0001.h5", name))
        with Dataset.open(made.path) as data:
            data.check_shard("train", 1, checksum=False)
            made.assert_same(data.read("train", 0, 16), range(16))
            message = rf"train-0001\.h5: checksum of a block of `{name}` does not match"
            with pytest.raises(InputError, match=message):
                data.read("train", 0, ROWS)
            with pytest.raises(InputError, match=message):
                data.take("train", np.array([1, 20]))

    def test_no_flipped_bit_is_ever_a_wrong_number(self, made):
        file = made.path / "train-0001.h5"
        whole = file.read_bytes()
        random = np.random.default_rng(0)
        errors = []
        for offset in random.integers(len(whole), size=300):
            flip(file, offset)
            try:
                with Dataset.open(made.path) as data:
                    made.assert_same(data.read("train", 16, 32), range(16, 32))
            except InputError as error:
                errors.append(str(error))
            file.write_bytes(whole)
        assert len(errors) > 50
        assert all("train-0001.h5" in error for error in errors)

    def test_truncated_file(self, made):
        for split in ("test", "train"):
            file = made.path / f"{split}-0000.h5"
            os.truncate(file, file.stat().st_size - 100)
            with Dataset.open(made.path) as data:
                with pytest.raises(InputError, match=rf"{split}-0000\.h5: the file has \d+ bytes"):
                    data.check_shard(split, 0)
                message = rf"{split}-0000\.h5: HDF5 cannot read it.*truncated"
                with pytest.raises(InputError, match=message):
                    data.read(split, 0, 1)

    def test_file_without_bytes(self, made):
        os.truncate(made.path / "test-0000.h5", 0)
        with pytest.raises(InputError, match="the file is empty, "):
            Dataset.open(made.path).check_shard("test", 0)

    def test_missing_shard(self, made):
        (made.path / "train-0002.h5").unlink()
        data = Dataset.open(made.path)
        for attempt in (
            lambda: data.check_shard("train", 2),
            lambda: data.read("train", 0, ROWS),
            lambda: data.read("train", 32, 33),
        ):
            with pytest.raises(InputError, match=r"train-0002\.h5: no such file"):
                attempt()
        data.close()


def replace(file, name, values, fletcher32=True):
    del file[name]
    most = (None, *values.shape[1:])
    chunks = (16, *values.shape[1:])
    file.create_dataset(name, data=values, maxshape=most, chunks=chunks, fletcher32=fletcher32)


def unwritten(file):
    del file["labels"]
    file.create_dataset("labels", (16,), "i8", chunks=(16,), fletcher32=True)


def link(file, target):
    file.move("labels", "other")
    file["labels"] = target


def to_group(file):
    del file["labels"]
    file.create_group("labels")


class TestDense:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda f: f.move("features", "other"), "no dataset `features` .it has labels, other"),
            (lambda f: replace(f, "labels", np.zeros(16, "i4")), "`labels` must be int64 .*int32"),
            (lambda f: replace(f, "features", np.zeros((16, 5), "f4")), r"\(16, 6\).*\(16, 5\)"),
            (lambda f: replace(f, "features", np.zeros((0, 6), "f4")), "the shard is empty: "),
            (lambda f: f["labels"].resize(15, axis=0), r"`labels` must be .*\(16,\).*\(15,\)"),
            (
                lambda f: replace(f, "labels", np.zeros(16, "i8"), fletcher32=False),
                "`labels` is stored without the checksum",
            ),
            (lambda f: unwritten(f), "`labels` has 0 of 1 blocks"),
            (lambda f: to_group(f), "`labels` must be a dataset"),
            (lambda f: link(f, h5py.SoftLink("/other")), "`labels` is a link"),
            (lambda f: link(f, h5py.ExternalLink("train-0000.h5", "labels")), "`labels` is a link"),
            (lambda f: f.attrs.update(split="test"), "`split` must be 'train'.*got 'test'"),
            (lambda f: f.attrs.__delitem__("split"), "`split` must be 'train'.*got nothing"),
        ],
    )
    def test_content_that_is_not_what_meta_says(self, dense, change, message):
        assert_refused_when_changed(dense, change, message)

    def test_label_out_of_range(self, dense):
        with h5py.File(dense / "train-0001.h5", "r+") as file:
            file["labels"][5] = 3
        message = r"train-0001\.h5: `labels` must be 0 to 2.*got 3 in row 5"
        with Dataset.open(dense) as data, pytest.raises(InputError, match=message):
            data.read("train", 20, 23)


def flat(file, name, values):
    """Another dataset in the place of `name`."""
    del file[name]
    file.create_dataset(
        name, data=values, maxshape=(None,), chunks=(max(1, len(values)),), fletcher32=True
    )


def unwritten_vector(file, name):
    shape, dtype = file[name].shape, file[name].dtype
    del file[name]
    file.create_dataset(name, shape, dtype, chunks=shape, fletcher32=True)


def put(file, name, at, value):
    file[name][at] = value


class TestSparse:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda f: f.move("features", "x"), "no dataset `features` .it has labels, x"),
            (lambda f: f.move("labels/data", "labels/x"), r"`labels` has: indices, indptr, x\)"),
            (lambda f: flat(f, "labels", np.ones(3)), "`labels` must be a group, not a dataset"),
            (
                lambda f: (f.pop("labels/data"), f.create_group("labels/data")),
                "`labels/data` must be a dataset, not a group",
            ),
            (
                lambda f: f["features"].attrs.pop("encoding-type"),
                "`features` has no attribute `encoding-type`",
            ),
            (
                lambda f: f["features"].attrs.update({"encoding-type": "csc_matrix"}),
                r"`encoding-type` of `features` must be csr_matrix \(got csc_matrix\)",
            ),
            (
                lambda f: f["labels"].attrs.update({"shape": [16, 8]}),
                r"`shape` of `labels` must be \[16, 9\] \(got \[16, 8\]\)",
            ),
            (
                lambda f: flat(f, "features/indptr", np.zeros(16, "i8")),
                r"`features/indptr` must be int64 of shape \(17,\).*\(16,\)",
            ),
            (
                lambda f: flat(f, "features/indices", np.zeros(5, "i8")),
                r"`features/indices` must be int32 of shape \(any,\).*int64",
            ),
            (lambda f: f["features/data"].resize(9, axis=0), r"`features/data` must be .*\(9,\)"),
            (lambda f: unwritten_vector(f, "labels/indices"), "`labels/indices` has 0 of 1 blocks"),
        ],
    )
    def test_content_that_is_not_what_meta_says(self, sparse, change, message):
        assert_refused_when_changed(sparse, change, message)

    @pytest.mark.parametrize(
        ("name", "at", "value", "message"),
        [
            ("features/indptr", 0, 1, "`features/indptr` must rise from 0"),
            ("features/indptr", 4, -1, "`features/indptr` must rise from 0"),
            ("features/indptr", 5, 2**40, r"must rise from 0 to the length of `features/ind"),
            ("labels/indptr", 16, 3, "`labels/indptr` must rise from 0"),
            ("features/indices", 0, WIDTH, "`features/indices` must be 0 to 10 .got 11. in row 0"),
            ("labels/indices", 0, -1, "`labels/indices` must be 0 to 8 .got -1. in row 0"),
            ("features/indices", 1, 0, "must ascend strictly .got 0, then 0. in row 0"),
            ("labels/data", 1, 2, "`labels/data` must be ones"),
        ],
    )
    def test_wrong_numbers_with_a_right_checksum(self, sparse, name, at, value, message):
        with h5py.File(sparse / "train-0000.h5", "r+") as file:
            put(file, name, at, value)
        with Dataset.open(sparse) as data:
            with pytest.raises(InputError, match=rf"train-0000\.h5: .*{message}"):
                data.read("train", 0, 16)
            with pytest.raises(InputError, match=rf"train-0000\.h5: .*{message}"):
                data.take("train", np.array([0, 3, 15]))

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda file: file.unlink(), "no such file"),
            (lambda file: os.truncate(file, 50), "has 50 bytes"),
            (lambda file: flip(file, chunk_offset(file, "train")), "the SHA-256 "),
        ],
    )
    def test_label_counts(self, sparse, damage, message):
        damage(sparse / "label-counts.h5")
        with pytest.raises(InputError, match=rf"label-counts\.h5: .*{message}.* made by: "):
            Dataset.open(sparse).label_counts()

"""Sparse shards: what is written is read back, row by row, and whatever is wrong is named."""

import os
import tempfile
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from ist_hpc.common.errors import InputError
from ist_hpc.data import shards as shards_module
from ist_hpc.data.csr import Csr
from ist_hpc.data.shards import Dataset, DatasetWriter
from tests.helpers.data_sets import assert_refused_when_changed, chunk_offset, flip
from tests.helpers.sparse_rows import (
    csr_of,
    numbered_features,
    numbered_labels,
    row_lists,
    rows_of,
    write_numbered,
)

WIDTH, LABELS, ROWS, SHARD_ROWS = 11, 9, 50, 16
DATASETS = [f"{group}/{name}" for group in ("features", "labels") for name in ("data", "indices")]
DATASETS += ["features/indptr", "labels/indptr"]


@pytest.fixture
def made(tmp_path):
    path = tmp_path / "mine"
    write_numbered(path, {"train": ROWS, "test": 7}, WIDTH, LABELS, shard_rows=SHARD_ROWS)
    return path


def numbered(rows):
    return (
        [numbered_features(row, WIDTH) for row in rows],
        [numbered_labels(row, LABELS) for row in rows],
    )


def same(got, rows):
    features, labels = numbered(rows)
    assert rows_of(got[0]) == features
    assert rows_of(got[1]) == labels


class TestRoundTrip:
    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def test_read_and_take_give_the_rows_that_were_written(self, data):
        features = data.draw(row_lists(WIDTH, True).filter(len))
        rows = len(features)
        more = row_lists(LABELS, False, most_rows=rows)
        labels = (data.draw(more) + [[]] * rows)[:rows]
        with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
            # Small blocks, runs, shards and few open files, so that every boundary is met.
            chunk_bytes = data.draw(st.integers(1, 300))
            patch.setattr("ist_hpc.data.shard_files.CHUNK_BYTES", chunk_bytes)
            patch.setattr("ist_hpc.data.shard_files.SHARD_BYTES", data.draw(st.integers(1, 900)))
            patch.setattr(shards_module, "_MOST_RUN_BYTES", data.draw(st.integers(1, 900)))
            patch.setattr(shards_module, "_MOST_OPEN_FILES", data.draw(st.integers(1, 3)))
            shard_rows = data.draw(st.none() | st.integers(1, 70))
            path = Path(folder) / "d"
            block = data.draw(st.integers(1, 50))
            self.write(path, features, labels, block, shard_rows)
            with Dataset.open(path) as opened:
                for _ in range(4):
                    start = data.draw(st.integers(0, rows))
                    stop = data.draw(st.integers(start, rows))
                    self.same(opened.read("train", start, stop), features, labels, start, stop)
                    wanted = sorted(data.draw(st.lists(st.integers(0, rows - 1), max_size=30)))
                    got = opened.take("train", np.array(wanted, dtype=np.int64))
                    assert rows_of(got[0]) == [features[row] for row in wanted]
                    assert rows_of(got[1]) == [labels[row] for row in wanted]
                counts = [sum((label, 1.0) in row for row in labels) for label in range(LABELS)]
                assert opened.label_counts().tolist() == counts

    @staticmethod
    def write(path, features, labels, block, shard_rows):
        with DatasetWriter(
            path,
            name="d",
            kind="sparse",
            feature_shape=[WIDTH],
            classes=LABELS,
            shard_rows=shard_rows,
        ) as writer:
            whole = csr_of(features, WIDTH, True), csr_of(labels, LABELS, False)
            for start in range(0, len(features), block):
                stop = min(start + block, len(features))
                writer.append("train", whole[0].part(start, stop), whole[1].part(start, stop))

    @staticmethod
    def same(got, features, labels, start, stop):
        assert rows_of(got[0]) == features[start:stop]
        assert rows_of(got[1]) == labels[start:stop]
        for part, with_values, columns in ((got[0], True, WIDTH), (got[1], False, LABELS)):
            assert (part.indptr.dtype, part.indices.dtype) == (np.int64, np.int32)
            assert part.columns == columns
            assert (part.values is not None) == with_values

    def test_shards_and_their_ranges(self, made):
        with Dataset.open(made) as data:
            assert [shard.rows for shard in data.shards["train"]] == [16, 16, 16, 2]
            same(data.read("train", 10, 50), range(10, 50))
            for split, shards in data.shards.items():
                for index in range(len(shards)):
                    data.check_shard(split, index)

    def test_a_shard_ends_with_the_row_that_reaches_its_bytes(self, tmp_path, monkeypatch):
        monkeypatch.setattr("ist_hpc.data.shard_files.SHARD_BYTES", 100)
        row = [(0, 1.0), (3, 2.0)]  # 16 bytes, with one label 5 more, and 16 of the row itself
        features, labels = csr_of([row] * 9, 5, True), csr_of([[(1, 1.0)]] * 9, 2, False)
        options = {"name": "d", "kind": "sparse", "feature_shape": [5], "classes": 2}
        for name, cuts in (("whole", [0, 9]), ("parts", [0, 1, 5, 9])):
            with DatasetWriter(tmp_path / name, made_by={"command": "c"}, **options) as writer:
                for start, stop in pairwise(cuts):
                    writer.append("train", features.part(start, stop), labels.part(start, stop))
        whole, parts = (Dataset.open(tmp_path / name).shards for name in ("whole", "parts"))
        assert [shard.rows for shard in whole["train"]] == [3, 3, 3]
        assert whole == parts  # the SHA-256 too

    def test_rows_without_anything(self, tmp_path):
        with DatasetWriter(
            tmp_path / "d", name="d", kind="sparse", feature_shape=[4], classes=3
        ) as writer:
            writer.append("train", csr_of([[]] * 5, 4, True), csr_of([[]] * 5, 3, False))
            writer.append("train", Csr.empty(4, True), Csr.empty(3, False))
        with Dataset.open(tmp_path / "d") as data:
            data.check_shard("train", 0)
            features, labels = data.read("train", 0, 5)
            assert (len(features), len(labels), features.entries, labels.entries) == (5, 5, 0, 0)
            assert rows_of(data.take("train", np.array([1, 4]))[0]) == [[], []]
            assert data.label_counts().tolist() == [0, 0, 0]

    def test_the_files_are_csr_matrices_to_others(self, made):
        """As scipy puts them together from the objects and attributes that AnnData names."""
        with h5py.File(made / "train-0001.h5") as file:
            assert (file.attrs["split"], file.attrs["kind"]) == ("train", "sparse")
            for name, columns, rows in zip(
                ("features", "labels"), (WIDTH, LABELS), numbered(range(16, 32)), strict=True
            ):
                group = file[name]
                assert group.attrs["encoding-type"] == "csr_matrix"
                assert group.attrs["encoding-version"] == "0.1.0"
                assert group.attrs["description"]
                assert all(group[part].fletcher32 for part in ("data", "indices", "indptr"))
                matrix = scipy.sparse.csr_matrix(
                    (group["data"][:], group["indices"][:], group["indptr"][:]),
                    shape=group.attrs["shape"],
                )
                dense = np.zeros((16, columns))
                for number, row in enumerate(rows):
                    for column, value in row:
                        dense[number, column] = value
                np.testing.assert_array_equal(matrix.toarray(), dense)
                types = [group[part].dtype for part in ("data", "indices", "indptr")]
                first = np.float32 if name == "features" else np.uint8
                assert types == [first, np.int32, np.int64]

    def test_opening_reads_no_hdf5_file(self, made):
        for file in made.glob("*.h5"):
            file.unlink()
        assert Dataset.open(made).rows("train") == ROWS

    @pytest.mark.parametrize(("start", "stop"), [(-1, 3), (4, 3), (0, 51)])
    def test_rows_that_do_not_exist(self, made, start, stop):
        with Dataset.open(made) as data, pytest.raises(IndexError, match="of 50 train rows"):
            data.read("train", start, stop)

    def test_no_counts_without_train_rows(self, tmp_path):
        write_numbered(tmp_path / "d", {"test": 4}, WIDTH, LABELS)
        assert not (tmp_path / "d" / "label-counts.h5").exists()
        assert Dataset.open(tmp_path / "d").label_counts() is None


def flat(file, name, values):
    """Another dataset in the place of `name`."""
    del file[name]
    file.create_dataset(
        name, data=values, maxshape=(None,), chunks=(max(1, len(values)),), fletcher32=True
    )


def unwritten(file, name):
    shape, dtype = file[name].shape, file[name].dtype
    del file[name]
    file.create_dataset(name, shape, dtype, chunks=shape, fletcher32=True)


def put(file, name, at, value):
    file[name][at] = value


class TestDamage:
    def test_flipped_byte_is_found_by_the_sha(self, made):
        flip(made / "train-0001.h5", chunk_offset(made / "train-0001.h5", "features/data"))
        data = Dataset.open(made)
        data.check_shard("train", 0)
        with pytest.raises(InputError, match=r"train-0001\.h5: the SHA-256 .* made by: "):
            data.check_shard("train", 1)

    @pytest.mark.parametrize("name", DATASETS)
    def test_flipped_byte_is_found_on_reading(self, made, name):
        flip(made / "train-0001.h5", chunk_offset(made / "train-0001.h5", name))
        with Dataset.open(made) as data:
            data.check_shard("train", 1, checksum=False)
            same(data.read("train", 0, 16), range(16))
            message = rf"train-0001\.h5: checksum of a block of `{name}` does not match"
            with pytest.raises(InputError, match=message):
                data.read("train", 0, ROWS)
            with pytest.raises(InputError, match=message):
                data.take("train", np.array([1, 20]))

    def test_no_flipped_bit_is_ever_a_wrong_number(self, made):
        file = made / "train-0001.h5"
        whole = file.read_bytes()
        random = np.random.default_rng(0)
        errors = []
        for offset in random.integers(len(whole), size=300):
            flip(file, offset)
            try:
                with Dataset.open(made) as data:
                    same(data.read("train", 16, 32), range(16, 32))
            except InputError as error:
                errors.append(str(error))
            file.write_bytes(whole)
        assert len(errors) > 50
        assert all("train-0001.h5" in error for error in errors)

    def test_missing_and_truncated(self, made):
        file = made / "train-0000.h5"
        os.truncate(file, file.stat().st_size - 100)
        (made / "train-0002.h5").unlink()
        with Dataset.open(made) as data:
            with pytest.raises(InputError, match=r"train-0000\.h5: the file has \d+ bytes"):
                data.check_shard("train", 0)
            with pytest.raises(InputError, match=r"train-0000\.h5: HDF5 cannot read it"):
                data.read("train", 0, 1)
            with pytest.raises(InputError, match=r"train-0002\.h5: no such file"):
                data.read("train", 32, 33)

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
            (lambda f: unwritten(f, "labels/indices"), "`labels/indices` has 0 of 1 blocks"),
        ],
    )
    def test_content_that_is_not_what_meta_says(self, made, change, message):
        assert_refused_when_changed(made, change, message)

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
    def test_wrong_numbers_with_a_right_checksum(self, made, name, at, value, message):
        with h5py.File(made / "train-0000.h5", "r+") as file:
            put(file, name, at, value)
        with Dataset.open(made) as data:
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
    def test_label_counts(self, made, damage, message):
        damage(made / "label-counts.h5")
        with pytest.raises(InputError, match=rf"label-counts\.h5: .*{message}.* made by: "):
            Dataset.open(made).label_counts()


class TestWriter:
    @staticmethod
    def writer(path, **options):
        given = {"name": "d", "kind": "sparse", "feature_shape": [4], "classes": 3}
        return DatasetWriter(path, **(given | options))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"feature_shape": (3, 2)}, "feature_shape of a sparse data set must be one size"),
            ({"feature_shape": (2**31,)}, "must be one size, 1 to 2147483647"),
            ({"feature_dtype": "uint8"}, "feature_dtype must be float32"),
        ],
    )
    def test_wrong_arguments(self, tmp_path, options, message):
        with pytest.raises(InputError, match=message):
            self.writer(tmp_path / "d", **options)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda f, s: (np.zeros((2, 4), "f4"), s), r"features .* must be .*Csr \(got ndarray"),
            (lambda f, s: (f, np.zeros(2, "i8")), r"labels .* must be .*Csr \(got ndarray"),
            (lambda f, s: (changed(f, values=None), s), "features must have values"),
            (lambda f, s: (f, changed(s, values=np.ones(2, "f4"))), "labels must have no values"),
            (
                lambda f, s: (changed(f, values=f.values.astype("f8")), s),
                "values must be a vector of float32 .got shape .3,., float64",
            ),
            (
                lambda f, s: (f, changed(s, indices=s.indices.astype("i8"))),
                "labels: indices must be a vector of int32",
            ),
            (
                lambda f, s: (changed(f, values=f.values[:2]), s),
                "indices and values must be as many .got 3, 2",
            ),
            (
                lambda f, s: (changed(f, indptr=np.array([0, 4, 3])), s),
                "features: indptr must rise from 0 to the number of entries, 3",
            ),
            (
                lambda f, s: (changed(f, indptr=np.array([0, 1, 2])), s),
                "features: indptr must rise from 0",
            ),
            (
                lambda f, s: (changed(f, indptr=np.array([1, 2, 3])), s),
                "features: indptr must rise from 0",
            ),
            (
                lambda f, s: (f, changed(s, indptr=np.zeros(0, "i8"))),
                "labels: indptr must rise from 0",
            ),
            (lambda f, s: (changed(f, columns=5), s), "features must have 4 columns .got 5"),
            (
                lambda f, s: (f, csr_of([[], [(3, 1.0)]], 3, False)),
                "indices of labels must be 0 to 2 .got 3. in row 1 of this block",
            ),
            (
                lambda f, s: (csr_of([[(2, 1.0), (1, 1.0)], []], 4, True), s),
                "indices of features must ascend strictly .got 2, then 1. in row 0",
            ),
            (
                lambda f, s: (f, csr_of([[(1, 1.0), (1, 1.0)], []], 3, False)),
                "indices of labels must ascend strictly .got 1, then 1. in row 0",
            ),
            (lambda f, s: (f.part(0, 1), s), "as many rows .got 1 and 2"),
            (
                lambda f, s: (csr_of([[], [(0, 1.0), (2, np.inf)]], 4, True), s),
                "features must be finite .row 1 of this block is not",
            ),
        ],
    )
    def test_wrong_rows_leave_nothing(self, tmp_path, change, message):
        features = csr_of([[(0, 1.0), (3, 2.0)], [(1, 3.0)]], 4, True)
        labels = csr_of([[(0, 1.0)], [(2, 1.0)]], 3, False)

        def convert():
            with self.writer(tmp_path / "d") as writer:
                writer.append("train", features, labels)
                writer.append("train", *change(features, labels))

        with pytest.raises(InputError, match=message):
            convert()
        assert list(tmp_path.iterdir()) == []

    def test_arrays_may_be_used_again_after_the_call(self, tmp_path):
        """What is kept until a block is full is the writer's own."""
        features, labels = csr_of([[(1, 5.0)]], 4, True), csr_of([[(2, 1.0)]], 3, False)
        with self.writer(tmp_path / "d") as writer:
            writer.append("train", features, labels)
            features.values[:], features.indices[:], labels.indices[:] = 7.0, 3, 0
        got = Dataset.open(tmp_path / "d").read("train", 0, 1)
        assert (rows_of(got[0]), rows_of(got[1])) == ([[(1, 5.0)]], [[(2, 1.0)]])

    def test_an_old_set_is_replaced_whole(self, made):
        write_numbered(made, {"test": 3}, WIDTH, LABELS, overwrite=True)
        assert sorted(file.name for file in made.iterdir()) == ["meta.json", "test-0000.h5"]
        assert [path.name for path in made.parent.iterdir()] == ["mine"]


def changed(rows, **fields):
    return Csr(**({name: getattr(rows, name) for name in vars(rows)} | fields))

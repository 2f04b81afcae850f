"""Rows of shards: what is written is read back, row by row."""

import re
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from ist_hpc.data import shards as shards_module
from ist_hpc.data.csr import Csr
from ist_hpc.data.dense import DenseShard
from ist_hpc.data.shards import Dataset, DatasetWriter
from tests.helpers.both_kinds import LABELS, ROWS, WIDTH, numbered
from tests.helpers.data_sets import CLASSES, write
from tests.helpers.sparse_rows import csr_of, row_lists, rows_of, write_numbered

ROOT = Path(__file__).resolve().parents[2]


class TestBothKinds:
    def test_shards_and_their_ranges(self, made):
        with Dataset.open(made.path) as data:
            assert [shard.rows for shard in data.shards["train"]] == [16, 16, 16, 2]
            assert [data.shard_range("train", i) for i in range(4)] == [
                (0, 16),
                (16, 32),
                (32, 48),
                (48, 50),
            ]
            assert (data.rows("train"), data.rows("test")) == (50, 7)
            made.assert_same(data.read("train", 10, 50), range(10, 50))
            for split, shards in data.shards.items():
                for index in range(len(shards)):
                    data.check_shard(split, index)

    def test_opening_reads_no_hdf5_file(self, made):
        for file in made.path.glob("*.h5"):
            file.unlink()
        assert Dataset.open(made.path).rows("train") == ROWS

    def test_a_closed_data_set_opens_its_files_again(self, made):
        data = Dataset.open(made.path)
        made.assert_same(data.read("train", 0, ROWS), range(ROWS))
        data.close()
        made.assert_same(data.read("train", 0, ROWS), range(ROWS))
        data.close()

    @pytest.mark.parametrize(("start", "stop"), [(-1, 3), (4, 3), (0, 51)])
    def test_rows_that_do_not_exist(self, made, start, stop):
        with Dataset.open(made.path) as data, pytest.raises(IndexError, match="of 50 train rows"):
            data.read("train", start, stop)

    def test_take_wants_existing_rows_in_ascending_order(self, made):
        with Dataset.open(made.path) as data:
            with pytest.raises(ValueError, match="ascending"):
                data.take("train", np.array([2, 1]))
            with pytest.raises(IndexError):
                data.take("train", np.array([49, 50]))


class TestDense:
    @settings(max_examples=40, deadline=None)
    @given(data=st.data())
    def test_read_and_take_give_the_rows_that_were_written(self, data):
        shape = data.draw(st.sampled_from([(1,), (5,), (3, 2), (300,)]))
        dtype = data.draw(st.sampled_from(["float32", "uint8"]))
        train = data.draw(st.integers(1, 60))
        options = {
            "shard_rows": data.draw(st.integers(1, 70)),
            "block": data.draw(st.integers(1, 70)),
        }
        with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
            # Small chunks, runs and few open files, so that every boundary is met.
            chunk_bytes = data.draw(st.integers(1, 4000))
            patch.setattr("ist_hpc.data.shard_files.CHUNK_BYTES", chunk_bytes)
            patch.setattr(shards_module, "_MOST_RUN_BYTES", data.draw(st.integers(1, 9000)))
            patch.setattr(shards_module, "_MOST_OPEN_FILES", data.draw(st.integers(1, 3)))
            path = Path(folder) / "d"
            features, labels = write(path, train, 3, shape, dtype, **options)["train"]
            with Dataset.open(path) as opened:
                for _ in range(4):
                    start = data.draw(st.integers(0, train))
                    stop = data.draw(st.integers(start, train))
                    self.same(
                        opened.read("train", start, stop), features, labels, slice(start, stop)
                    )
                    rows = sorted(data.draw(st.lists(st.integers(0, train - 1), max_size=30)))
                    rows = np.array(rows, dtype=np.int64)
                    self.same(opened.take("train", rows), features, labels, rows)

    @staticmethod
    def same(got, features, labels, rows):
        assert got[0].dtype == features.dtype
        assert got[1].dtype == np.int64
        assert got[0].flags.c_contiguous
        np.testing.assert_array_equal(got[0], features[rows])
        np.testing.assert_array_equal(got[1], labels[rows])

    def test_attributes(self, dense):
        with Dataset.open(dense) as data:
            assert (data.name, data.feature_shape, data.feature_dtype) == ("mine", (6,), "float32")
            assert data.classes == tuple(CLASSES)

    def test_files_explain_themselves(self, dense):
        with h5py.File(dense / "train-0001.h5") as file:
            assert file.attrs["split"] == "train"
            assert list(file["labels"].attrs["classes"]) == CLASSES
            for name in ("features", "labels"):
                assert file[name].attrs["description"]
                assert file[name].fletcher32

    def test_take_reads_each_run_of_chunks_once(self, dense, monkeypatch):
        reads = []
        read = DenseShard.read

        def counted(self, start, stop):
            reads.append((self.file.path.name, start, stop - start))
            return read(self, start, stop)

        monkeypatch.setattr(DenseShard, "read", counted)
        with Dataset.open(dense) as data:
            data.take("train", np.array([0, 3, 9, 15, 16, 20, 49]))
        assert reads == [("train-0000.h5", 0, 16), ("train-0001.h5", 0, 5), ("train-0003.h5", 1, 1)]


class TestSparse:
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

    def test_the_files_are_csr_matrices_to_others(self, sparse):
        """As scipy puts them together from the objects and attributes that AnnData names."""
        with h5py.File(sparse / "train-0001.h5") as file:
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

    def test_no_counts_without_train_rows(self, tmp_path):
        write_numbered(tmp_path / "d", {"test": 4}, WIDTH, LABELS)
        assert not (tmp_path / "d" / "label-counts.h5").exists()
        assert Dataset.open(tmp_path / "d").label_counts() is None


def test_the_examples_of_the_documentation_run(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "data-format.md").read_text()
    pieces = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    printed = re.findall(r"It prints `(.*?)`", page)
    assert len(pieces) == len(printed) == 3
    monkeypatch.chdir(tmp_path)
    for code, line in zip(pieces, printed, strict=True):
        exec(compile(code, "docs/data-format.md", "exec"), {})
        assert capsys.readouterr().out == line + "\n"

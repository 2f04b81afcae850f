"""The data format: what is written is read back, and whatever is wrong is named."""

import logging
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ist_hpc.common import files
from ist_hpc.common.errors import InputError
from ist_hpc.data import shards as shards_module
from ist_hpc.data.dense import DenseShard
from ist_hpc.data.shards import Dataset, DatasetWriter
from ist_hpc.data.writing.target import AlreadyMadeError
from tests.helpers.data_sets import (
    CLASSES,
    assert_refused_when_changed,
    chunk_offset,
    flip,
    make_rows,
    write,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def made(tmp_path):
    path = tmp_path / "mine"
    write(path)
    return path


class TestRoundTrip:
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

    def test_attributes_and_shard_ranges(self, made):
        with Dataset.open(made) as data:
            assert (data.name, data.feature_shape, data.feature_dtype) == ("mine", (6,), "float32")
            assert data.classes == tuple(CLASSES)
            assert [shard.rows for shard in data.shards["train"]] == [16, 16, 16, 2]
            assert [data.shard_range("train", i) for i in range(4)] == [
                (0, 16),
                (16, 32),
                (32, 48),
                (48, 50),
            ]
            assert (data.rows("train"), data.rows("test")) == (50, 7)
            for split, shards in data.shards.items():
                for index in range(len(shards)):
                    data.check_shard(split, index)

    def test_files_explain_themselves(self, made):
        with h5py.File(made / "train-0001.h5") as file:
            assert file.attrs["split"] == "train"
            assert list(file["labels"].attrs["classes"]) == CLASSES
            for name in ("features", "labels"):
                assert file[name].attrs["description"]
                assert file[name].fletcher32

    def test_opening_reads_no_hdf5_file(self, made):
        for file in made.glob("*.h5"):
            file.unlink()
        assert Dataset.open(made).rows("train") == 50

    def test_a_closed_data_set_opens_its_files_again(self, made):
        data = Dataset.open(made)
        before = data.read("train", 0, 50)[0]
        data.close()
        np.testing.assert_array_equal(data.read("train", 0, 50)[0], before)
        data.close()

    def test_take_reads_each_run_of_chunks_once(self, made, monkeypatch):
        reads = []
        read = DenseShard.read

        def counted(self, start, stop):
            reads.append((self.file.path.name, start, stop - start))
            return read(self, start, stop)

        monkeypatch.setattr(DenseShard, "read", counted)
        with Dataset.open(made) as data:
            data.take("train", np.array([0, 3, 9, 15, 16, 20, 49]))
        assert reads == [("train-0000.h5", 0, 16), ("train-0001.h5", 0, 5), ("train-0003.h5", 1, 1)]

    @pytest.mark.parametrize(("start", "stop"), [(-1, 3), (4, 3), (0, 51)])
    def test_rows_that_do_not_exist(self, made, start, stop):
        with Dataset.open(made) as data, pytest.raises(IndexError, match="of 50 train rows"):
            data.read("train", start, stop)

    def test_take_wants_existing_rows_in_ascending_order(self, made):
        with Dataset.open(made) as data:
            with pytest.raises(ValueError, match="ascending"):
                data.take("train", np.array([2, 1]))
            with pytest.raises(IndexError):
                data.take("train", np.array([49, 50]))


class TestDamage:
    def test_flipped_byte_is_found_by_the_sha(self, made):
        flip(made / "train-0001.h5", chunk_offset(made / "train-0001.h5", "features"))
        data = Dataset.open(made)
        data.check_shard("train", 0)
        with pytest.raises(InputError, match=r"train-0001\.h5: the SHA-256 .* made by: "):
            data.check_shard("train", 1)

    @pytest.mark.parametrize("dataset", ["features", "labels"])
    def test_flipped_byte_is_found_on_reading(self, made, dataset):
        flip(made / "train-0001.h5", chunk_offset(made / "train-0001.h5", dataset))
        with Dataset.open(made) as data:
            data.check_shard("train", 1, checksum=False)
            data.read("train", 0, 16)
            message = rf"train-0001\.h5: checksum of a block of `{dataset}` does not match"
            with pytest.raises(InputError, match=message):
                data.read("train", 0, 50)
            with pytest.raises(InputError, match=message):
                data.take("train", np.array([1, 20]))

    def test_no_flipped_bit_is_ever_a_wrong_number(self, made):
        file = made / "train-0001.h5"
        whole = file.read_bytes()
        random = np.random.default_rng(0)
        with Dataset.open(made) as data:
            right = data.read("train", 16, 32)
        errors = []
        for offset in random.integers(len(whole), size=300):
            flip(file, offset)
            try:
                with Dataset.open(made) as data:
                    for got, wanted in zip(data.read("train", 16, 32), right, strict=True):
                        np.testing.assert_array_equal(got, wanted)
            except InputError as error:
                errors.append(str(error))
            file.write_bytes(whole)
        assert len(errors) > 50
        assert all("train-0001.h5" in error for error in errors)

    def test_truncated_file(self, made):
        file = made / "test-0000.h5"
        os.truncate(file, file.stat().st_size - 100)
        with Dataset.open(made) as data:
            with pytest.raises(InputError, match=r"test-0000\.h5: the file has \d+ bytes"):
                data.check_shard("test", 0)
            with pytest.raises(InputError, match=r"test-0000\.h5: HDF5 cannot read it.*truncated"):
                data.read("test", 0, 1)

    def test_file_without_bytes(self, made):
        os.truncate(made / "test-0000.h5", 0)
        with pytest.raises(InputError, match="the file is empty, "):
            Dataset.open(made).check_shard("test", 0)

    def test_missing_shard(self, made):
        (made / "train-0002.h5").unlink()
        data = Dataset.open(made)
        for attempt in (
            lambda: data.check_shard("train", 2),
            lambda: data.read("train", 0, 50),
        ):
            with pytest.raises(InputError, match=r"train-0002\.h5: no such file"):
                attempt()
        data.close()

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
    def test_content_that_is_not_what_meta_says(self, made, change, message):
        assert_refused_when_changed(made, change, message)

    def test_label_out_of_range(self, made):
        with h5py.File(made / "train-0001.h5", "r+") as file:
            file["labels"][5] = 3
        message = r"train-0001\.h5: `labels` must be 0 to 2.*got 3 in row 5"
        with Dataset.open(made) as data, pytest.raises(InputError, match=message):
            data.read("train", 20, 23)


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


class TestWriter:
    @staticmethod
    def writer(path, **options):
        return DatasetWriter(path, name="d", feature_shape=(6,), classes=CLASSES, **options)

    def test_parts_of_a_shard_and_the_same_bytes_again(self, tmp_path):
        write(tmp_path / "a", block=1)
        write(tmp_path / "b", block=50)
        a, b = (Dataset.open(tmp_path / name).shards for name in "ab")
        assert a == b

    def test_end_shard(self, tmp_path):
        features, labels = make_rows(10)
        with self.writer(tmp_path / "d") as writer:
            writer.append("train", features[:3], labels[:3])
            writer.end_shard("train")
            writer.end_shard("train")  # nothing to end
            writer.append("train", features[3:], labels[3:])
        assert [s.rows for s in Dataset.open(tmp_path / "d").shards["train"]] == [3, 7]

    def test_made_by(self, tmp_path):
        made_by = {"command": "python convert.py", "parameters": {"seed": 1}}
        with self.writer(tmp_path / "d", made_by=made_by) as writer:
            writer.append("test", *make_rows(2))
            writer.made_by["skipped"] = 3
        made_by = Dataset.open(tmp_path / "d").made_by
        assert made_by["skipped"] == 3
        assert made_by["command"] == "python convert.py"
        assert made_by["package_version"]

    @pytest.mark.parametrize(
        ("split", "features", "labels", "message"),
        [
            ("dev", np.zeros((2, 6), "f4"), [0, 1], "split must be train or test .got 'dev'"),
            ("train", np.zeros((2, 6)), [0, 1], r"must be float32 .got float64.*astype"),
            ("train", np.zeros((2, 5), "f4"), [0, 1], r"shape \(2, 6\) .got \(2, 5\)"),
            ("train", np.zeros((3, 6), "f4"), [0, 1], r"shape \(2, 6\) .got \(3, 6\)"),
            ("train", np.zeros((2, 6), "f4"), [0.0, 1.0], "vector of integers"),
            ("train", np.zeros((2, 6), "f4"), [[0], [1]], "vector of integers"),
            ("train", np.zeros((2, 6), "f4"), [0, 3], "labels must be 0 to 2 .got 3 in row 1"),
            ("train", np.zeros((2, 6), "f4"), [-1, 0], "labels must be 0 to 2 .got -1 in row 0"),
            ("train", np.array([[0] * 6, [np.nan] * 6], "f4"), [0, 1], "finite .row 1 "),
            ("train", np.full((1, 6), np.inf, "f4"), [0], "finite"),
        ],
    )
    def test_wrong_rows_leave_nothing(self, tmp_path, split, features, labels, message):
        def convert():
            with self.writer(tmp_path / "d") as writer:
                writer.append("train", *make_rows(5))
                writer.append(split, features, np.array(labels))

        with pytest.raises(InputError, match=message):
            convert()
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_a_failure_leaves_nothing(self, tmp_path, error):
        def convert():
            with self.writer(tmp_path / "d", shard_rows=2) as writer:
                writer.append("train", *make_rows(5))
                lock, partial = sorted(p.name for p in tmp_path.iterdir())
                assert lock == ".d.lock"
                assert re.fullmatch(rf"\.d\.partial-[^/]*-{os.getpid()}-[0-9a-f]{{16}}", partial)
                raise error

        with pytest.raises(error):
            convert()
        assert list(tmp_path.iterdir()) == []

    def test_a_failure_while_publishing_leaves_nothing(self, tmp_path, monkeypatch):
        def full(source, target):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("ist_hpc.common.files.os.replace", full)
        with pytest.raises(InputError, match="No space left"):
            write(tmp_path / "d")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("limit", [0, 3000, 30_000])
    def test_a_disk_that_fills_up_leaves_nothing(self, tmp_path, limit):
        """A limit of a file's size stands for it: HDF5 crashes on both when they meet it alone."""
        program = (
            "import resource, sys, sklearn.datasets; "  # which makes small files of its own
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
            "from ist_hpc.prepare.__main__ import main; sys.exit(main(sys.argv[1:]))"
        )
        words = [sys.executable, "-c", program, "digits", "--output", str(tmp_path / "d")]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2
        assert done.stderr.count("File too large") == 1
        assert done.stderr.count("\n") == 1
        assert list(tmp_path.iterdir()) == []

    def test_no_rows_leave_nothing(self, tmp_path):
        with pytest.raises(InputError, match="no rows were appended"):
            write(tmp_path / "d", train=0, test=0)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"feature_dtype": "float64"}, "feature_dtype must be float32 or uint8"),
            ({"feature_shape": ()}, "feature_shape must be"),
            ({"feature_shape": (3, 0)}, "feature_shape must be"),
            ({"classes": []}, "classes must be one or more"),
            ({"classes": ["a", "a"]}, "classes must be one or more different"),
            ({"classes": [1, 2]}, "classes must be strings"),
            ({"classes": 0}, "classes must be one or more"),
            ({"classes": 2**31}, "classes must be at most 2147483647"),
            ({"kind": "ragged"}, "kind must be dense or sparse .got ragged"),
            ({"shard_rows": 0}, "shard_rows must be >= 1"),
        ],
    )
    def test_wrong_arguments(self, tmp_path, options, message):
        with pytest.raises(InputError, match=message):
            DatasetWriter(
                tmp_path / "d",
                **{"name": "d", "feature_shape": (6,), "classes": CLASSES, **options},
            )

    def test_existing_output(self, made):
        before = (made / "meta.json").read_bytes()
        with pytest.raises(InputError, match="mine exists"):
            write(made, train=3)
        assert (made / "meta.json").read_bytes() == before
        write(made, train=3, overwrite=True)
        assert Dataset.open(made).rows("train") == 3
        assert [p.name for p in made.parent.iterdir()] == ["mine"]

    def test_a_failed_overwrite_keeps_the_old(self, made):
        with pytest.raises(InputError, match="labels must be"):
            write(made, classes=["one"], overwrite=True)
        Dataset.open(made).check_shard("train", 3)
        assert [p.name for p in made.parent.iterdir()] == ["mine"]

    def test_only_a_data_set_is_overwritten(self, tmp_path, made):
        (tmp_path / "half").mkdir()
        (tmp_path / "half" / "train-0000.h5").touch()
        (made / "thesis.tex").touch()
        (tmp_path / "file").touch()
        for name, message in (
            ("half", r"is not a data set \(it has no meta\.json\)"),
            ("mine", r"is not a data set \(it holds thesis\.tex\)"),
            ("file", "is not a folder"),
        ):
            for overwrite in (True, False):  # which does not say that the other would do
                with pytest.raises(InputError, match=message) as refused:
                    write(tmp_path / name, overwrite=overwrite)
                assert "--overwrite" not in str(refused.value)

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_an_empty_folder_is_no_data_set_that_is_in_the_way(self, tmp_path, overwrite):
        (tmp_path / "d").mkdir()
        write(tmp_path / "d", train=3, overwrite=overwrite)
        assert Dataset.open(tmp_path / "d").rows("train") == 3
        assert [p.name for p in tmp_path.iterdir()] == ["d"]

    def test_a_folder_whose_place_none_can_take(self, tmp_path, monkeypatch):
        (tmp_path / "d").mkdir()
        monkeypatch.chdir(tmp_path / "d")
        with pytest.raises(InputError, match="exists; give another folder: this was started in it"):
            write(Path())
        with pytest.raises(InputError, match="/ exists; give another folder: it is not a data set"):
            write(Path("/"), overwrite=True)
        assert list(tmp_path.iterdir()) == [tmp_path / "d"]

    def test_what_a_killed_one_left_is_named(self, tmp_path, caplog):
        (tmp_path / ".d.partial-1").mkdir()
        with caplog.at_level(logging.WARNING, "ist_hpc"):
            write(tmp_path / "d")
        (record,) = caplog.records
        assert f"{tmp_path}/.d.partial-1 was left by a preparation" in record.getMessage()

    def test_what_a_killed_one_of_this_machine_left_is_removed(self, tmp_path, caplog):
        """And nothing that may be of one that runs, or of another machine."""
        left = {
            kind: hidden_name_of_the_dead(tmp_path / "d", kind)
            for kind in ("partial", "shuffle", "old")
        }
        for folder in left.values():
            folder.mkdir()
            (folder / "train-0000.h5").touch()
        of_living = files.hidden_beside(tmp_path / "d")
        of_living.mkdir()
        elsewhere = Path(f"{str(left['partial'])[:-16]}{'0' * 16}")
        elsewhere.mkdir()
        of_another_set = hidden_name_of_the_dead(tmp_path / "d2", "partial")
        of_another_set.mkdir()
        write(tmp_path / "d", overwrite=True)
        assert sorted(tmp_path.iterdir()) == sorted(
            [of_another_set, of_living, elsewhere, tmp_path / "d"]
        )
        assert caplog.text.count("removing") == 3
        assert caplog.text.count("remove it if none does") == 2

    def test_a_data_set_whose_replacement_was_interrupted_is_there_again(self, made, caplog):
        old = hidden_name_of_the_dead(made, "old")
        made.rename(old)
        with pytest.raises(AlreadyMadeError, match="mine is there"):
            write(made, if_missing=True)
        Dataset.open(made).check_shard("train", 3)
        assert [p.name for p in made.parent.iterdir()] == ["mine"]
        assert "is there again: its replacement was interrupted" in caplog.text


def hidden_name_of_the_dead(path, kind):
    """The name that a process had beside `path`, which is no more."""
    program = (
        "import sys, pathlib, ist_hpc.common.files as files; "
        "print(files.hidden_beside(pathlib.Path(sys.argv[1]), sys.argv[2]))"
    )
    words = [sys.executable, "-c", program, str(path), kind]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    return Path(done.stdout.strip())


def test_the_examples_of_the_documentation_run(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "data-format.md").read_text()
    pieces = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    printed = re.findall(r"It prints `(.*?)`", page)
    assert len(pieces) == len(printed) == 3
    monkeypatch.chdir(tmp_path)
    for code, line in zip(pieces, printed, strict=True):
        exec(compile(code, "docs/data-format.md", "exec"), {})
        assert capsys.readouterr().out == line + "\n"

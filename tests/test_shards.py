"""The data format: what is written is read back, and whatever is wrong is named."""

import json
import os
import re
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ist_hpc import shards as shards_module
from ist_hpc.errors import InputError
from ist_hpc.shards import Dataset, DatasetWriter

ROOT = Path(__file__).resolve().parent.parent
CLASSES = ["no", "maybe", "yes"]


def make_rows(rows, shape=(6,), dtype="float32", seed=0):
    random = np.random.default_rng(seed)
    if dtype == "uint8":
        features = random.integers(0, 256, size=(rows, *shape), dtype=np.uint8)
    else:
        features = random.standard_normal((rows, *shape), dtype=np.float32)
    return features, random.integers(0, len(CLASSES), size=rows)


def write(path, train=50, test=7, shape=(6,), dtype="float32", block=13, **options):
    """A data set of random rows, appended in blocks; returns the rows of each split."""
    options = {"shard_rows": 16, "name": "mine", "classes": CLASSES} | options
    rows = {"train": make_rows(train, shape, dtype, 0), "test": make_rows(test, shape, dtype, 1)}
    with DatasetWriter(path, feature_shape=shape, feature_dtype=dtype, **options) as writer:
        for split, (features, labels) in rows.items():
            for start in range(0, len(labels), block):
                stop = start + block
                writer.append(split, features[start:stop], labels[start:stop])
    return rows


def edit_meta(path, edit):
    meta = json.loads((path / "meta.json").read_text())
    edit(meta)
    (path / "meta.json").write_text(json.dumps(meta))


def flip(file, offset):
    data = bytearray(file.read_bytes())
    data[offset] ^= 0x10
    file.write_bytes(data)


def chunk_offset(file, dataset):
    with h5py.File(file) as opened:
        return opened[dataset].id.get_chunk_info(0).byte_offset + 5


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
            patch.setattr("ist_hpc.shard_writer.CHUNK_BYTES", chunk_bytes)
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
        fill = Dataset._fill

        def counted(self, split, index, start, features, labels):
            reads.append((index, start, len(labels)))
            fill(self, split, index, start, features, labels)

        monkeypatch.setattr(Dataset, "_fill", counted)
        with Dataset.open(made) as data:
            data.take("train", np.array([0, 3, 9, 15, 16, 20, 49]))
        assert reads == [(0, 0, 16), (1, 0, 5), (3, 1, 1)]

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
        ],
    )
    def test_content_that_is_not_what_meta_says(self, made, change, message):
        file = made / "train-0000.h5"
        with h5py.File(file, "r+") as opened:
            change(opened)
        edit_meta(made, lambda meta: meta["shards"]["train"][0].update(bytes=file.stat().st_size))
        with Dataset.open(made) as data:
            with pytest.raises(InputError, match=rf"train-0000\.h5: .*{message}"):
                data.check_shard("train", 0, checksum=False)
            with pytest.raises(InputError, match=rf"train-0000\.h5: .*{message}"):
                data.read("train", 0, 1)

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


def to_group(file):
    del file["labels"]
    file.create_group("labels")


class TestMeta:
    @pytest.mark.parametrize(
        ("edit", "message"),
        [
            (lambda m: m.pop("classes"), "key `classes` is missing"),
            (lambda m: m.update(clases=m.pop("classes")), "`clases` a misspelling"),
            (lambda m: m.update(colour="red"), "unknown key `colour`; allowed: format, "),
            (lambda m: m.update(format="csv"), r'`format` must be "ist_hpc-data" \(got "csv"\)'),
            (lambda m: m.update(format_version=2), r"`format_version` must be 1, .*got 2"),
            (lambda m: m.update(format_version=True), "`format_version` must be an integer"),
            (lambda m: m.update(kind="sparse"), r"`kind` must be dense \(got \"sparse\"\)"),
            (lambda m: m.update(feature_shape=[]), "`feature_shape` must be a list"),
            (lambda m: m.update(feature_shape=[6.0]), r"`feature_shape` .*got \[6.0\]"),
            (lambda m: m.update(feature_shape="6"), "`feature_shape` must be a list"),
            (lambda m: m.update(feature_dtype="float64"), "`feature_dtype` must be float32 or"),
            (lambda m: m.update(classes=["a", "a"]), "`classes` must be .* different"),
            (lambda m: m.update(classes=[]), "`classes` must be"),
            (lambda m: m.update(classes=[[]]), "`classes` must be"),
            (lambda m: m["rows"].update(train=51), "`rows` must be the sum"),
            (lambda m: m["made_by"].pop("command"), "key `made_by.command` is missing"),
            (lambda m: m.update(shards={}), "`shards` must be an object with keys train and/or"),
            (lambda m: m["shards"].update(dev=[]), "`shards` must be .*dev"),
            (lambda m: m["shards"].update(test=[]), r"`shards\.test` must be a list of one"),
            (lambda m: m["shards"].update(test=[3]), r"`shards\.test\[0\]` must be an object"),
            (lambda m: shard(m).pop("rows"), r"key `shards\.train\[0\]\.rows` is missing"),
            (lambda m: shard(m).update(rows=0), r"`shards\.train\[0\]\.rows` must be >= 1; an emp"),
            (lambda m: shard(m).update(rows="16"), r"`shards\.train\[0\]\.rows` must be an int"),
            (lambda m: shard(m).update(bytes=0), r"`shards\.train\[0\]\.bytes` must be >= 1"),
            (lambda m: shard(m).update(sha256="ab"), r"sha256` must be 64 hex"),
            (lambda m: shard(m).update(file="../x.h5"), "file` must be a file name"),
            (lambda m: shard(m).update(file="train-0001.h5"), "lists train-0001.h5 2 times"),
        ],
    )
    def test_every_wrong_key_is_named(self, made, edit, message):
        edit_meta(made, edit)
        with pytest.raises(InputError, match=message) as caught:
            Dataset.open(made)
        assert str(made / "meta.json") in str(caught.value)

    @pytest.mark.parametrize("text", ["", "{", "[1]", "null", "\xff", "[" * 100_000])
    def test_damaged_file(self, made, text):
        (made / "meta.json").write_bytes(text.encode("latin1"))
        with pytest.raises(InputError, match=re.escape(str(made / "meta.json"))):
            Dataset.open(made)

    def test_no_data(self, tmp_path, made):
        with pytest.raises(InputError, match=r"no data at .*prepare digits --output .*digits$"):
            Dataset.open(tmp_path / "digits")
        with pytest.raises(InputError, match=r"no such folder.*data sets beside it: .*mine"):
            Dataset.open(tmp_path / "mien")
        (tmp_path / "empty").mkdir()
        with pytest.raises(InputError, match=r"has no meta\.json"):
            Dataset.open(tmp_path / "empty")
        with pytest.raises(InputError, match="is not a folder"):
            Dataset.open(made / "meta.json")

    def test_split_that_is_not_there(self, tmp_path):
        write(tmp_path / "d", test=0)
        data = Dataset.open(tmp_path / "d")
        for attempt in (
            lambda: data.rows("test"),
            lambda: data.read("test", 0, 0),
            lambda: data.check_shard("test", 0),
        ):
            with pytest.raises(InputError, match=r"has no test rows \(it has: train\)"):
                attempt()


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
                assert [p.name for p in tmp_path.iterdir()] == [f".d.partial-{os.getpid()}"]
                raise error

        with pytest.raises(error):
            convert()
        assert list(tmp_path.iterdir()) == []

    def test_a_failure_while_publishing_leaves_nothing(self, tmp_path, monkeypatch):
        def full(source, target):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("ist_hpc.shard_writer.os.rename", full)
        with pytest.raises(InputError, match="No space left"):
            write(tmp_path / "d")
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
        (tmp_path / "empty").mkdir()
        (made / "thesis.tex").touch()
        (tmp_path / "file").touch()
        for name, message in (
            ("empty", r"is not a data set \(it has no meta\.json\)"),
            ("mine", r"is not a data set \(it holds thesis\.tex\)"),
            ("file", "is not a folder"),
        ):
            with pytest.raises(InputError, match=message):
                write(tmp_path / name, overwrite=True)

    def test_a_partial_folder_in_the_way(self, tmp_path):
        (tmp_path / f".d.partial-{os.getpid()}").mkdir()
        with pytest.raises(InputError, match=r"\.d\.partial-\d+ is in the way"):
            write(tmp_path / "d")


def shard(meta):
    return meta["shards"]["train"][0]


def test_the_example_of_the_documentation_runs(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "data-format.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (printed,) = re.findall(r"It prints `(.*?)`", page)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/data-format.md", "exec"), {})
    assert capsys.readouterr().out == printed + "\n"

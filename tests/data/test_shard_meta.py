"""What `meta.json` says: read back as it was written, and every mistake in it is named."""

import json
import re

import pytest

from ist_hpc.common.errors import InputError
from ist_hpc.data.shards import Dataset
from tests.helpers.data_sets import edit_meta, write
from tests.helpers.sparse_rows import write_numbered


@pytest.fixture
def made(tmp_path):
    path = tmp_path / "mine"
    write(path)
    return path


@pytest.fixture
def sparse(tmp_path):
    path = tmp_path / "sparse"
    write_numbered(path, {"train": 10, "test": 2}, width=8, labels=6)
    return path


def shard(meta):
    return meta["shards"]["train"][0]


class TestDense:
    @pytest.mark.parametrize(
        ("edit", "message"),
        [
            (lambda m: m.pop("classes"), "key `classes` is missing"),
            (lambda m: m.update(clases=m.pop("classes")), "`clases` a misspelling"),
            (lambda m: m.update(colour="red"), "unknown key `colour`; allowed: format, "),
            (lambda m: m.update(format="csv"), r'`format` must be "ist_hpc-data" \(got "csv"\)'),
            (lambda m: m.update(format_version=2), r"`format_version` must be 1, .*got 2"),
            (lambda m: m.update(format_version=True), "`format_version` must be an integer"),
            (lambda m: m.update(kind="ragged"), r"`kind` must be dense or sparse \(got \"ragged"),
            (lambda m: m.update(feature_shape=[]), "`feature_shape` must be a list"),
            (lambda m: m.update(feature_shape=[6.0]), r"`feature_shape` .*got \[6.0\]"),
            (lambda m: m.update(feature_shape="6"), "`feature_shape` must be a list"),
            (lambda m: m.update(feature_dtype="float64"), "`feature_dtype` must be float32 or"),
            (lambda m: m.update(classes=["a", "a"]), "`classes` must be .* different"),
            (lambda m: m.update(classes=[]), "`classes` must be"),
            (lambda m: m.update(classes=0), "`classes` must be .* or how many there are, 1 to"),
            (lambda m: m.update(classes=True), "`classes` must be .*got true"),
            (lambda m: m.update(classes=2**31), "`classes` must be .* 1 to 2147483647 .got"),
            (lambda m: m.update(classes={}), "`classes` must be"),
            (lambda m: m.update(label_counts={}), "`label_counts` is for sparse data sets with"),
            (lambda m: m.update(label_counts=[]), "`label_counts` must be an object"),
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


class TestSparse:
    def test_content(self, sparse):
        meta = json.loads((sparse / "meta.json").read_text())
        assert (meta["kind"], meta["classes"], meta["feature_shape"]) == ("sparse", 6, [8])
        assert meta["label_counts"]["file"] == "label-counts.h5"
        with Dataset.open(sparse) as data:
            assert (data.kind, data.sparse, data.features, data.outputs) == ("sparse", True, 8, 6)
            assert data.classes == ()

    def test_names_of_labels_are_kept(self, tmp_path):
        write_numbered(tmp_path / "d", {"train": 3}, 8, 3, classes=["a", "b", "c"])
        with Dataset.open(tmp_path / "d") as data:
            assert (data.classes, data.outputs) == (("a", "b", "c"), 3)

    def test_a_dense_set_has_none_of_it(self, made):
        assert "label_counts" not in json.loads((made / "meta.json").read_text())
        with Dataset.open(made) as data:
            assert (data.kind, data.sparse, data.outputs) == ("dense", False, 3)
            assert data.label_counts() is None

    @pytest.mark.parametrize(
        ("edit", "message"),
        [
            (lambda m: m.update(feature_shape=[4, 2]), "`feature_shape` must be .*one integer"),
            (lambda m: m.update(feature_shape=[2**31]), "1 to 2147483647, in a sparse data set"),
            (lambda m: m.update(feature_dtype="uint8"), r"must be float32 \(got \"uint8"),
            (lambda m: m.update(label_counts=3), "`label_counts` must be an object"),
            (lambda m: m["label_counts"].pop("file"), "key `label_counts.file` is missing"),
            (lambda m: m["label_counts"].update(rows=1), "unknown key `label_counts.rows`"),
            (lambda m: m["label_counts"].update(bytes=0), "`label_counts.bytes` must be >= 1"),
            (lambda m: m["label_counts"].update(file="/etc/x.h5"), "must be a file name"),
            (lambda m: m["label_counts"].update(sha256="0"), "64 hexadecimal digits"),
            (
                lambda m: m["label_counts"].update(file="train-0000.h5"),
                "which `shards` lists too",
            ),
            (
                lambda m: (m["shards"].pop("train"), m["rows"].pop("train")),
                "`label_counts` is for sparse data sets with train rows",
            ),
        ],
    )
    def test_every_wrong_key_is_named(self, sparse, edit, message):
        edit_meta(sparse, edit)
        with pytest.raises(InputError, match=message) as caught:
            Dataset.open(sparse)
        assert str(sparse / "meta.json") in str(caught.value)

    def test_many_unnamed_labels_are_a_number(self, tmp_path):
        """670,091 of them leave meta.json small and opening instant."""
        path = tmp_path / "many"
        write_numbered(path, {"test": 3}, width=8, labels=670_091)
        assert (path / "meta.json").stat().st_size < 2000
        with Dataset.open(path) as data:
            assert (data.outputs, data.classes) == (670_091, ())

"""The writer of data sets: what it takes and what it refuses, and that a failure leaves nothing."""

import os
import re
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from ist_hpc.common.errors import InputError
from ist_hpc.data.csr import Csr
from ist_hpc.data.shards import Dataset, DatasetWriter
from tests.helpers.data_sets import CLASSES, make_rows, write
from tests.helpers.sparse_rows import csr_of, rows_of

OPTIONS = {
    "dense": {"feature_shape": (6,), "classes": CLASSES},
    "sparse": {"kind": "sparse", "feature_shape": [4], "classes": 3},
}


def writer_of(path, of="dense", **options):
    return DatasetWriter(path, **{"name": "d", **OPTIONS[of], **options})


def assert_leaves_nothing(folder, kind, rows, split, wrong, message):
    """After good rows, wrong ones are refused, and the folder is as empty as before."""

    def convert():
        with writer_of(folder / "d", kind) as writer:
            writer.append("train", *rows)
            writer.append(split, *wrong)

    with pytest.raises(InputError, match=message):
        convert()
    assert list(folder.iterdir()) == []


class TestArguments:
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
    def test_dense(self, tmp_path, options, message):
        with pytest.raises(InputError, match=message):
            writer_of(tmp_path / "d", **options)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"feature_shape": (3, 2)}, "feature_shape of a sparse data set must be one size"),
            ({"feature_shape": (2**31,)}, "must be one size, 1 to 2147483647"),
            ({"feature_dtype": "uint8"}, "feature_dtype must be float32"),
        ],
    )
    def test_sparse(self, tmp_path, options, message):
        with pytest.raises(InputError, match=message):
            writer_of(tmp_path / "d", "sparse", **options)

    def test_made_by(self, tmp_path):
        made_by = {"command": "python convert.py", "parameters": {"seed": 1}}
        with writer_of(tmp_path / "d", made_by=made_by) as writer:
            writer.append("test", *make_rows(2))
            writer.made_by["skipped"] = 3
        made_by = Dataset.open(tmp_path / "d").made_by
        assert made_by["skipped"] == 3
        assert made_by["command"] == "python convert.py"
        assert made_by["package_version"]


class TestWrongRows:
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
    def test_dense(self, tmp_path, split, features, labels, message):
        wrong = features, np.array(labels)
        assert_leaves_nothing(tmp_path, "dense", make_rows(5), split, wrong, message)

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
    def test_sparse(self, tmp_path, change, message):
        features = csr_of([[(0, 1.0), (3, 2.0)], [(1, 3.0)]], 4, True)
        labels = csr_of([[(0, 1.0)], [(2, 1.0)]], 3, False)
        wrong = change(features, labels)
        assert_leaves_nothing(tmp_path, "sparse", (features, labels), "train", wrong, message)


def changed(rows, **fields):
    return Csr(**({name: getattr(rows, name) for name in vars(rows)} | fields))


class TestShards:
    def test_parts_of_a_shard_and_the_same_bytes_again(self, tmp_path):
        write(tmp_path / "a", block=1)
        write(tmp_path / "b", block=50)
        a, b = (Dataset.open(tmp_path / name).shards for name in "ab")
        assert a == b

    def test_end_shard(self, tmp_path):
        features, labels = make_rows(10)
        with writer_of(tmp_path / "d") as writer:
            writer.append("train", features[:3], labels[:3])
            writer.end_shard("train")
            writer.end_shard("train")  # nothing to end
            writer.append("train", features[3:], labels[3:])
        assert [s.rows for s in Dataset.open(tmp_path / "d").shards["train"]] == [3, 7]

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

    def test_arrays_may_be_used_again_after_the_call(self, tmp_path):
        """What is kept until a block is full is the writer's own."""
        features, labels = csr_of([[(1, 5.0)]], 4, True), csr_of([[(2, 1.0)]], 3, False)
        with writer_of(tmp_path / "d", "sparse") as writer:
            writer.append("train", features, labels)
            features.values[:], features.indices[:], labels.indices[:] = 7.0, 3, 0
        got = Dataset.open(tmp_path / "d").read("train", 0, 1)
        assert (rows_of(got[0]), rows_of(got[1])) == ([[(1, 5.0)]], [[(2, 1.0)]])


class TestFailures:
    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_a_failure_leaves_nothing(self, tmp_path, error):
        def convert():
            with writer_of(tmp_path / "d", shard_rows=2) as writer:
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

        monkeypatch.setattr("ist_hpc.common.disk.files.os.replace", full)
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

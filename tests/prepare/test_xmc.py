"""`prepare xmc`: from text files to a data set, and the order of its rows."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ist_hpc.common.random_streams import words
from ist_hpc.data.csr import Csr, concatenate
from ist_hpc.data.shards import Dataset
from ist_hpc.prepare.__main__ import main
from ist_hpc.prepare.xmc import conversion, shuffle
from ist_hpc.prepare.xmc.shuffle import Shuffler
from tests.helpers.launching import run_python
from tests.helpers.xmc_text import (
    FEATURES,
    LABELS,
    TEST,
    TRAIN,
    expected,
    lines_of,
    rows_in,
    text_files,
    write,
)

ROOT = Path(__file__).resolve().parents[2]
DELICIOUS = ROOT.parent / "shared" / "data" / "xmc" / "Delicious"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return text_files(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def made(files, tmp_path_factory):
    output = tmp_path_factory.mktemp("made") / "small"
    assert main(["xmc", *files, "--output", str(output)]) == 0
    return output


class TestConversion:
    def test_every_train_row_once_in_the_order_of_the_keys(self, made):
        wanted = expected(lines_of(TRAIN, 1))
        keys = words("prepare xmc rows", 0, 0, TRAIN)
        assert rows_in(made, "train") == [wanted[row] for row in np.argsort(keys).tolist()]

    def test_test_rows_keep_their_order(self, made):
        assert rows_in(made, "test") == expected(lines_of(TEST, 2, first=TRAIN))

    def test_meta(self, made):
        data = Dataset.open(made)
        assert (data.kind, data.features, data.outputs, data.classes) == (
            "sparse",
            FEATURES,
            LABELS,
            (),
        )
        assert len(data.shards["train"]) == 8
        for split, shards in data.shards.items():
            for index in range(len(shards)):
                data.check_shard(split, index)
        train = expected(lines_of(TRAIN, 1))
        counts = np.bincount(
            [label for labels, _, _ in train for label in labels], minlength=LABELS
        )
        label_counts = data.label_counts()
        assert label_counts is not None
        np.testing.assert_array_equal(label_counts, counts)
        statistics = data.made_by["statistics"]["train"]
        assert statistics["rows"] == TRAIN
        assert statistics["rows_without_labels"] == sum(not labels for labels, _, _ in train)
        assert statistics["labels_never_seen"] == 1  # the last label is never drawn
        assert statistics["rows_a_label"]["max"] == counts.max()
        assert statistics["rows_a_label"]["median"] == np.median(counts)
        assert statistics["mean_labels_a_row"] == round(counts.sum() / TRAIN, 4)
        top = counts.max() / counts.sum()
        assert statistics["head_share"] == {"1%": round(top, 4), "10%": round(top, 4)}
        assert data.made_by["malformed_lines"] == {"left_out": 0, "first": []}
        assert f"--output {made}" in data.made_by["command"]

    def test_crlf_and_blocks_change_nothing(self, files, made, tmp_path, monkeypatch):
        monkeypatch.setattr(shuffle, "BUCKET_BYTES", 1000)
        monkeypatch.setattr("ist_hpc.prepare.xmc.source.BLOCK_BYTES", 300)
        train = write(tmp_path / "train.txt", lines_of(TRAIN, 1), end="\r\n")
        command = ["xmc", "--train", str(train), *files[2:], "--output", str(tmp_path / "x")]
        assert main(command) == 0
        assert Dataset.open(tmp_path / "x").shards["train"] != []
        for split in ("train", "test"):
            assert rows_in(tmp_path / "x", split) == rows_in(made, split)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["train.txt", "x"]

    # In a process of its own, where nothing else allocates; twice, so that what is imported on the
    # way is not counted.
    TRACED = """
import sys, tracemalloc
from ist_hpc.prepare.xmc import shuffle, source
from ist_hpc.prepare.__main__ import main
shuffle.BUCKET_BYTES, shuffle._KEYS_AT_ONCE = 1 << 16, 1 << 12
source.BLOCK_BYTES = 1 << 14
small, large = sys.argv[1:3]
for train in (small, large):
    tracemalloc.start()
    assert main(["xmc", "--train", train, *sys.argv[3:], "--output", train + "-shards"]) == 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
print(peak)
"""

    def test_memory_is_much_less_than_the_rows(self, files, tmp_path):
        small = write(tmp_path / "small.txt", lines_of(1000, 1))
        large = write(tmp_path / "large.txt", lines_of(1000, 1) * 100)
        done = run_python(["-c", self.TRACED, str(small), str(large), *files[2:]], tmp_path)
        peak, made = int(done.stdout.split()[-1]), tmp_path / "large.txt-shards"
        stored = sum(path.stat().st_size for path in made.glob("train-*.h5"))
        assert Dataset.open(made).rows("train") == 100_000
        assert 2 * peak < stored, (peak, stored)

    def test_seed(self, files, made, tmp_path):
        for name, seed in (("a", "1"), ("b", "1"), ("c", "0")):
            command = ["xmc", *files, "--seed", seed, "--output", str(tmp_path / name)]
            assert main([*command, "--name", "small"]) == 0
        shards = [Dataset.open(tmp_path / name).shards for name in "abc"]
        assert shards[0] == shards[1]
        assert shards[0]["train"] != shards[2]["train"]
        assert shards[0]["test"] == shards[2]["test"]
        assert shards[2] == Dataset.open(made).shards

    def test_normalize_and_statistics(self, files, made, tmp_path, capsys):
        command = ["xmc", *files, "--normalize", "l2", "--statistics", "--shards", "1"]
        assert main([*command, "--output", str(tmp_path / "x")]) == 0
        printed = capsys.readouterr().out
        assert "labels never seen" in printed
        assert f"{TRAIN} train and {TEST} test rows of {FEATURES} features" in printed
        lines = [*lines_of(TRAIN, 1), *lines_of(TEST, 2, first=TRAIN)]
        unlabelled = sum(line.startswith(" ") for line in lines)
        assert f"\n{unlabelled} rows without labels, 0 without features" in printed
        plain = rows_in(made, "train")
        for (labels, indices, values), row in zip(
            plain, rows_in(tmp_path / "x", "train"), strict=True
        ):
            norm = np.linalg.norm(np.array(values, dtype=np.float64)) or 1.0
            assert row[:2] == (labels, indices)
            np.testing.assert_allclose(row[2], np.array(values) / norm, rtol=1e-7)
        assert len(Dataset.open(tmp_path / "x").shards["train"]) == 1

    def test_rows_without_features_and_of_zeros_keep_their_values(self):
        values = np.array([0.0, 3.0, 4.0, 0.0], dtype=np.float32)
        starts = np.array([0, 0, 1, 3, 3, 4], dtype=np.int64)
        rows = Csr(starts, np.array([0, 1, 2, 3], dtype=np.int32), values, 5)
        scaled = conversion.unit_length(rows).values
        assert scaled is not None
        np.testing.assert_array_equal(scaled, np.array([0.0, 0.6, 0.8, 0.0], dtype=np.float32))


class TestShuffler:
    @settings(max_examples=40, deadline=None)
    @given(
        counts=st.lists(st.integers(0, 30), min_size=1, max_size=8),
        text_bytes=st.integers(0, 5000),
        bucket_bytes=st.sampled_from([1, 60, 700, 1 << 20]),
        seed=st.integers(0, 3),
    )
    def test_the_order_is_that_of_the_keys(
        self, tmp_path_factory, counts, text_bytes, bucket_bytes, seed
    ):
        blocks, first = [], 0
        for count in counts:
            starts = np.arange(count + 1, dtype=np.int64)
            rows = np.arange(first, first + count, dtype=np.int32)
            blocks.append(
                (Csr(starts, rows, rows.astype(np.float32), 999), Csr(starts, rows, None, 999))
            )
            first += count
        folder = tmp_path_factory.mktemp("shuffle")
        with Shuffler(folder / "x", text_bytes, seed, bucket_bytes) as shuffler:
            for features, labels in blocks:
                shuffler.add(features, labels)
            got = list(shuffler.shuffled())
        keys = words("prepare xmc rows", seed, 0, first)
        order = [row for features, _ in got for row in features.indices.tolist()]
        assert order == np.argsort(keys).tolist()
        assert order == [row for _, labels in got for row in labels.indices.tolist()]
        if got:
            values = concatenate([features for features, _ in got]).values
            assert values is not None
            assert values.tolist() == order
        assert list(folder.iterdir()) == []

    def test_more_rows_than_keys_are_drawn_at_once(self, tmp_path, monkeypatch):
        monkeypatch.setattr(shuffle, "_KEYS_AT_ONCE", 8)
        rows = np.arange(30, dtype=np.int32)
        starts = np.arange(31, dtype=np.int64)
        with Shuffler(tmp_path / "x", 0, 5) as shuffler:
            shuffler.add(
                Csr(starts, rows, rows.astype(np.float32), 30), Csr(starts, rows, None, 30)
            )
            order = [
                row for features, _ in shuffler.shuffled() for row in features.indices.tolist()
            ]
        keys = np.concatenate([words("prepare xmc rows", 5, index, 8) for index in range(4)])[:30]
        assert order == np.argsort(keys).tolist()


@pytest.fixture(scope="module")
def delicious(tmp_path_factory):
    if not DELICIOUS.is_dir():
        pytest.skip(f"no text of Delicious: {DELICIOUS} is missing")
    output = tmp_path_factory.mktemp("delicious") / "delicious"
    files = ["--train", str(DELICIOUS / "train.txt"), "--test", str(DELICIOUS / "test.txt")]
    assert main(["xmc", *files, "--output", str(output)]) == 0
    return output


class TestDelicious:
    def test_counts(self, delicious):
        data = Dataset.open(delicious)
        assert (data.rows("train"), data.rows("test")) == (12920, 3185)
        assert (data.features, data.outputs) == (500, 983)
        made_by = data.made_by
        splits = [made_by["statistics"][split] for split in ("train", "test")]
        assert [split["rows_without_labels"] for split in splits] == [13, 1]
        assert [split["rows_without_features"] for split in splits] == [0, 0]
        assert made_by["repeated_labels"] == made_by["malformed_lines"]["left_out"] == 0
        assert splits[0]["mean_labels_a_row"] == pytest.approx(19.04, abs=0.01)

    @pytest.mark.parametrize("split", ["train", "test"])
    def test_agreement_with_scikit_learn(self, delicious, split):
        datasets = pytest.importorskip("sklearn.datasets")
        with (DELICIOUS / f"{split}.txt").open("rb") as file:
            file.readline()
            text = io.BytesIO(file.read())
        matrix, label_sets = datasets.load_svmlight_file(
            text, n_features=500, multilabel=True, zero_based=True
        )
        with Dataset.open(delicious) as data:
            features, labels = data.read(split, 0, data.rows(split))
        if split == "train":
            order = np.argsort(words("prepare xmc rows", 0, 0, len(features)))
            back = np.argsort(order)
            features, labels = features.take(back), labels.take(back)
        np.testing.assert_array_equal(features.indptr, matrix.indptr)
        np.testing.assert_array_equal(features.indices, matrix.indices)
        np.testing.assert_array_equal(features.values, matrix.data.astype(np.float32))
        assert [labels.part(k, k + 1).indices.tolist() for k in range(len(labels))] == [
            list(map(int, label_set)) for label_set in label_sets
        ]

"""Made data of extreme classification: its shape, its statistics, and that it can be learnt."""

import hashlib
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ist_hpc.data.shards import Dataset
from ist_hpc.prepare.__main__ import main
from ist_hpc.prepare.synthetic import RECIPES, prepare_synthetic
from ist_hpc.prepare.synthetic_rows import make_rows

AMAZON, DELICIOUS = RECIPES["amazon670k"], RECIPES["delicious"]
SMALL = replace(AMAZON, rows=(3000, 600), features=700, labels=400)
# A twentieth of everything: as many train rows a label as at true size.
TWENTIETH = replace(AMAZON, rows=(24522, 7651), features=6795, labels=33504)


def same(one, other):
    assert one.columns == other.columns
    np.testing.assert_array_equal(one.indptr, other.indptr)
    np.testing.assert_array_equal(one.indices, other.indices)
    if one.values is None or other.values is None:
        assert one.values is other.values
    else:
        np.testing.assert_array_equal(one.values, other.values)


def dense(rows):
    result = np.zeros((len(rows), rows.columns), dtype=np.float32)
    row_of_entry = np.repeat(np.arange(len(rows)), np.diff(rows.indptr))
    result[row_of_entry, rows.indices] = 1 if rows.values is None else rows.values
    return result


def label_counts(recipe, seed=0):
    _, labels = make_rows(recipe, seed, "train", 0, recipe.rows[0])
    return np.bincount(labels.indices, minlength=recipe.labels)


def well_formed(rows, columns):
    assert rows.columns == columns
    assert (rows.indptr.dtype, rows.indices.dtype) == (np.int64, np.int32)
    assert rows.indptr[0] == 0
    assert rows.indptr[-1] == rows.entries
    assert (np.diff(rows.indptr) >= 1).all()
    assert rows.indices.min() >= 0
    assert rows.indices.max() < columns
    rises = np.diff(rows.indices) > 0
    rises[rows.indptr[1:-1] - 1] = True  # from one row to the next
    assert rises.all()


class TestRows:
    @settings(max_examples=40, deadline=None)
    @given(
        like=st.sampled_from(sorted(RECIPES)),
        train_rows=st.integers(1, 2500),
        features=st.integers(1, 300),
        labels=st.integers(1, 300),
        seed=st.integers(0, 2**64 - 1),
        split=st.sampled_from(["train", "test"]),
        data=st.data(),
    )
    def test_any_size_and_any_cut(self, like, train_rows, features, labels, seed, split, data):
        known = RECIPES[like]
        sizes = (train_rows, -(-train_rows // 3))
        recipe = replace(known, rows=sizes, features=features, labels=labels)
        rows = sizes[0] if split == "train" else sizes[1]
        whole = make_rows(recipe, seed, split, 0, rows)
        for made, columns in zip(whole, (features, labels), strict=True):
            assert len(made) == rows
            well_formed(made, columns)
        assert whole[0].values.dtype == np.float32
        assert (whole[0].values > 0).all()
        start = data.draw(st.integers(0, rows - 1))
        stop = data.draw(st.integers(start + 1, rows))
        for made, expected in zip(make_rows(recipe, seed, split, start, stop), whole, strict=True):
            same(made, expected.part(start, stop))

    def test_the_same_bytes_for_ever(self):
        """Fails where another machine or NumPy, or a change of the rule, makes other data."""
        digest = hashlib.sha256()
        for recipe, split in itertools.product((SMALL, DELICIOUS), ("train", "test")):
            for rows in make_rows(recipe, 5, split, 0, 200):
                digest.update(rows.indptr.astype("<i8").tobytes())
                digest.update(rows.indices.astype("<i4").tobytes())
                if rows.values is not None:
                    digest.update(rows.values.astype("<f4").tobytes())
        pinned = "94df79d8b568756decfc70a465835e897ca05deccb424dba9572cefa6ec4eb01"
        assert digest.hexdigest() == pinned

    def test_means_and_values_of_amazon(self):
        features, labels = make_rows(AMAZON, 0, "train", 0, 6000)
        assert features.entries / len(features) == pytest.approx(75.68, abs=1.0)
        assert labels.entries / len(labels) == pytest.approx(5.45, abs=0.03)
        squares = np.add.reduceat(features.values.astype(np.float64) ** 2, features.indptr[:-1])
        np.testing.assert_allclose(squares, 1, rtol=1e-5)
        # The ends are drawn from, too: no index is kept to a part of the range.
        assert features.indices.max() > 0.999 * AMAZON.features
        assert labels.indices.max() > 0.999 * AMAZON.labels

    def test_means_and_values_of_delicious(self):
        for split, rows in zip(("train", "test"), DELICIOUS.rows, strict=True):
            features, labels = make_rows(DELICIOUS, 0, split, 0, rows)
            assert features.entries / rows == pytest.approx(18, abs=0.5)
            assert labels.entries / rows == pytest.approx(19, abs=0.1)
            assert set(features.values.tolist()) == {1.0}

    def test_label_frequencies_are_a_power_law(self):
        counts = np.sort(label_counts(TWENTIETH))[::-1]
        assert counts.mean() == pytest.approx(3.99, abs=0.02)
        assert (counts == 0).mean() < 0.01
        seen = counts[: np.count_nonzero(counts >= 3)]
        shifted_ranks = np.arange(len(seen)) + TWENTIETH.head_shift
        slope, _ = np.polyfit(np.log(shifted_ranks), np.log(seen), 1)
        assert slope == pytest.approx(-0.75, abs=0.03)
        assert counts[0] > 50 * np.median(counts)

    def test_label_numbers_do_not_tell_frequencies(self):
        counts = label_counts(TWENTIETH)
        correlation = np.corrcoef(np.log1p(counts), np.arange(len(counts)))[0, 1]
        assert abs(correlation) < 0.03

    def test_seeds_and_splits_differ(self):
        first = make_rows(SMALL, 0, "train", 0, 500)[0]
        for seed, split in ((1, "train"), (0, "test")):
            other = make_rows(SMALL, seed, split, 0, 500)[0]
            assert other.entries != first.entries or (other.indices != first.indices).any()


class TestLearning:
    """By the nearest centroid, which shares nothing with the networks of this package."""

    @pytest.mark.parametrize(
        ("recipe", "least", "most"), [(SMALL, 0.5, 0.95), (DELICIOUS, 0.5, 0.8)]
    )
    def test_labels_follow_from_features_but_not_all(self, recipe, least, most):
        train = [dense(rows) for rows in make_rows(recipe, 0, "train", 0, recipe.rows[0])]
        test = [dense(rows) for rows in make_rows(recipe, 0, "test", 0, recipe.rows[1])]
        centroids = train[1].T @ train[0]
        centroids /= np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), 1e-9)
        best = (test[0] @ centroids.T).argmax(axis=1)
        precision = test[1][np.arange(len(best)), best].mean()
        by_frequency = test[1][:, train[1].sum(axis=0).argmax()].mean()
        assert least < precision < most
        assert precision > 3 * by_frequency

    def test_features_of_other_rows_tell_nothing(self):
        """The same classifier with the features shuffled among the test rows: it learnt a rule."""
        train = [dense(rows) for rows in make_rows(SMALL, 0, "train", 0, SMALL.rows[0])]
        test = [dense(rows) for rows in make_rows(SMALL, 0, "test", 0, SMALL.rows[1])]
        centroids = train[1].T @ train[0]
        centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
        best = (np.roll(test[0], 1, axis=0) @ centroids.T).argmax(axis=1)
        assert test[1][np.arange(len(best)), best].mean() < 0.1


def prepare(output, *options, like="amazon670k"):
    return main(["synthetic", "--like", like, "--output", str(output), *options])


TINY = ("--train-rows", "9000", "--test-rows", "700", "--features", "500", "--labels", "300")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small data set by two workers."""
    output = tmp_path_factory.mktemp("made") / "amazon"
    assert prepare(output, *TINY, "--workers", "2") == 0
    return output


class TestCommand:
    def test_holds_the_rows(self, made):
        recipe = replace(AMAZON, rows=(9000, 700), features=500, labels=300)
        with Dataset.open(made) as data:
            assert data.kind == "sparse"
            assert (data.features, data.outputs, data.classes) == (500, 300, ())
            assert len(data.shards["train"]) == 8
            for split, rows in zip(("train", "test"), recipe.rows, strict=True):
                assert data.rows(split) == rows
                for index in range(len(data.shards[split])):
                    data.check_shard(split, index)
                expected = make_rows(recipe, 0, split, 0, rows)
                for read, wanted in zip(data.read(split, 0, rows), expected, strict=True):
                    same(read, wanted)
            np.testing.assert_array_equal(data.label_counts(), label_counts(recipe))

    def test_says_that_it_is_made(self, made, tmp_path, capsys):
        meta = json.loads((made / "meta.json").read_text())
        assert meta["name"] == "amazon670k-like"
        assert "made data, not the published data set" in meta["feature_description"]
        assert "made data, not the published data set" in meta["made_by"]["source"]
        assert meta["made_by"]["parameters"]["seed"] == 0
        assert meta["made_by"]["parameters"]["recipe"]["labels"] == 300
        assert prepare(tmp_path / "x", *TINY[:4], like="delicious") == 0
        out = capsys.readouterr().out
        assert "made data, not the published data set, of the shape of delicious" in out
        assert "9000 train and 700 test rows of 500 features, 983 labels" in out

    def test_workers_change_nothing_and_the_seed_everything(self, made, tmp_path):
        assert prepare(tmp_path / "one", *TINY, "--workers", "1") == 0
        assert Dataset.open(tmp_path / "one").shards == Dataset.open(made).shards
        assert prepare(tmp_path / "other", *TINY, "--workers", "1", "--seed", "1") == 0
        other = Dataset.open(tmp_path / "other").shards["train"]
        first = Dataset.open(made).shards["train"]
        assert not {shard.sha256 for shard in first} & {shard.sha256 for shard in other}

    def test_replaces_a_data_set_only_when_told(self, tmp_path, capsys):
        tiny = replace(SMALL, rows=(20, 5))
        prepare_synthetic(tmp_path / "x", "amazon670k", tiny)
        assert prepare(tmp_path / "x", *TINY) == 2
        assert "exists; give another folder, or replace it (--overwrite)" in capsys.readouterr().err
        assert Dataset.open(tmp_path / "x").rows("train") == 20
        sizes = ("--train-rows", "30", "--test-rows", "400")
        assert prepare(tmp_path / "x", *sizes, "--overwrite", like="delicious") == 0
        replaced = Dataset.open(tmp_path / "x")
        assert [len(replaced.shards[split]) for split in ("train", "test")] == [1, 8]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--output", "x"], "the following arguments are required: --like"),
            (["--like", "wiki", "--output", "x"], "choose from 'amazon670k', 'delicious'"),
            (["--like", "delicious"], "the following arguments are required: --output"),
            (["--train-rows", "0"], "--train-rows must be 1 to 100000000 (got 0)"),
            (["--test-rows", "-1"], "--test-rows must be 1 to"),
            (["--features", "0"], "--features must be 1 to"),
            (["--labels", "3000000000"], "--labels must be 1 to"),
            (["--labels", "many"], "invalid int value: 'many'"),
            (["--seed", "-1"], "--seed must be 0 to"),
            (["--workers", "0"], "--workers must be 1 to 1024 (got 0)"),
        ],
    )
    def test_mistakes_are_one_line_and_leave_nothing(
        self, arguments, message, tmp_path, monkeypatch, capsys
    ):
        monkeypatch.chdir(tmp_path)
        if arguments[0] not in ("--output", "--like"):
            arguments = ["--like", "delicious", "--output", "x", *arguments]
        assert main(["synthetic", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("prepare: error: ")
        assert message in error
        assert error.count("\n") == 1
        assert list(tmp_path.iterdir()) == []

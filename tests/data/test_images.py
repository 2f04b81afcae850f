"""What is done to dense rows as they are drawn: random crops and flips, and normalisation."""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ist_hpc.common import random_streams
from ist_hpc.common.errors import InputError
from ist_hpc.config import loading
from ist_hpc.data.images import Augmentation, Scaling, augmentation_of, scaling_of
from ist_hpc.data.rows import BatchStream, CommonRows
from ist_hpc.data.shards import Dataset
from tests.commands.test_show import LOAD_AND_COMPARE, rebuild_script
from tests.conftest import train
from tests.data.test_rows import Ranks
from tests.helpers import data_sets, sparse_rows
from tests.helpers.launching import one_error_line, run_python, run_ranks

ROWS, SHAPE = 50, (3, 8, 6)
MEAN, STD = [0.5, 0.25, 0.125], [0.2, 0.3, 0.7]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "images"
    data_sets.write(path, train=ROWS, test=9, shape=SHAPE, dtype="uint8", shard_rows=8)
    with Dataset.open(path) as opened:
        yield opened


def stream(data, window=ROWS, batch=7, position=0, scaling=None, seed=1, rank=2, augment=True):
    window_bytes = window * data.row_bytes("train")
    augmentation = Augmentation(seed, rank) if augment else None
    segments = [(3, 20), (25, ROWS)]
    return BatchStream(
        data, segments, batch, seed, rank, window_bytes, position, scaling, augmentation
    )


def draw(batches, rows):
    """So many rows' features, one behind the other."""
    got = []
    while sum(len(part) for part in got) < rows:
        got.append(batches.next_batch()[0])
    return torch.cat(got)[:rows]


def cut(image, word):
    """One image [channels, height, width], cut and flipped as its word says, pixel by pixel."""
    height, width = image.shape[1:]
    flip, place = word % 2, word // 2 % 81
    top, left = place // 9 - 4, place % 9 - 4
    result = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            from_x = (width - 1 - x if flip else x) + left
            if 0 <= y + top < height and 0 <= from_x < width:
                result[:, y, x] = image[:, y + top, from_x]
    return result


class TestAugmentation:
    @settings(max_examples=60, deadline=None)
    @given(
        st.integers(1, 5).flatmap(
            lambda rows: st.tuples(
                hnp.arrays(
                    st.sampled_from([np.uint8, np.float32]),
                    st.tuples(st.just(rows), *[st.integers(1, 7)] * 3),
                    elements=st.integers(0, 255),
                ),
                st.lists(st.integers(0, 2**64 - 1), min_size=rows, max_size=rows),
            )
        )
    )
    def test_rows_are_cut_and_flipped_as_described(self, drawn):
        rows, words = drawn
        before = rows.copy()
        got = Augmentation.apply(rows, np.array(words, dtype=np.uint64))
        assert got.dtype == rows.dtype
        wanted = np.stack([cut(row, word) for row, word in zip(rows, words, strict=True)])
        assert np.array_equal(got, wanted)
        assert np.array_equal(rows, before)

    def test_every_place_and_both_flips_are_equally_likely(self):
        """In 162 * 400 draws, where each is expected 400 times, with a deviation of 20."""
        count = 162 * 400
        row, column = np.divmod(np.arange(81, dtype=np.uint8), 9)
        image = np.stack([row + 1, column + 1]).reshape(1, 2, 9, 9)
        words = Augmentation(seed=5, rank=0).words(pass_index=0, rows=count)
        # The centre, and the pixel right of it, say where the centre came from and which way.
        cropped = Augmentation.apply(np.broadcast_to(image, (count, 2, 9, 9)), words)
        centre = torch.from_numpy(cropped)[:, :, 4, 4:6].long()
        flipped = (centre[:, 1, 1] == centre[:, 1, 0] - 1).long()
        seen = torch.stack([centre[:, 0, 0], centre[:, 1, 0], flipped], dim=1)
        kinds, times = seen.unique(dim=0, return_counts=True)
        assert len(kinds) == 162
        assert 300 < times.min() <= times.max() < 500
        assert ((times - 400.0) ** 2 / 400).sum() < 250  # chi squared, 161 degrees: 1 in 100,000

    def test_words_are_of_seed_rank_and_pass(self):
        words = Augmentation(3, 1).words(2, 10)
        assert np.array_equal(words, random_streams.words("augment/rank1", 3, 2, 10))
        for other in (Augmentation(4, 1), Augmentation(3, 0)):
            assert not np.array_equal(words, other.words(2, 10))
        assert not np.array_equal(words, Augmentation(3, 1).words(3, 10))
        assert np.array_equal(words[:4], Augmentation(3, 1).words(2, 4))


class TestStream:
    @pytest.mark.parametrize("window", [9, ROWS])
    def test_batches_are_the_rows_cut_by_the_words_of_their_places(self, images, window):
        plain = draw(stream(images, window, augment=False), 100).view(100, *SHAPE).numpy()
        got = draw(stream(images, window), 100).view(100, *SHAPE).numpy()
        words = np.concatenate([Augmentation(1, 2).words(index, 42) for index in range(3)])
        wanted = [cut(row, int(word)) for row, word in zip(plain, words, strict=False)]
        assert np.array_equal(got, np.stack(wanted))

    @settings(max_examples=40, deadline=None)
    @given(st.sampled_from([2, 9, ROWS]), st.integers(2, 9), st.integers(2, 60), st.data())
    def test_a_resume_goes_on_with_the_same_batches(self, images, window, one, other, data):
        """From any row of any pass, with any size of batch."""
        scaling = Scaling(MEAN, STD)
        whole = draw(stream(images, window, one, scaling=scaling), 3 * 42)
        position = data.draw(st.integers(0, 3 * 42 - 1))
        resumed = stream(images, window, other, position, scaling)
        assert torch.equal(draw(resumed, 3 * 42 - position), whole[position:])

    def test_rows_are_kept_as_they_are_stored(self, images):
        """A window of uint8 takes a quarter of one of float32, and holds four times the rows."""
        assert images.row_bytes("train") == 144 + 8
        batches = stream(images, augment=False)
        plain = batches.next_batch()[0]
        assert plain.dtype == torch.float32
        kept = batches._window.rows()[0]
        assert (kept.dtype, kept.shape) == (np.uint8, (42, *SHAPE))

    def test_rows_for_evaluation_are_scaled_and_nothing_else(self, images):
        stored = images.read("test", 0, 9)[0]
        common = CommonRows(Ranks(1), images, "test", "rows", Scaling(MEAN, STD))
        wanted = np.stack([scaled(row) for row in stored]).reshape(9, -1)
        assert np.array_equal(common.fetch(np.arange(9))[0].numpy(), wanted)
        assert np.array_equal(common.fetch(np.arange(9))[0].numpy(), wanted)


def scaled(row):
    """A stored row, in float32, number by number."""
    result = np.empty(row.shape, dtype=np.float32)
    for place, number in np.ndenumerate(row):
        unit = np.float32(number) / np.float32(255) if row.dtype == np.uint8 else number
        mean, std = np.float32(MEAN[place[0]]), np.float32(STD[place[0]])
        result[place] = (np.float32(unit) - mean) / std
    return result


class TestScaling:
    @pytest.mark.parametrize("dtype", ["uint8", "float32"])
    @pytest.mark.parametrize("shape", [(3, 4, 2), (3, 5), (3,)])
    def test_batches_are_scaled_exactly(self, tmp_path, dtype, shape):
        rows = data_sets.write(tmp_path / "rows", shape=shape, dtype=dtype)["train"][0]
        with Dataset.open(tmp_path / "rows") as data:
            batches = BatchStream(data, [(0, 50)], 50, 0, 0, 1 << 20, 0, Scaling(MEAN, STD))
            got = batches.next_batch()[0].numpy()
        wanted = np.stack([scaled(row).ravel() for row in rows])
        order = random_streams.permutation("order/rank0", 0, 0, 50)
        assert got.dtype == np.float32
        assert np.array_equal(got, wanted[order])

    def test_what_is_given_stays(self):
        features = torch.ones(2, 6)
        assert not torch.equal(Scaling(MEAN, STD).apply(features), features)
        assert torch.equal(features, torch.ones(2, 6))


def configured(**data):
    lines = "".join(f"\n  {key}: {value}" for key, value in data.items())
    return loading.parse(
        f"data:\n  path: d{lines}\nmodel: {{hidden: [4]}}\ntrain: {{rounds: 1}}", "my.yaml"
    )


class TestConfiguration:
    def test_nothing_is_done_unless_asked_for(self, images):
        data = configured().data
        assert scaling_of(data, images) is None
        assert augmentation_of(data, images, 1, 2) is None
        assert augmentation_of(configured(augment="crop_flip").data, images, 1, 2).rank == 2

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ({"mean": MEAN}, "as many numbers, one a channel, got 3 and 0 in my.yaml, line 3"),
            ({"std": STD}, "as many numbers, one a channel, got 0 and 3 in my.yaml"),
            ({"mean": MEAN, "std": [1, 1]}, "got 3 and 2 in my.yaml, line 3"),
            ({"mean": [0], "std": [0]}, "`data.std` must be at least 1e-30, got [0]"),
            ({"mean": [0], "std": [-1]}, "`data.std` must be at least 1e-30"),
            ({"mean": [".nan"], "std": [1]}, "`data.mean` must be a list of numbers"),
            ({"mean": [1e39], "std": [1]}, "`data.mean` must be at most 1e+30"),
            ({"mean": 0.5, "std": 0.5}, "`data.mean` must be a list of numbers, got 0.5"),
            ({"augment": "crop"}, "one of none, crop_flip (did you mean crop_flip?), got 'crop'"),
            ({"mean": [0], "std": [1], "row_entries": 2}, "`data.row_entries` is of sparse rows"),
            ({"augment": "crop_flip", "row_entries": 2}, "`data.row_entries` is of sparse rows"),
        ],
    )
    def test_mistakes(self, data, message):
        with pytest.raises(InputError) as caught:
            configured(**{key: str(value).replace("'", "") for key, value in data.items()})
        assert message in str(caught.value)

    def test_data_of_another_shape(self, images, tmp_path):
        one = configured(mean=[0.5], std=[0.5]).data
        with pytest.raises(InputError, match=r"1 numbers each, .* \[3, 8, 6\]; give 3, one for"):
            scaling_of(one, images)
        data_sets.write(tmp_path / "flat")
        flat = Dataset.open(tmp_path / "flat")
        with pytest.raises(InputError, match=r"is of images.*flat have the shape \[6\]; set"):
            augmentation_of(configured(augment="crop_flip").data, flat, 0, 0)
        sparse_rows.write_numbered(tmp_path / "sparse", {"train": 9}, 3, 64, shard_rows=8)
        sparse = Dataset.open(tmp_path / "sparse")
        with pytest.raises(InputError, match=r"are of dense rows, .*sparse has sparse ones"):
            scaling_of(one, sparse)
        with pytest.raises(InputError, match=r"is of images.*sparse are sparse"):
            augmentation_of(configured(augment="crop_flip").data, sparse, 0, 0)


SETTINGS = ["data.path=images", "data.batch_size=16", "data.augment=crop_flip", f"data.mean={MEAN}"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with `images`, and `runs/scaled`, a run on them that augmented and scaled them."""
    place = tmp_path_factory.mktemp("scaled")
    data_sets.write(
        place / "images", train=200, test=60, shape=SHAPE, dtype="uint8", shard_rows=100
    )
    train(place, "scaled", *SETTINGS, f"data.std={STD}", "train.rounds=2")
    return place


class TestCommands:
    def test_evaluate_and_the_export_scale_as_training_did(self, place):
        summary = json.loads((place / "runs" / "scaled" / "summary.json").read_text())
        arguments = ["runs/scaled", "--data", "images", "--predictions", "out.h5"]
        done = run_ranks(2, ["-m", "ist_hpc.evaluate", *arguments], place)
        loss = float(re.search(r"^loss: +(\S+)$", done.stdout, re.MULTILINE).group(1))
        assert loss == pytest.approx(summary["test"]["loss"], abs=1e-4)

        done = run_python(["-m", "ist_hpc.show", "runs/scaled", "--export", "model.pt"], place)
        assert "uint8 data divided by 255, then by scaled()" in done.stdout
        script = LOAD_AND_COMPARE.replace("# -- rebuild", rebuild_script(done.stdout))
        script = script.replace("model(features)", "model(scaled(features.float() / 255))")
        files = [place / "images" / "test-0000.h5", place / "out.h5"]
        compared = run_python(["-I", "-c", script, *files], place)
        assert float(compared.stdout) < 1e-5

    def test_a_resume_with_another_scale_is_refused(self, place):
        command = ["-m", "ist_hpc.train", "--name", "scaled", "--resume", "--set", *SETTINGS]
        changed = [*command, "model.hidden=[24,17]", "data.std=[1,1,1]"]
        line = one_error_line(run_python(changed, place, check=False))
        assert "`data.std` was [0.2, 0.3, 0.7] there and is [1.0, 1.0, 1.0] now" in line

    def test_data_that_do_not_fit_are_refused(self, place):
        data_sets.write(place / "flat", train=20, test=5, shape=(144,), dtype="uint8")
        command = ["-m", "ist_hpc.evaluate", "runs/scaled", "--data", "flat"]
        line = one_error_line(run_python(command, place, check=False))
        assert "have 3 numbers each, a row of flat has the shape [144]; give 144" in line

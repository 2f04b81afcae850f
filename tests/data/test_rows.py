"""The stream of batches, over real shards whose features say which row they are of."""

import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ist_hpc.common import random_streams
from ist_hpc.common.errors import InputError
from ist_hpc.data import rows as rows_module
from ist_hpc.data.rows import BatchStream, CommonRows, rank_segments
from ist_hpc.data.shards import Dataset, DatasetWriter
from ist_hpc.data.sparse_rows import SparseRows
from tests.helpers.sparse_rows import (
    csr_of,
    numbered_features,
    numbered_labels,
    rows_of,
    write_numbered,
)

ROWS, WIDTH, SHARD_ROWS = 50, 3, 8  # seven shards, the last one short
LABELS = 64
WHOLE = ROWS  # windows are given in rows of the data set
SMALL = 11  # three blocks of three rows, and some
SPARSE = {
    repr((numbered_features(row, WIDTH), numbered_labels(row, LABELS))): row for row in range(ROWS)
}
"""What is in a sparse row -> the row; row 17 has neither features nor labels."""

segment_lists = st.sampled_from(
    [[(0, ROWS)], [(13, 26)], [(8, 16), (32, 40)], [(0, 8), (24, 32), (48, 50)], [(7, 8)]]
)
windows = st.sampled_from([0.1, 2, SMALL, 23, WHOLE - 0.1, WHOLE, 2 * WHOLE])


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """Row r has the features [r, r + 1/4, -r] and the label r modulo 5."""
    path = tmp_path_factory.mktemp("rows") / "numbered"
    row = np.arange(ROWS, dtype=np.float32)
    features = np.stack([row, row + 0.25, -row], axis=1)
    with DatasetWriter(
        path, name="numbered", feature_shape=(WIDTH,), classes="abcde", shard_rows=SHARD_ROWS
    ) as writer:
        writer.append("train", features, np.arange(ROWS) % 5)
        writer.append("test", features[:9], np.arange(9) % 5)
    with Dataset.open(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    """Rows that differ, some of which have no features, or no labels."""
    path = tmp_path_factory.mktemp("rows") / "sparse"
    write_numbered(path, {"train": ROWS, "test": 9}, WIDTH, LABELS, shard_rows=SHARD_ROWS)
    with Dataset.open(path) as opened:
        yield opened


@pytest.fixture(scope="module", params=["dense", "sparse"])
def dataset(request):
    """Each kind, in blocks of three rows, so that a small data set has many."""
    opened = request.getfixturevalue(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "_BLOCK_BYTES", 3 * opened.row_bytes("train"))
        yield opened


def stream(dataset, segments, batch=4, seed=1, rank=0, window=WHOLE, position=0):
    window_bytes = int(window * dataset.row_bytes("train"))
    return BatchStream(dataset, segments, batch, seed, rank, window_bytes, position)


def draw(batches: BatchStream, count: int) -> list[int]:
    """The rows of so many rows' worth of batches, each row checked to be in one piece."""
    got: list[int] = []
    while len(got) < count:
        features, labels = batches.next_batch()
        assert len(features) == len(labels) == batches.batch_size
        if isinstance(features, SparseRows):
            got += numbers_of_sparse(features, labels)
        else:
            got += numbers_of_dense(features, labels)
    return got[:count]


def numbers_of_dense(features, labels) -> list[int]:
    assert features.dtype == torch.float32
    assert labels.dtype == torch.int64
    row = features[:, 0]
    assert torch.equal(features, torch.stack([row, row + 0.25, -row], dim=1))
    assert torch.equal(labels, row.to(torch.int64) % 5)
    return [int(value) for value in row]


def numbers_of_sparse(features, labels) -> list[int]:
    assert (features.width, labels.width) == (WIDTH, LABELS)
    assert labels.values is None
    assert features.values.dtype == torch.float32
    assert features.offsets.dtype == features.columns.dtype == torch.int64
    pairs = zip(rows_of(features), rows_of(labels), strict=True)
    return [SPARSE[repr(pair)] for pair in pairs]


def numbers(segments) -> list[int]:
    return [row for start, stop in segments for row in range(start, stop)]


@settings(max_examples=60, deadline=None)
@given(segment_lists, windows, st.integers(2, 70), st.integers(0, 3))
def test_every_pass_has_each_row_once(dataset, segments, window, batch, seed):
    own = numbers(segments)
    batches = stream(dataset, segments, batch, seed, window=window)
    assert batches.rows == len(own)
    got = draw(batches, 3 * len(own))
    for index in range(3):
        assert sorted(got[index * len(own) : (index + 1) * len(own)]) == own
    assert batches.position_rows % batch == 0
    assert batches.position_rows - 3 * len(own) < batch


@settings(max_examples=60, deadline=None)
@given(segment_lists, windows, st.integers(2, 9), st.integers(2, 9), st.data())
def test_a_resume_goes_on_where_the_stream_was(dataset, segments, window, one, other, data):
    """From any row, in any pass, with any size of batch: the order is of the rows alone."""
    length = 3 * sum(stop - start for start, stop in segments)
    whole = draw(stream(dataset, segments, one, window=window), length)
    position = data.draw(st.integers(0, length - 1))
    resumed = stream(dataset, segments, other, window=window, position=position)
    assert draw(resumed, length - position) == whole[position:]


@pytest.mark.parametrize("rank", [0, 3])
def test_what_fits_is_shuffled_whole(dataset, rank):
    """The order that runs so far have had, so that a resume of one of them goes on with it."""
    got = draw(stream(dataset, [(8, 40)], seed=7, rank=rank), 3 * 32)
    for index in range(3):
        order = random_streams.permutation(f"order/rank{rank}", 7, index, 32)
        assert got[index * 32 : (index + 1) * 32] == (8 + order).tolist()


def test_windows_have_the_same_rows_for_both_kinds(dense, sparse, monkeypatch):
    orders = []
    for data in (dense, sparse):
        monkeypatch.setattr(rows_module, "_BLOCK_BYTES", 3 * data.row_bytes("train"))
        orders.append(draw(stream(data, [(0, 20), (30, 49)], window=SMALL), 3 * 39))
    assert orders[0] == orders[1]


@pytest.mark.parametrize("window", [SMALL, WHOLE], ids=["windows", "whole"])
def test_the_order_depends_on_seed_rank_and_pass(dataset, window):
    def order(**changed):
        return draw(stream(dataset, [(0, ROWS)], window=window, **changed), 4 * ROWS)

    base = order()
    assert base == order()
    assert base != order(seed=2)
    assert base != order(rank=1)
    passes = [tuple(base[index * ROWS : (index + 1) * ROWS]) for index in range(4)]
    assert len(set(passes)) == 4
    assert tuple(range(ROWS)) not in passes


def test_a_window_is_of_blocks_from_everywhere(dataset):
    """Larger than the window, data are shuffled by blocks, and the rows of a window with them."""
    got = draw(stream(dataset, [(0, ROWS)], window=SMALL), ROWS)
    window_rows = 9
    for start in range(0, ROWS - window_rows, window_rows):
        blocks = {row // 3 for row in got[start : start + window_rows]}
        assert len(blocks) in (3, 4)  # four if one of them is the short last block
    firsts = sorted({row // 3 for row in got[:window_rows]})
    assert firsts != list(range(firsts[0], firsts[0] + len(firsts)))


def test_a_window_is_read_in_pieces_and_once(dataset, monkeypatch):
    """Never more than a block beside the window; what fits in the window is read once for all."""
    reads = []
    read = dataset.read_into
    monkeypatch.setattr(
        dataset, "read_into", lambda *args: (reads.append(args[2:]), read(*args))[1], raising=True
    )
    draw(stream(dataset, [(0, 20), (30, 50)], window=WHOLE), 200)
    assert all(0 < stop - start <= 3 for start, stop in reads)
    assert sorted(numbers(reads)) == [*range(20), *range(30, 50)]


def test_there_are_never_two_windows(dataset, monkeypatch):
    """Although a batch may have rows of both."""
    made, alive, sizes = dataset.window, weakref.WeakSet(), []

    def counted(split, rows):
        window = made(split, rows)
        if rows:
            alive.add(window)
            sizes.append(rows)
            assert len(alive) == 1
        return window

    monkeypatch.setattr(dataset, "window", counted)
    draw(stream(dataset, [(0, ROWS)], window=SMALL, batch=7), 3 * ROWS)
    assert len(sizes) > 15
    assert max(sizes) <= SMALL


def test_bytes_are_scaled_to_one(tmp_path):
    values = np.arange(256, dtype=np.uint8).reshape(64, 2, 2)
    with DatasetWriter(
        tmp_path / "bytes", name="b", feature_shape=(2, 2), feature_dtype="uint8", classes="ab"
    ) as writer:
        writer.append("train", values, np.zeros(64, dtype=np.int64))
    expected = torch.from_numpy(values).view(64, 4).float() / 255
    with Dataset.open(tmp_path / "bytes") as opened:
        for window in (64, 20):
            features, _ = stream(opened, [(0, 64)], batch=64, window=window).next_batch()
            assert features.dtype == torch.float32
            order = features[:, 0].argsort()
            assert torch.equal(features[order], expected)
        assert (expected.min(), expected.max()) == (0, 1)


@pytest.mark.parametrize("ranks", range(1, 9))
@pytest.mark.parametrize("assign", ["rows", "files"])
def test_ranks_share_the_rows(dataset, assign, ranks):
    """Under `rows` evenly, under `files` by shards; no row twice and none left out."""
    if assign == "files" and ranks > 7:
        with pytest.raises(InputError, match=r"7 shards \(`data\.assign: files`.*rank 7 gets none"):
            rank_segments(dataset, "train", assign, 7, ranks)
        return
    shares = [rank_segments(dataset, "train", assign, rank, ranks) for rank in range(ranks)]
    sizes = [len(numbers(share)) for share in shares]
    assert sorted(row for share in shares for row in numbers(share)) == list(range(ROWS))
    if assign == "rows":
        assert max(sizes) - min(sizes) <= 1
        return
    for rank, share in enumerate(shares):
        shards = range(rank, 7, ranks)
        assert share == [dataset.shard_range("train", index) for index in shards]


def test_ranks_without_rows_are_refused(dataset):
    with pytest.raises(InputError, match="50 rows of train are too few for 51 ranks, rank 50"):
        rank_segments(dataset, "train", "rows", 50, 51)
    assert rank_segments(dataset, "train", "rows", 0, 51) == [(0, 1)]


class Ranks:
    """A communicator of which nothing but its size and rank is asked for."""

    def __init__(self, ranks: int) -> None:
        self.Get_size, self.Get_rank = lambda: ranks, lambda: 0  # as in MPI


def test_a_sample_depends_on_the_seed_alone(dataset):
    def sample(ranks=1, assign="rows", count=20, seed=1):
        return CommonRows(Ranks(ranks), dataset, "train", assign).sample(count, seed).tolist()

    base = sample()
    assert len(base) == len(set(base)) == 20
    assert base == sorted(base) == sample(ranks=5) == sample(assign="files")
    assert base != sample(seed=2)
    assert set(base) < set(sample(count=30))
    assert sample(count=1000) == list(range(ROWS))


def test_more_than_mpi_can_count_is_refused(dense, monkeypatch):
    """Before anything is allocated, with the number of rows that would do."""
    monkeypatch.setattr(rows_module, "_MOST_MPI_ELEMENTS", 100)
    everything = np.arange(ROWS)
    common = CommonRows(Ranks(2), dense, "train", "rows")
    with pytest.raises(InputError, match=r"50 rows of 3 numbers .* at most 33") as caught:
        common.fetch(everything)
    for key in ("`evaluate.batch_rows`", "`evaluate.calibration_rows`"):
        assert key in str(caught.value)
    assert len(CommonRows(Ranks(1), dense, "train", "rows").fetch(everything)[0]) == ROWS


def test_a_row_of_a_sparse_set_takes_what_it_has(tmp_path):
    """And not its width: 76 features of 100,000 are some hundred bytes."""
    features = csr_of([[(n * 1000, 1.0) for n in range(76)]] * 4000, 100_000, True)
    labels = csr_of([[(n, 1.0) for n in range(5)]] * 4000, 600_000, False)
    with DatasetWriter(
        tmp_path / "wide", name="wide", kind="sparse", feature_shape=[100_000], classes=600_000
    ) as writer:
        writer.append("train", features, labels)
    with Dataset.open(tmp_path / "wide") as opened:
        stored = 76 * 8 + 5 * 5 + 16
        assert stored <= opened.row_bytes("train") < 1.4 * stored
        batches = BatchStream(opened, [(0, 4000)], 64, 0, 0, 1 << 20)
        assert batches.next_batch()[0].counts.tolist() == [76] * 64

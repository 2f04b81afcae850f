"""Rows that all ranks need alike, each read by one of them."""

import shutil

import numpy as np
import pytest
import torch

from ist_hpc.common.errors import InputError
from ist_hpc.data import rows as rows_module
from ist_hpc.data.csr import Csr
from ist_hpc.data.dense import DenseStore
from ist_hpc.data.rows import CommonRows
from ist_hpc.data.shards import Dataset, DatasetWriter
from ist_hpc.data.sparse_rows import SparseRows
from tests.helpers.sparse_rows import numbered_features, numbered_labels, rows_of, write_numbered

ROWS, SHARD_ROWS = 60, 7  # nine shards, the last one short
CHOICES = {
    "all": range(ROWS),
    "some": [0, 6, 7, 8, 20, 33, 34, 35, 36, 58, 59],
    "one": [41],
    "one shard": range(14, 21),
    "none": [],
    "twice": [3, 3, 12, 12, 12, 50],
}


WIDTH, LABELS = 17, 64


def write(path, what):
    """The same files whoever writes them."""
    if what == "sparse":
        splits = {"train": ROWS, "test": 23}
        write_numbered(path, splits, WIDTH, LABELS, shard_rows=SHARD_ROWS)
    else:
        write_dense(path, what)


def write_dense(path, dtype):
    random = np.random.default_rng(0)
    features = random.integers(0, 256, (ROWS, 2, 3)).astype(dtype)
    with DatasetWriter(
        path,
        name="same",
        feature_shape=(2, 3),
        feature_dtype=dtype,
        classes="abcd",
        shard_rows=SHARD_ROWS,
        made_by={"command": "test"},
    ) as writer:
        for split, count in (("train", ROWS), ("test", 23)):
            writer.append(split, features[:count], random.integers(0, 4, count))


@pytest.fixture(scope="module", params=["float32", "uint8", "sparse"])
def whole(request, tmp_path_factory):
    """All of the data, in a folder of this rank's own."""
    path = tmp_path_factory.mktemp("rows") / "whole"
    write(path, request.param)
    with Dataset.open(path) as dataset:
        yield dataset


@pytest.fixture(scope="module")
def own(whole, world, tmp_path_factory):
    """This rank's shards and no others, as on a disk of its node."""
    path = tmp_path_factory.mktemp("own")
    shutil.copy(whole.path / "meta.json", path)
    for shards in whole.shards.values():
        for shard in shards[world.Get_rank() :: world.Get_size()]:
            shutil.copy(whole.path / shard.file, path)
    with Dataset.open(path) as dataset:
        yield dataset


def tensors_of(*parts) -> list[torch.Tensor]:
    """The tensors that rows are made of."""
    tensors = []
    for part in parts:
        if isinstance(part, SparseRows):
            tensors += [part.offsets, part.columns]
            tensors += [] if part.values is None else [part.values]
        else:
            tensors.append(part)
    return tensors


def agreed(world, *parts) -> bool:
    """Whether all ranks have the same bytes."""
    own = b"".join(tensor.numpy().tobytes() for tensor in tensors_of(*parts))
    return len(set(world.allgather(own))) == 1


def check_same(features, labels, stored_features, stored_labels) -> None:
    """What was fetched against what is stored."""
    if isinstance(stored_features, Csr):
        assert features.values.dtype == torch.float32
        assert features.columns.dtype == features.offsets.dtype == torch.int64
        assert (features.width, labels.width, labels.values) == (WIDTH, LABELS, None)
        assert rows_of(features) == rows_of(stored_features)
        assert rows_of(labels) == rows_of(stored_labels)
        return
    assert features.dtype == torch.float32
    assert features.shape == (len(stored_labels), 6)
    wanted, classes = DenseStore.batch([(stored_features, stored_labels)])
    assert torch.equal(features, wanted)
    assert torch.equal(labels, classes)


@pytest.mark.parametrize("chosen", CHOICES.values(), ids=CHOICES.keys())
@pytest.mark.parametrize("assign", ["rows", "files"])
def test_all_ranks_get_the_rows_that_direct_reading_gives(world, whole, own, assign, chosen):
    """Under `files` although no rank has the shards of another."""
    dataset = own if assign == "files" else whole
    rows = np.array(chosen, dtype=np.int64)
    features, labels = CommonRows(world, dataset, "train", assign).fetch(rows)
    check_same(features, labels, *whole.take("train", rows))
    assert agreed(world, features, labels)


@pytest.mark.parametrize("assign", ["rows", "files"])
@pytest.mark.parametrize("batch_rows", [1, 5, 23, 100])
def test_batches_are_the_whole_split_in_order(world, whole, own, assign, batch_rows):
    dataset = own if assign == "files" else whole
    batches = list(CommonRows(world, dataset, "test", assign).batches(batch_rows))
    assert np.array_equal(np.concatenate([rows for rows, _ in batches]), np.arange(23))
    assert all(len(rows) <= batch_rows for rows, _ in batches)
    for rows, pair in batches:
        check_same(*pair, *whole.read("test", int(rows[0]), int(rows[-1]) + 1))


@pytest.mark.parametrize("assign", ["rows", "files"])
@pytest.mark.parametrize("whole", ["sparse"], indirect=True)
def test_sparse_rows_are_those_that_were_made(world, whole, own, assign):
    """Apart from what the data set reads: each row from its number."""
    dataset = own if assign == "files" else whole
    rows = np.array([0, 3, 7, 17, 31, 38, 59])  # of 17 there is nothing, of 38 and 3 no labels
    features, labels = CommonRows(world, dataset, "train", assign).fetch(rows)
    assert rows_of(features) == [numbered_features(row, WIDTH) for row in rows.tolist()]
    assert rows_of(labels) == [numbered_labels(row, LABELS) for row in rows.tolist()]


@pytest.mark.parametrize("whole", ["sparse"], indirect=True)
def test_entries_that_mpi_cannot_count_are_refused(world, whole, monkeypatch):
    """By what the rows have and not by their width, on all ranks alike."""
    common, everything = CommonRows(world, whole, "train", "rows"), np.arange(ROWS)
    entries = whole.read("train", 0, ROWS)[0].entries
    monkeypatch.setattr(rows_module, "_MOST_MPI_ELEMENTS", entries)
    assert len(common.fetch(everything)[0].columns) == entries < ROWS * WIDTH
    monkeypatch.setattr(rows_module, "_MOST_MPI_ELEMENTS", entries - 1)
    if world.Get_size() == 1:
        common.fetch(everything)
        return
    with pytest.raises(InputError, match=rf"60 rows with {entries} entries .* at most 59"):
        common.fetch(everything)


def test_a_sample_depends_on_the_seed_alone(world, whole, own):
    """Not on the rank, the ranks, or how rows are assigned."""
    from mpi4py import MPI

    sample = CommonRows(world, whole, "train", "rows").sample(12, seed=5)
    for comm, dataset, assign in ((world, own, "files"), (MPI.COMM_SELF, whole, "rows")):
        assert np.array_equal(CommonRows(comm, dataset, "train", assign).sample(12, 5), sample)
    assert agreed(world, torch.from_numpy(sample))
    other = CommonRows(world, whole, "train", "rows").sample(12, seed=6)
    assert not np.array_equal(other, sample)


def test_a_rank_has_no_shards_of_another(world, own):
    """What the tests above rest on."""
    for index in range(len(own.shards["train"])):
        bounds = own.shard_range("train", index)
        if index % world.Get_size() == world.Get_rank():
            own.read("train", *bounds)
            continue
        with pytest.raises(InputError, match="no such file"):
            own.read("train", *bounds)

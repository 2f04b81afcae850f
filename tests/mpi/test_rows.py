"""Rows that all ranks need alike, each read by one of them."""

import shutil

import numpy as np
import pytest
import torch

from ist_hpc.errors import InputError
from ist_hpc.rows import CommonRows, as_features
from ist_hpc.shards import Dataset, DatasetWriter

ROWS, SHARD_ROWS = 60, 7  # nine shards, the last one short
CHOICES = {
    "all": range(ROWS),
    "some": [0, 6, 7, 8, 20, 33, 34, 35, 36, 58, 59],
    "one": [41],
    "one shard": range(14, 21),
    "none": [],
    "twice": [3, 3, 12, 12, 12, 50],
}


def write(path, dtype):
    """The same files whoever writes them."""
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


@pytest.fixture(scope="module", params=["float32", "uint8"])
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


def agreed(world, *tensors) -> bool:
    """Whether all ranks have the same bytes."""
    return len(set(world.allgather(b"".join(tensor.numpy().tobytes() for tensor in tensors)))) == 1


@pytest.mark.parametrize("chosen", CHOICES.values(), ids=CHOICES.keys())
@pytest.mark.parametrize("assign", ["rows", "files"])
def test_all_ranks_get_the_rows_that_direct_reading_gives(world, whole, own, assign, chosen):
    """Under `files` although no rank has the shards of another."""
    dataset = own if assign == "files" else whole
    rows = np.array(chosen, dtype=np.int64)
    features, labels = CommonRows(world, dataset, "train", assign).fetch(rows)
    stored, stored_labels = whole.take("train", rows)
    assert features.dtype == torch.float32
    assert features.shape == (len(rows), 6)
    assert torch.equal(features, as_features(stored))
    assert torch.equal(labels, torch.from_numpy(stored_labels))
    assert agreed(world, features, labels)


@pytest.mark.parametrize("assign", ["rows", "files"])
@pytest.mark.parametrize("batch_rows", [1, 5, 23, 100])
def test_batches_are_the_whole_split_in_order(world, whole, own, assign, batch_rows):
    dataset = own if assign == "files" else whole
    batches = list(CommonRows(world, dataset, "test", assign).batches(batch_rows))
    stored, stored_labels = whole.read("test", 0, 23)
    assert np.array_equal(np.concatenate([rows for rows, _ in batches]), np.arange(23))
    assert all(len(rows) <= batch_rows for rows, _ in batches)
    assert torch.equal(torch.cat([pair[0] for _, pair in batches]), as_features(stored))
    assert torch.cat([pair[1] for _, pair in batches]).tolist() == stored_labels.tolist()


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

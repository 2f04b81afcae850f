"""Small data sets of random dense rows, and ways to damage any data set."""

import json

import h5py
import numpy as np
import pytest

from ist_hpc.common.errors import InputError
from ist_hpc.data.shards import Dataset, DatasetWriter

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


def assert_refused_when_changed(made, change, message):
    """After `change` of its open file, the first train shard is neither passed nor read."""
    file = made / "train-0000.h5"
    with h5py.File(file, "r+") as opened:
        change(opened)
    edit_meta(made, lambda meta: meta["shards"]["train"][0].update(bytes=file.stat().st_size))
    with Dataset.open(made) as data:
        for look in (
            lambda: data.check_shard("train", 0, checksum=False),
            lambda: data.read("train", 0, 1),
        ):
            with pytest.raises(InputError, match=rf"train-0000\.h5: .*{message}"):
                look()


def flip(file, offset):
    data = bytearray(file.read_bytes())
    data[offset] ^= 0x10
    file.write_bytes(data)


def chunk_offset(file, dataset):
    with h5py.File(file) as opened:
        return opened[dataset].id.get_chunk_info(0).byte_offset + 5

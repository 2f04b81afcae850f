"""Counts, stores and reads in how many train rows each label of a sparse data set occurs."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from ist_hpc.common.disk.files import flush_to_disk, sha256_of
from ist_hpc.common.disk.hdf5_writing import written
from ist_hpc.data import shard_files
from ist_hpc.data.csr import Csr
from ist_hpc.data.shard_files import StoredFile, check_whole
from ist_hpc.data.shard_meta import SideFile

FILE = "label-counts.h5"
_DATASET = "train"


class LabelCounts:
    """Counts labels of train rows while they are written; 8 bytes per label."""

    def __init__(self, labels: int) -> None:
        self._counts = np.zeros(labels, dtype=np.int64)

    def add(self, labels: Csr) -> None:
        """Count the labels of some rows."""
        np.add.at(self._counts, labels.indices, 1)

    def write(self, folder: Path) -> SideFile:
        """Write `folder`/label-counts.h5 and flush it to disk; raises OSError."""
        path, counts = folder / FILE, self._counts
        with written(path) as file:
            file.attrs["description"] = "in how many train rows each label occurs; see meta.json"
            chunk = min(len(counts), max(1, shard_files.CHUNK_BYTES // 8))
            dataset = shard_files.create(file, _DATASET, (), "int64", chunk)
            dataset.resize(len(counts), axis=0)
            dataset[:] = counts
        flush_to_disk(path)
        return SideFile(FILE, path.stat().st_size, sha256_of(path))


def read_label_counts(
    folder: Path, listed: SideFile, labels: int, fix: str
) -> npt.NDArray[np.int64]:
    """The counts, int64 [labels]; InputError if the file is not the one listed."""
    path = folder / listed.file
    check_whole(path, listed, checksum=True, fix=fix)
    file = StoredFile(path, fix)
    try:
        dataset = file.dataset(_DATASET, "int64", (labels,))
        with file.reporting(_DATASET):
            counts = np.asarray(dataset[:], dtype=np.int64)
        if (counts < 0).any():
            label = int(np.flatnonzero(counts < 0)[0])
            raise file.error(f"`{_DATASET}` must be >= 0 (got {counts[label]} of label {label})")
        return counts
    finally:
        file.close()

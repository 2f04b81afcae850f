"""Sparse rows in a random order, however many there are.

Each row draws a random 64-bit key, and rows leave in the order of their keys, so that every order
is equally likely. The leading bits of the key choose a bucket; rows wait there, in a file when
memory is used up, and one bucket at a time is sorted in memory. So the order depends only on the
seed and the number of rows, and not on the buckets.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from ist_hpc.common.disk.files import hidden_beside
from ist_hpc.common.errors import InputError
from ist_hpc.common.random_streams import words
from ist_hpc.data.csr import Csr, concatenate
from ist_hpc.runtime.stopping import end_request

Keys = npt.NDArray[np.uint64]
Part = tuple[Keys, Csr, Csr]
"""Keys, uint64 [rows], with the features and the labels of the rows."""

BUCKET_BYTES = 32 << 20  # of text per bucket, and of waiting rows in memory

_PURPOSE = "prepare xmc rows"
_KEYS_AT_ONCE = 1 << 16
_MOST_BUCKETS = 4096
_ROWS_AT_ONCE = 4096


class Shuffler:
    """Takes rows and gives them back in random order; a context manager.

    Memory is a few times `bucket_bytes`, by default 32 MiB. With more than one bucket, files are
    made beside `output`, in a hidden folder that is removed when the context ends; together they
    have 8 bytes per feature, 4 per label and 24 per row.
    """

    def __init__(
        self, output: Path, text_bytes: int, seed: int, bucket_bytes: int | None = None
    ) -> None:
        """For rows whose text has about `text_bytes` bytes; more or fewer are allowed."""
        target = Path(os.path.realpath(output))
        self._folder = hidden_beside(target, "shuffle")
        self._seed = seed
        self._rows = 0
        self._keys = np.zeros(0, dtype=np.uint64)
        self._most_bytes = bucket_bytes or BUCKET_BYTES
        self._buckets = max(1, min(-(-text_bytes // self._most_bytes), _MOST_BUCKETS))
        self._waiting: list[Part] = []
        self._waiting_bytes = 0
        self._columns = (0, 0)

    def __enter__(self) -> "Shuffler":
        if self._buckets > 1:
            try:
                self._folder.parent.mkdir(parents=True, exist_ok=True)
                self._folder.mkdir()
            except OSError as error:
                raise InputError(f"cannot make {self._folder}: {error.strerror}") from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._waiting.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, features: Csr, labels: Csr) -> None:
        """Take the next rows. Raises InputError if a file cannot be written."""
        end_request.look()
        self._columns = features.columns, labels.columns
        self._waiting.append((self._next_keys(len(features)), features, labels))
        self._waiting_bytes += features.nbytes + labels.nbytes
        if self._buckets > 1 and self._waiting_bytes >= self._most_bytes:
            self._store()

    def shuffled(self) -> Iterator[tuple[Csr, Csr]]:
        """Yield all rows in random order, a few thousand at a time; once. Raises InputError."""
        if self._buckets > 1:
            self._store()
        for bucket in range(self._buckets):
            parts = self._stored(bucket) if self._buckets > 1 else self._waiting
            if not parts:
                continue
            keys, features, labels = _joined(parts)
            parts.clear()
            order = np.argsort(keys, kind="stable")
            for start in range(0, len(order), _ROWS_AT_ONCE):
                rows = order[start : start + _ROWS_AT_ONCE]
                yield features.take(rows), labels.take(rows)

    def _next_keys(self, count: int) -> Keys:
        # The words of a stream are drawn from its beginning; a stream for every 65,536 rows.
        parts = []
        while count:
            place = self._rows % _KEYS_AT_ONCE
            if place == 0:
                index = self._rows // _KEYS_AT_ONCE
                self._keys = words(_PURPOSE, self._seed, index, _KEYS_AT_ONCE)
            part = self._keys[place : place + count]
            parts.append(part)
            self._rows += len(part)
            count -= len(part)
        return np.concatenate(parts) if parts else self._keys[:0]

    def _store(self) -> None:
        """Append the waiting rows to the files of their buckets."""
        if not self._waiting:
            return
        keys, features, labels = _joined(self._waiting)
        self._waiting.clear()
        self._waiting_bytes = 0
        # The product may not exceed 64 bits, and need not: 32 bits of the key are enough.
        buckets = ((keys >> np.uint64(32)) * np.uint64(self._buckets)) >> np.uint64(32)
        order = np.argsort(buckets, kind="stable")
        keys, features, labels = keys[order], features.take(order), labels.take(order)
        ends = np.searchsorted(buckets[order], np.arange(self._buckets), side="right").tolist()
        start = 0
        for bucket, stop in enumerate(ends):
            if stop > start:
                part = keys[start:stop], features.part(start, stop), labels.part(start, stop)
                self._write(self._path(bucket), part)
            start = stop

    def _path(self, bucket: int) -> Path:
        return self._folder / f"{bucket}.rows"

    def _write(self, path: Path, part: Part) -> None:
        keys, features, labels = part
        assert features.values is not None
        sizes = np.array([len(keys), features.entries, labels.entries], dtype=np.int64)
        lengths = np.diff(features.indptr), np.diff(labels.indptr)
        arrays = (sizes, keys, *lengths, features.indices, features.values, labels.indices)
        try:
            with path.open("ab") as file:
                for array in arrays:
                    file.write(np.ascontiguousarray(array).data)
        except OSError as error:
            raise InputError(
                f"{path}: cannot be written ({error.strerror}); the shuffling needs room there"
            ) from error

    def _stored(self, bucket: int) -> list[Part]:
        path = self._path(bucket)
        parts = []
        try:
            with path.open("rb") as file:
                while sizes := file.read(24):
                    parts.append(self._read(file, *np.frombuffer(sizes, dtype=np.int64).tolist()))
            path.unlink()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        return parts

    def _read(self, file: BinaryIO, rows: int, entries: int, labels: int) -> Part:
        keys = np.frombuffer(file.read(8 * rows), dtype=np.uint64)
        starts = _starts(np.frombuffer(file.read(8 * rows), dtype=np.int64))
        label_starts = _starts(np.frombuffer(file.read(8 * rows), dtype=np.int64))
        indices = np.frombuffer(file.read(4 * entries), dtype=np.int32)
        values = np.frombuffer(file.read(4 * entries), dtype=np.float32)
        own = np.frombuffer(file.read(4 * labels), dtype=np.int32)
        width, outputs = self._columns
        return keys, Csr(starts, indices, values, width), Csr(label_starts, own, None, outputs)


def _joined(parts: list[Part]) -> Part:
    keys = np.concatenate([part[0] for part in parts])
    return keys, concatenate([part[1] for part in parts]), concatenate([part[2] for part in parts])


def _starts(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    starts = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts

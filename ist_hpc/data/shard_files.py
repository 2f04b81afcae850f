"""The HDF5 files of a data set: written row by row, and read so that errors name a damage."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ist_hpc.common.disk.files import flush_to_disk, sha256_of
from ist_hpc.common.disk.hdf5_writing import Hdf5Output
from ist_hpc.common.errors import InputError, show
from ist_hpc.data.shard_meta import FORMAT_VERSION, META_FILE, Schema, Shard, SideFile

CHUNK_BYTES = 256 * 1024  # small enough to read few rows, large enough for a parallel file system
SHARD_BYTES = 256 * 1024 * 1024  # if the caller of a writer does not say when a shard ends
# HDF5 2.0 would cache 8 MiB of blocks per dataset, and a rank may have hundreds open.
_CACHE_BYTES = 1024 * 1024
_ATTRIBUTE_BYTES = 32 * 1024  # HDF5 keeps an attribute in 64 KiB; with this much there is room


def create(
    group: h5py.Group, name: str, shape: tuple[int, ...], dtype: str, chunk_rows: int
) -> h5py.Dataset:
    """An empty dataset for rows of `shape`; little-endian, with a checksum on every block.

    `chunk_rows` is the number of rows in a block. Raises OSError.
    """
    return group.create_dataset(
        name,
        shape=(0, *shape),
        maxshape=(None, *shape),
        chunks=(chunk_rows, *shape),
        dtype=np.dtype(dtype).newbyteorder("<"),
        fletcher32=True,
    )


def describe_classes(labels: h5py.HLObject, outputs: int, classes: Sequence[str]) -> None:
    """The number of classes, and their names if they have some that fit, as attributes."""
    labels.attrs["num_classes"] = outputs
    if classes and sum(len(name.encode()) + 24 for name in classes) <= _ATTRIBUTE_BYTES:
        labels.attrs["classes"] = list(classes)


class ShardOutput(ABC):
    """A shard that is written row by row; methods raise OSError.

    rows  number of rows so far; the shard is full at `most_rows`, unless that is None
    """

    def __init__(
        self, path: Path, name: str, split: str, schema: Schema, most_rows: int | None
    ) -> None:
        self.path, self.rows = path, 0
        self._most_rows = most_rows
        self._output = Hdf5Output(path, _CACHE_BYTES)
        try:
            file = self._output.file
            file.attrs["description"] = (
                f"a shard of the {split} rows of the ist_hpc data set {name}; see meta.json"
            )
            file.attrs["dataset_name"] = name
            file.attrs["split"] = split
            file.attrs["kind"] = schema.kind
            file.attrs["format_version"] = FORMAT_VERSION
            self._create(file, schema)
        except BaseException:
            self._output.abandon()
            raise

    @abstractmethod
    def _create(self, file: h5py.File, schema: Schema) -> None:
        """Make the empty datasets."""

    @property
    def full(self) -> bool:
        """Whether the next row begins another shard."""
        return self.rows == self._most_rows

    def room(self, features: Any, labels: Any, start: int) -> int:
        """The row of a block before which the shard is full, if rows from `start` on are added."""
        assert self._most_rows is not None
        return min(len(labels), start + self._most_rows - self.rows)

    def append(self, features: Any, labels: Any, start: int, stop: int) -> None:
        """Add the rows `start` to `stop` of a checked block."""
        self._put(features, labels, start, stop)
        self._output.check()
        self.rows += stop - start

    @abstractmethod
    def _put(self, features: Any, labels: Any, start: int, stop: int) -> None:
        """Append these rows."""

    def _end(self) -> None:  # noqa: B027  (most have nothing in memory)
        """Write what is still in memory."""

    def finish(self) -> Shard:
        """Close the file, flush it to disk and read it back for its checksum."""
        self._end()
        self._output.close()
        flush_to_disk(self.path)
        return Shard(self.path.name, self.rows, self.path.stat().st_size, sha256_of(self.path))

    def abandon(self) -> None:
        """Close the file, whatever state it is in; it is about to be removed."""
        self._output.abandon()


class StoredFile:
    """An HDF5 file that `meta.json` lists, open for reading; close it.

    Any error in it is an `InputError` that names the file, what is wrong in it, and the `fix`.
    """

    def __init__(self, path: Path, fix: str) -> None:
        self.path = path
        self.fix = fix
        with self.reporting():
            # NFS and Lustre are often mounted without locks, and nobody writes here.
            self._file = h5py.File(path, "r", locking=False, rdcc_nbytes=_CACHE_BYTES)

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError, RuntimeError):  # a damaged file may refuse; it was only read
            self._file.close()

    def must_be_of(self, split: str) -> None:
        """Raise `InputError` unless the file's attributes name this split."""
        with self.reporting():
            found = self._file.attrs.get("split")
            if not isinstance(found, str) or found != split:
                raise self.error(
                    f"attribute `split` must be {split!r}, as {META_FILE} says (got {show(found)})"
                )

    def dataset(self, name: str, dtype: str, shape: tuple[int | None, ...]) -> h5py.Dataset:
        """The dataset `name`, which has this dtype and shape (None: any), whole and checksummed."""
        dataset = self._member(name)
        with self.reporting(name):
            if not isinstance(dataset, h5py.Dataset):
                raise self.error(f"`{name}` must be a dataset, not a group")
            found = dataset.shape or ()
            fits = len(found) == len(shape) and all(
                size in (None, got) for size, got in zip(shape, found, strict=True)
            )
            if not fits or dataset.dtype != np.dtype(dtype):
                empty = "the shard is empty: " if found and found[0] == 0 else ""
                wanted = str(shape).replace("None", "any")
                raise self.error(
                    f"{empty}`{name}` must be {dtype} of shape {wanted}, as {META_FILE} says "
                    f"(got {dataset.dtype}, {dataset.shape})"
                )
            if dataset.chunks is None or not dataset.fletcher32:
                raise InputError(
                    f"{self.path}: `{name}` is stored without the checksum fletcher32, so damage "
                    "would go unseen; write the data set with ist_hpc.data.shards.DatasetWriter"
                )
            # HDF5 reads a chunk that was never stored as zeros, without an error.
            blocks = (-(-n // c) for n, c in zip(found, dataset.chunks, strict=True))
            expected = int(np.prod([*blocks], dtype=np.int64))
            stored = dataset.id.get_num_chunks()
            if stored != expected:
                raise self.error(
                    f"`{name}` has {stored} of {expected} blocks; the file is damaged or was not "
                    "completely written"
                )
        return dataset

    def group(self, name: str, attributes: dict[str, object]) -> None:
        """Check that a group `name` exists and has these attributes, texts or lists."""
        group = self._member(name)
        with self.reporting(name):
            if not isinstance(group, h5py.Group):
                raise self.error(f"`{name}` must be a group, not a dataset")
            for key, wanted in attributes.items():
                if key not in group.attrs:
                    raise self.error(f"the group `{name}` has no attribute `{key}`")
                value = group.attrs[key]
                found = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
                if found != wanted:
                    raise self.error(
                        f"attribute `{key}` of `{name}` must be {wanted} (got {found})"
                    )

    def _member(self, name: str) -> h5py.Dataset | h5py.Group:
        inside, _, last = name.rpartition("/")
        with self.reporting(name):
            group = self._file[inside] if inside else self._file
            if last not in group:
                has = ", ".join(sorted(group)) or "nothing"
                what = f"`{inside}` has: {has}" if inside else f"it has {has}"
                raise self.error(f"no dataset `{name}` ({what})")
            for part, parent in ((inside, self._file), (last, group)):
                # Through a link HDF5 would read data that our checksums do not cover.
                if part and parent.get(part, getlink=True).__class__ is not h5py.HardLink:
                    raise self.error(f"`{name}` is a link, and must lie in the file itself")
            return group[last]

    @contextmanager
    def reporting(self, name: str = "") -> Iterator[None]:
        """Turn any error of HDF5 for a missing or damaged file into an InputError."""
        with reporting(self.path, self.fix, name):
            yield

    def error(self, what: str) -> InputError:
        """The error that says what is wrong with this file."""
        return InputError(f"{self.path}: {what}; {self.fix}")


@contextmanager
def reporting(path: Path, fix: str, name: str = "") -> Iterator[None]:
    """Turn any error from a missing or damaged file into an InputError; `name` is the dataset."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, but {META_FILE} lists it; {fix}") from None
    except PermissionError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        # h5py raises each of these for some kind of damaged metadata.
        if "filter returned failure" in str(error):
            what = f"checksum of a block of `{name}` does not match; the file is damaged"
        else:
            what = f"HDF5 cannot read it ({error}); the file is damaged or not an HDF5 file"
        raise InputError(f"{path}: {what}; {fix}") from error


def check_whole(path: Path, listed: Shard | SideFile, checksum: bool, fix: str) -> None:
    """Raise InputError unless the file has the size and, with `checksum`, the SHA-256 listed."""
    with reporting(path, fix):
        size_bytes = path.stat().st_size
    if size_bytes != listed.bytes:
        what = "is empty" if size_bytes == 0 else f"has {size_bytes} bytes"
        raise InputError(f"{path}: the file {what}, {META_FILE} says {listed.bytes} bytes; {fix}")
    if not checksum:
        return
    with reporting(path, fix):
        found = sha256_of(path)
    if found != listed.sha256:
        raise InputError(
            f"{path}: the SHA-256 {found[:12]}... is not that of {META_FILE}, "
            f"{listed.sha256[:12]}...; the file is damaged or was changed; {fix}"
        )

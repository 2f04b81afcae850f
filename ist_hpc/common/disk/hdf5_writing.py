"""Writes HDF5 so that a failed write, for example on a full disk, is an error that can be handled.

HDF5 writes much of a file as it closes it. If the system refuses a write then, h5py cannot
raise: it prints, continues, and often crashes. So HDF5 gets an object that remembers the
first refusal and accepts everything after it; the refusal is raised when the file is closed.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import h5py

# The file format of HDF5 1.10 (2016), the oldest with a checksum on important metadata: in older
# ones a flipped bit in the index of the chunks can put a chunk in the place of another.
_FORMAT = ("v110", "v110")


class _Sink(io.RawIOBase):
    """A file for h5py's `fileobj` driver that never fails; `refusal` has the first failure."""

    def __init__(self, file: io.FileIO) -> None:
        super().__init__()
        self._file = file
        self.refusal: OSError | None = None

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if self.refusal is None:
            try:
                return self._file.readinto(buffer)
            except OSError as error:
                self.refusal = error
        buffer[:] = bytes(len(buffer))
        return len(buffer)

    def write(self, data: memoryview) -> int:  # type: ignore[override]
        size, view = len(data), memoryview(data)
        while self.refusal is None and view:
            try:
                view = view[self._file.write(view) :]
            except OSError as error:
                self.refusal = error
        return size

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def truncate(self, size: int | None = None) -> int:
        if self.refusal is None:
            try:
                return self._file.truncate(size)
            except OSError as error:
                self.refusal = error
        return size or 0

    def flush(self) -> None:
        """Do nothing: this object does not buffer."""

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


class Hdf5Output:
    """A new HDF5 file, to be ended by `close` or `abandon`.

    file         the file to write into; never reports a full disk: `check` and `close` do
    cache_bytes  bytes of blocks that HDF5 caches for each dataset; None: its default

    Raises OSError, with the file's name, if it cannot be made.
    """

    def __init__(self, path: Path, cache_bytes: int | None = None) -> None:
        self._path = path
        self._raw = io.FileIO(path, "w+")
        self._sink = _Sink(self._raw)
        try:
            self.file = h5py.File(self._sink, "w", libver=_FORMAT, rdcc_nbytes=cache_bytes)
        except BaseException:
            self._raw.close()
            self.check()
            raise

    def check(self) -> None:
        """Raise OSError, with the file's name, if a write has failed so far."""
        if self._sink.refusal is not None:
            refusal = self._sink.refusal
            raise OSError(refusal.errno, refusal.strerror, str(self._path)) from None

    def close(self) -> None:
        """Close the file; raise OSError, with its name, if a write has failed."""
        try:
            self.file.close()
        except Exception:
            self.check()  # an error of HDF5 itself says less
            raise
        finally:
            self._raw.close()
        self.check()

    def abandon(self) -> None:
        """Close the file, whatever state it is in; it is about to be removed."""
        with suppress(OSError, RuntimeError):
            self.close()


@contextmanager
def written(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file at `path`, closed when the context ends.

    Raises OSError, with the file's name, if any of it could not be written.
    """
    output = Hdf5Output(path)
    try:
        yield output.file
    except BaseException as error:
        output.abandon()
        if isinstance(error, Exception):
            output.check()
        raise
    output.close()

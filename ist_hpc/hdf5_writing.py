"""Writing HDF5 so that a failed write, on a full disk say, is an error that can be answered.

HDF5 writes much of a file as it closes it. When the system refuses a write then, h5py cannot
raise: it prints, goes on, and often crashes. So HDF5 is given an object that takes note of the
first refusal and accepts everything after it; the refusal is raised when the file is closed.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py


class _Sink(io.RawIOBase):
    """A file as h5py's `fileobj` driver wants it, which never fails; `refusal` says if it did."""

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
        """Nothing is kept back here."""

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


@contextmanager
def written(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file at `path`, closed when the context ends.

    Raises OSError, with the file's name, if any of it could not be written.
    """
    with io.FileIO(path, "w+") as file:
        sink = _Sink(file)
        try:
            with h5py.File(sink, "w", libver=("v110", "v110")) as hdf5:
                yield hdf5
        except Exception:
            _raise_refusal(sink, path)  # what HDF5 made of it is of no use
            raise
        _raise_refusal(sink, path)


def _raise_refusal(sink: _Sink, path: Path) -> None:
    if sink.refusal is not None:
        refusal = sink.refusal
        raise OSError(refusal.errno, refusal.strerror, str(path)) from None

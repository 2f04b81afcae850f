"""Standard streams other than a terminal: closed, full, unread, or unable to show a character.

If one of them fails, Python ends with a traceback or silently, even in the middle of a run that is
worth more than its lines. A command calls `mend` first; then no `print`, log line or progress bar
raises, and `unwritten` reports at the end what was lost.
"""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from ist_hpc.common.disk.names import ENCODING_ERRORS


class ReaderGone(BaseException):
    """Nobody reads the printed lines any more; raised within `only_printing`."""


class Output(io.TextIOWrapper):
    """A standard stream that keeps its failures instead of raising them.

    failure  the first failure; None if everything was written
    """

    failure: OSError | None = None
    is_closed = False
    raises_reader_gone = False

    def write(self, text: str) -> int:
        """Write, or discard what cannot be written."""
        if self.is_closed and text:
            self._failed(OSError(errno.EBADF, "it is closed"))
        try:
            super().write(text)
        except OSError as error:
            self._failed(error)
        return len(text)

    def flush(self) -> None:
        """Flush, or discard what cannot be written."""
        try:
            super().flush()
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        if self.failure is None:
            self.failure = error
            # Later writes go nowhere, and so does the buffer.
            with suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.fileno())
                os.close(nowhere)
        if self.raises_reader_gone and isinstance(error, BrokenPipeError):
            raise ReaderGone


def mend() -> None:
    """Change the standard streams of this process so that writing to them never raises. Local.

    A closed one is first opened on /dev/null: otherwise the next file opened, such as a checkpoint,
    would get its number, and libraries would print into it.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, mode)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
    sys.stdout = _mended(sys.stdout, 1)
    sys.stderr = _mended(sys.stderr, 2)


def _mended(stream: Any, number: int) -> Output:
    if isinstance(stream, Output):
        return stream
    if not isinstance(stream, io.TextIOWrapper):  # Python has no stream for a closed one
        output = Output(open(number, "wb", closefd=False), "utf-8", ENCODING_ERRORS)  # noqa: SIM115
        output.is_closed = True
        return output
    if not os.get_blocking(number):  # another program set it non-blocking; writing would fail
        os.set_blocking(number, True)
    encoding, lines, through = stream.encoding, stream.line_buffering, stream.write_through
    return Output(
        stream.detach(), encoding, ENCODING_ERRORS, line_buffering=lines, write_through=through
    )


def complain(text: str) -> None:
    """Write an important line to stderr, or to stdout if stderr is closed. Local."""
    error: TextIO = sys.stderr
    if isinstance(error, Output) and error.is_closed:
        error = sys.stdout
    print(text, file=error, flush=True)


@contextmanager
def only_printing() -> Iterator[None]:
    """A block that only prints: it ends when nobody reads any more (`... | head`)."""
    output = cast(Any, sys.stdout)
    try:
        output.raises_reader_gone = isinstance(output, Output)
        yield
        sys.stdout.flush()
    except ReaderGone:
        pass
    finally:
        if isinstance(output, Output):
            output.raises_reader_gone = False


def unwritten() -> str:
    """Why printed lines were lost; empty if none were, or if their reader has left."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    failure = getattr(sys.stdout, "failure", None)
    if failure is None or isinstance(failure, BrokenPipeError):
        return ""
    return f"cannot write to standard output: {failure.strerror}"

"""Standard streams that are no terminal's: closed, full, unread, or unable to show a character.

Python ends with a traceback, or without a word, where one of them fails; in the middle of a run
that is worth more than its lines. A command calls `mend` first; then no `print`, log line or
progress bar raises, and `unwritten` says at the end what became of them.
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
    """Nobody reads what is printed any more; raised within `only_printing`."""


class Output(io.TextIOWrapper):
    """A standard stream whose failures are kept, and not raised.

    failure  the first; None if all that was written has gone where it should
    """

    failure: OSError | None = None
    is_closed = False
    raises_reader_gone = False

    def write(self, text: str) -> int:
        """Write, or forget what nobody will have."""
        if self.is_closed and text:
            self._failed(OSError(errno.EBADF, "it is closed"))
        try:
            super().write(text)
        except OSError as error:
            self._failed(error)
        return len(text)

    def flush(self) -> None:
        """Flush, or forget what nobody will have."""
        try:
            super().flush()
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        if self.failure is None:
            self.failure = error
            # What is written next goes nowhere, as does what is in the buffer.
            with suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.fileno())
                os.close(nowhere)
        if self.raises_reader_gone and isinstance(error, BrokenPipeError):
            raise ReaderGone


def mend() -> None:
    """Make the standard streams of this process such that writing to them never raises. Local.

    A closed one is opened on /dev/null first: else the next file that is opened, a checkpoint say,
    would have its number, and what libraries print would go into it.
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
    if not isinstance(stream, io.TextIOWrapper):  # Python has none for one that was closed
        output = Output(open(number, "wb", closefd=False), "utf-8", ENCODING_ERRORS)  # noqa: SIM115
        output.is_closed = True
        return output
    if not os.get_blocking(number):  # shared with a program that left it so; writing would fail
        os.set_blocking(number, True)
    encoding, lines, through = stream.encoding, stream.line_buffering, stream.write_through
    return Output(
        stream.detach(), encoding, ENCODING_ERRORS, line_buffering=lines, write_through=through
    )


def complain(text: str) -> None:
    """Write a line that nobody should miss to stderr, or to stdout if stderr is closed. Local."""
    error: TextIO = sys.stderr
    if isinstance(error, Output) and error.is_closed:
        error = sys.stdout
    print(text, file=error, flush=True)


@contextmanager
def only_printing() -> Iterator[None]:
    """A block that does nothing but print: it ends when nobody reads any more (`... | head`)."""
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
    """Why what was printed is not where it should be; empty if it is, or if its reader has left."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    failure = getattr(sys.stdout, "failure", None)
    if failure is None or isinstance(failure, BrokenPipeError):
        return ""
    return f"cannot write to standard output: {failure.strerror}"

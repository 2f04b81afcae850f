"""A data file of the Extreme Classification Repository, a block of lines at a time."""

from collections.abc import Iterator
from dataclasses import replace
from typing import BinaryIO

from ist_hpc.common.errors import InputError
from ist_hpc.prepare.file_kinds import UTF8_MARK
from ist_hpc.prepare.found import PADDING, head_of, refused
from ist_hpc.prepare.xmc.block import Block
from ist_hpc.prepare.xmc.line import LineError, parse_header, shown
from ist_hpc.prepare.xmc.text import parse_block

BLOCK_BYTES = 1 << 20  # its arrays, about 20 times as large, mostly stay in the caches

_MOST_LINE_BYTES = 16 << 20
_MOST_HEADER_BYTES = 1000
_MOST_NAMED = 5  # malformed lines in `first_malformed`


class Source:
    """Reads a data file once; memory is bounded by a block, or by the longest line.

    `header` is line 1. `malformed` counts the lines left out, if that is allowed, and
    `first_malformed` has the messages of the first five.
    """

    def __init__(
        self,
        file: BinaryIO,
        name: str,
        *,
        skip_malformed: bool = False,
        block_bytes: int | None = None,
    ) -> None:
        """Read line 1 of `file`, which messages call `name`. Raises InputError, OSError."""
        self.name = name
        self.malformed = 0
        self.first_malformed: list[str] = []
        self._file = file
        self._skip_malformed = skip_malformed
        self._block_bytes = block_bytes or BLOCK_BYTES
        self._lines = 1
        self._head = head_of(file)
        if self._head.startswith(UTF8_MARK):
            file.seek(len(UTF8_MARK))
        line = file.readline(_MOST_HEADER_BYTES)
        try:
            self.header = parse_header(line.removesuffix(b"\n").removesuffix(b"\r"))
        except LineError as error:
            raise self.refused(str(error), line=1) from error

    def refused(self, problem: str, line: int | None = None) -> InputError:
        """The error for the contents of this file; see `found.refused`."""
        return refused(self.name, problem, self._head, line, own="text")

    def blocks(self) -> Iterator[Block]:
        """The samples in the order of the file; `rows` are numbers of samples in it, from 0.

        Raises InputError that names the line: for a file with fewer samples than line 1 says, and,
        unless such lines are left out, for a malformed line or more samples. Raises OSError.
        """
        for text in self._texts():
            first = self._lines - 1
            lines = text.count(b"\n")
            room = max(0, self.header.rows - first)
            if lines > room:
                text, extra = _cut(text, room)
            else:
                extra = b""
            if text:
                block = parse_block(text, self.header)
                for line, message in block.errors:
                    self._leave_out(first + line + 2, message)
                if len(block.rows):
                    yield replace(block, rows=block.rows + first)
            if extra:
                self._refuse_extra(extra, first + room)
            self._lines += lines
        if self._lines - 1 < self.header.rows:
            raise self.refused(
                f"line 1 says {self.header.rows} samples, but the file ends after "
                f"{self._lines - 1}; it is cut short, or line 1 is wrong",
                self._lines,
            )

    def _refuse_extra(self, extra: bytes, sample: int) -> None:
        """Leave out the lines after the last sample that line 1 announces, or raise.

        Empty lines are allowed.
        """
        lines = extra.split(b"\n")[:-1]
        strange = [place for place, line in enumerate(lines) if line.strip(PADDING)]
        if strange:
            got = shown(lines[strange[0]])
            message = f"line 1 says {self.header.rows} samples, but here is one more (got {got})"
            self._leave_out(sample + strange[0] + 2, message, len(strange))

    def _leave_out(self, line: int, message: str, count: int = 1) -> None:
        if not self._skip_malformed:
            fix = "correct it, or leave such lines out (--skip-malformed)"
            raise self.refused(f"{message}; {fix}", line)
        self.malformed += count
        if len(self.first_malformed) < _MOST_NAMED:
            self.first_malformed.append(f"{self.name}, line {line}: {message}")

    def _texts(self) -> Iterator[bytes]:
        """The rest of the file in blocks of whole lines, each with its line end."""
        held: list[bytes] = []  # the beginning of a line
        held_bytes = 0
        while data := self._file.read(self._block_bytes):
            cut = data.rfind(b"\n") + 1
            if cut:
                yield b"".join((*held, data[:cut]))
                held, held_bytes = [], 0
            rest = data[cut:]
            zeros = not rest.strip(b"\0") and not any(part.strip(b"\0") for part in held)
            if held_bytes and zeros:
                continue  # a file filled up with zeros, however many
            held.append(rest)
            held_bytes += len(rest)
            if held_bytes > _MOST_LINE_BYTES:
                raise self.refused(
                    f"a line is longer than {_MOST_LINE_BYTES >> 20} MiB; "
                    "is it a data file of the repository?"
                )
        if held_bytes:
            yield b"".join((*held, b"\n"))


def _cut(text: bytes, lines: int) -> tuple[bytes, bytes]:
    """The first `lines` lines of `text`, and what follows them."""
    end = 0
    for _ in range(lines):
        end = text.index(b"\n", end) + 1
    return text[:end], text[end:]

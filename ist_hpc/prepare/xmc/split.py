"""Split files: which samples of a data file are train rows, and which are test rows.

A line of a split file has a sample's number, counted from 1, for each of the published splits.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ist_hpc.prepare.file_kinds import UTF8_MARK
from ist_hpc.prepare.found import PADDING, UnusableError, head_of, opened, refused
from ist_hpc.prepare.xmc.line import PLAIN, VALUE, shown

_UNUSED, _TRAIN, _TEST = range(3)
_MOST_DIGITS = 40  # of a number in a split file, with its fraction


@dataclass(frozen=True)
class Split:
    """The part that each sample of the data file belongs to, uint8 [samples]."""

    parts: npt.NDArray[np.uint8]

    def rows(self, split: str) -> int:
        """Number of samples of "train" or "test"."""
        return int((self.parts == _PART_OF[split]).sum())

    @property
    def unused(self) -> int:
        """Number of samples in neither."""
        return int((self.parts == _UNUSED).sum())

    def select(self, split: str, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Positions in `rows` (numbers of samples from 0) of the rows that belong to `split`."""
        return np.flatnonzero(self.parts[rows] == _PART_OF[split])


_PART_OF = {"train": _TRAIN, "test": _TEST}


def read_split(train: Path, test: Path, column: int, samples: int) -> Split:
    """The split in column `column`, from 1, of both files; 9 bytes per sample.

    Raises InputError that names file and line, for anything but numbers from 1 to `samples`, each
    in one line of one of the files.
    """
    parts = np.zeros(samples, dtype=np.uint8)
    for path, part in ((train, _TRAIN), (test, _TEST)):
        numbers = _read_column(path, column, samples)
        before = parts[numbers]
        parts[numbers] = part
        order = np.argsort(numbers, kind="stable")
        again = order[1:][numbers[order[1:]] == numbers[order[:-1]]]
        if len(again):
            line = int(again.min())
            raise refused(
                path,
                f"sample {numbers[line] + 1} is there twice (column {column})",
                line=line + 1,
            )
        if before.any():
            line = int(np.flatnonzero(before)[0])
            raise refused(
                path,
                f"sample {numbers[line] + 1} is a train row already, in {train}; no sample may be "
                "both",
                line=line + 1,
            )
    return Split(parts)


def _read_column(path: Path, column: int, samples: int) -> npt.NDArray[np.int64]:
    """The numbers of one column, counted from 0; int64 [lines].

    Whole numbers may be written as NumPy writes them, such as 3.000e+00.
    """
    numbers: list[int] = []
    blank = 0  # the first of the empty lines at the end
    try:
        with opened(path) as file:
            head = head_of(file)
            for line, text in enumerate(file, start=1):
                content = text.removeprefix(UTF8_MARK) if line == 1 else text
                content = content.strip(PADDING)
                if not content:
                    blank = blank or line
                    continue
                fields = content.split()
                if blank:
                    raise refused(path, _too_few(column, b""), head, blank, own="text")
                if b"\r" in content:
                    alone = (
                        "its lines end with CR alone" if PLAIN.fullmatch(content) else "a CR in it"
                    )
                    fix = "write each line anew with LF, or CR LF, at its end"
                    raise refused(path, f"{alone}; {fix}", head, line, own="text")
                if len(fields) < column:
                    raise refused(path, _too_few(column, content), head, line, own="text")
                number = _number(fields[column - 1])
                if number is None or not 1 <= number <= samples:
                    raise refused(
                        path,
                        f"a sample's number must be a whole one, 1 to {samples}, as line 1 of "
                        f"--data says (got {shown(fields[column - 1])})"
                        f"{_about(fields[column - 1], number)}",
                        head,
                        line,
                        own="text",
                    )
                if len(numbers) == samples:
                    raise refused(
                        path, f"more lines than the {samples} samples of --data", line=line
                    )
                numbers.append(number - 1)
    except UnusableError as error:
        raise refused(path, str(error)) from error
    except OSError as error:
        raise refused(path, f"cannot be read ({error.strerror})") from error
    if not numbers:
        raise refused(
            path, "has no numbers; it must have those of samples, one a line", head, own="text"
        )
    return np.array(numbers, dtype=np.int64)


def _too_few(column: int, content: bytes) -> str:
    return (
        f"must have {column} or more numbers, one of each split (got {shown(content)}); see "
        "--split-column"
    )


def _number(field: bytes) -> int | None:
    """The whole number in a text; None for anything else, and for too many digits."""
    if len(field) > _MOST_DIGITS or not VALUE.fullmatch(field):
        return None
    if field.isdigit():
        return int(field)
    number = float(field)
    return int(number) if number.is_integer() else None


def _about(field: bytes, number: int | None) -> str:
    if number == 0:
        return "; samples count from 1"
    if b"," in field or b";" in field:
        return "; part columns by blanks"
    return "; comments are not allowed: remove them" if field.startswith(b"#") else ""

"""Split files: which samples of one data file are train rows, and which are test rows.

A line of a split file has a sample's number, counted from 1, for each of the published splits.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ist_hpc.errors import InputError
from ist_hpc.prepare.xmc_line import shown

_UNUSED, _TRAIN, _TEST = range(3)


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
        """Positions in `rows`, numbers of samples from 0, of those that belong to `split`."""
        return np.flatnonzero(self.parts[rows] == _PART_OF[split])


_PART_OF = {"train": _TRAIN, "test": _TEST}


def read_split(train: Path, test: Path, column: int, samples: int) -> Split:
    """The split in column `column`, from 1, of both files; 9 bytes a sample.

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
            raise InputError(
                f"{path}, line {line + 1}: sample {numbers[line] + 1} is there twice "
                f"(column {column})"
            )
        if before.any():
            line = int(np.flatnonzero(before)[0])
            raise InputError(
                f"{path}, line {line + 1}: sample {numbers[line] + 1} is a train row already, "
                f"in {train}; no sample may be both"
            )
    return Split(parts)


def _read_column(path: Path, column: int, samples: int) -> npt.NDArray[np.int64]:
    """The numbers of one column, counted from 0; int64 [lines]."""
    numbers: list[int] = []
    try:
        with path.open("rb") as file:
            for line, text in enumerate(file, start=1):
                fields = text.split()
                if len(fields) < column:
                    raise InputError(
                        f"{path}, line {line}: must have {column} or more numbers, one of each "
                        f"split (got {shown(text.strip())}); see --split-column"
                    )
                field = fields[column - 1]
                # isdigit of bytes knows ASCII digits only; int refuses some thousand of them.
                number = int(field) if field.isdigit() and len(field) < 20 else 0
                if not 1 <= number <= samples:
                    raise InputError(
                        f"{path}, line {line}: a sample's number must be 1 to {samples}, as line 1 "
                        f"of --data says (got {shown(field)})"
                    )
                if len(numbers) == samples:
                    raise InputError(
                        f"{path}, line {line}: more lines than the {samples} samples of --data"
                    )
                numbers.append(number - 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if not numbers:
        raise InputError(f"{path}: is empty; it must have the numbers of samples, one a line")
    return np.array(numbers, dtype=np.int64)

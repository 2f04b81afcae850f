"""Whole blocks of the Extreme Classification Repository's text format, by vectorised numpy.

`line` has the grammar and decides about every line that is unusual here, so both return the same
rows and refuse the same lines.
"""

import numpy as np
import numpy.typing as npt

from ist_hpc.data.csr import Csr, concatenate
from ist_hpc.prepare.xmc.block import Block, Integers
from ist_hpc.prepare.xmc.line import Header, LineError, Sample, parse_line
from ist_hpc.prepare.xmc.runs import Runs


def parse_block(text: bytes, header: Header) -> Block:
    """The samples of `text`: whole lines, each with its line end, LF or CRLF.

    Features and labels are sorted within their row. Raises nothing for any bytes: malformed lines
    are in `errors`.
    """
    assert text.endswith(b"\n")
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n")
    found = Runs(text).parse(header)
    if isinstance(found, Block):
        return found
    return _with_lines_by_the_book(text, found, header)


def _with_lines_by_the_book(text: bytes, doubtful: Integers, header: Header) -> Block:
    """The block, with its lines `doubtful` parsed by `parse_line`."""
    lines = text.split(b"\n")[:-1]
    is_doubtful = np.zeros(len(lines), dtype=bool)
    is_doubtful[doubtful] = True
    parsed: dict[int, Sample] = {}
    errors = []
    for line in np.flatnonzero(is_doubtful).tolist():
        try:
            parsed[line] = parse_line(lines[line], header)
        except LineError as error:
            errors.append((line, str(error)))
    others = np.flatnonzero(~is_doubtful)
    features, labels = _samples(list(parsed.values()), header)
    repeated = sum(sample.repeated_labels for sample in parsed.values())
    rows = np.array(list(parsed), dtype=np.int64)
    if len(others):
        rest = parse_block(b"".join(lines[line] + b"\n" for line in others.tolist()), header)
        features = concatenate([rest.features, features])
        labels = concatenate([rest.labels, labels])
        repeated += rest.repeated_labels
        rows = np.concatenate([others[rest.rows], rows])
        errors += [(int(others[line]), message) for line, message in rest.errors]
    order = np.argsort(rows)
    return Block(
        len(lines), rows[order], features.take(order), labels.take(order), repeated, sorted(errors)
    )


def _samples(samples: list[Sample], header: Header) -> tuple[Csr, Csr]:
    indices = np.array([i for sample in samples for i in sample.indices], dtype=np.int32)
    values = _as_float32([value for sample in samples for value in sample.values])
    labels = np.array([label for sample in samples for label in sample.labels], dtype=np.int32)
    starts = _indptr([len(sample.indices) for sample in samples])
    label_starts = _indptr([len(sample.labels) for sample in samples])
    return (
        Csr(starts, indices, values, header.features),
        Csr(label_starts, labels, None, header.labels),
    )


def _indptr(lengths: list[int]) -> Integers:
    return np.cumsum([0, *lengths], dtype=np.int64)


def _as_float32(values: list[float]) -> npt.NDArray[np.float32]:
    return np.array(values, dtype=np.float64).astype(np.float32)

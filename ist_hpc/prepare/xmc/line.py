"""One line of the Extreme Classification Repository's text format, by the book.

    N D L                       line 1: how many samples, features and labels
    3,17,4 0:0.5 12:1e-3        each further line is a sample: labels, then features, all from 0
     7:1                        no labels: the line begins with a blank, or with a feature

Blanks (spaces or tabs) separate fields. Only ASCII digits count. This module decides which lines
are well-formed and names the error in others; `text` reads whole blocks at speed and calls this
module for every line that it cannot judge for certain.
"""

import re
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

MOST_INDICES = 2**31 - 1  # indices are int32 in the shards
MOST_ROWS = 2**53
VALUE = re.compile(rb"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")

_BLANKS = re.compile(rb"[ \t]+")
_DIGITS = re.compile(rb"[0-9]+")
PLAIN = re.compile(rb"[\t\r -~]*")
"""A line of ASCII alone."""
_NO_BREAK = re.compile(rb"\xc2\xa0|\xa0|\xe2\x80\xaf")
_DECIMAL_COMMA = re.compile(rb"[+-]?[0-9]*,[0-9]+(?:[eE][+-]?[0-9]+)?")
_ODD_NUMBERS = re.compile(rb"[0-9.,eE+ \t;_']*")
_MOST_SHOWN = 40  # characters of the input in a message


class LineError(ValueError):
    """A malformed line; the message says what it has and what is allowed, not where."""


@dataclass(frozen=True)
class Header:
    """Line 1: the samples of the file, the width of a row, the number of labels."""

    rows: int
    features: int
    labels: int


@dataclass(frozen=True)
class Sample:
    """A line: label set and features, both ascending, and the number of repeated labels."""

    labels: list[int]
    indices: list[int]
    values: list[float]
    repeated_labels: int


def parse_header(line: bytes) -> Header:
    """Line 1 without its line end. Raises LineError."""
    fields = [field for field in _BLANKS.split(line) if field]
    if len(fields) != 3 or not all(map(_DIGITS.fullmatch, fields)):
        raise LineError(
            "must be `N D L`, the numbers of samples, features and labels "
            f"(got {shown(line)}); {_about_header(line)}"
        )
    limits = {"samples": MOST_ROWS, "features": MOST_INDICES, "labels": MOST_INDICES}
    sizes = []
    for field, (what, most) in zip(fields, limits.items(), strict=True):
        size = _bounded(field, most)
        if size is None or size == 0:
            raise LineError(f"the number of {what} must be 1 to {most} (got {shown(field)})")
        sizes.append(size)
    return Header(*sizes)


def _about_header(line: bytes) -> str:
    """The error in a line 1, as far as it can be determined, and the fix."""
    if b"\r" in line and PLAIN.fullmatch(line):
        return (
            "its lines end with CR alone or twice; write them anew with LF, or CR LF, at each end"
        )
    if line.startswith(b"#"):
        return "it is a comment, which is not allowed; remove the lines that begin with #"
    if b":" in line:
        return "it is a sample already; put a line with the three numbers before it"
    if _NO_BREAK.search(line):
        return "it has a non-breaking space; write a plain one"
    if not line.strip():
        return "remove the blank line"
    if _ODD_NUMBERS.fullmatch(line):
        return "write whole numbers, in digits alone, with blanks between"
    return "is it a data file of the repository?"


def parse_line(line: bytes, header: Header) -> Sample:
    """A sample's line without its line end. Raises LineError."""
    fields = _BLANKS.split(line)
    # A first field with a colon is a feature: a line without labels that lost its leading blank.
    first = fields.pop(0) if b":" not in fields[0] else b""
    labels = [_label(text, header) for text in first.split(b",")] if first else []
    entries = [_entry(field, header) for field in fields if field]
    entries.sort(key=lambda entry: entry[0])
    indices = [index for index, _ in entries]
    for index, following in pairwise(indices):
        if index == following:
            raise LineError(f"feature {index} is there twice; a feature has one value")
    distinct = sorted(set(labels))
    values = [value for _, value in entries]
    return Sample(distinct, indices, values, len(labels) - len(distinct))


def shown(text: bytes) -> str:
    """The beginning of `text` in quotes, with anything but printable ASCII escaped."""
    more = "..." if len(text) > _MOST_SHOWN else ""
    return ascii(text[:_MOST_SHOWN])[1:] + more


def _fits(value: float) -> bool:
    """Whether float32 can hold `value`, rounded, without becoming infinite."""
    with np.errstate(over="ignore"):
        return bool(np.isfinite(np.float32(value)))


def _bounded(digits: bytes, most: int) -> int | None:
    """The number, or None if it is greater than `most`."""
    digits = digits.lstrip(b"0")
    # int() refuses some thousand digits.
    if len(digits) > len(str(most)):
        return None
    number = int(digits or b"0")
    return number if number <= most else None


def _index(text: bytes, what: str, count: int, field: bytes) -> int:
    if not _DIGITS.fullmatch(text):
        raise LineError(
            f"a {what} must be a whole number, 0 to {count - 1} (got {shown(field)})"
            f"{_about_index(text)}"
        )
    index = _bounded(text, count - 1)
    if index is None:
        hint = "; do the indices count from 1?" if _bounded(text, count) == count else ""
        raise LineError(
            f"a {what} must be 0 to {count - 1}, as line 1 says (got {shown(field)}){hint}"
        )
    return index


def _about_index(text: bytes) -> str:
    if text == b"qid":
        return "; it is of ranking data: remove the qid"
    if text.startswith(b"#"):
        return "; comments are not allowed: remove them"
    if VALUE.fullmatch(text) and float(text).is_integer():
        return "; write it in digits alone"
    return "; it has a non-breaking space" if _NO_BREAK.search(text) else ""


def _about_value(text: bytes) -> str:
    if _DECIMAL_COMMA.fullmatch(text):
        return "; write a decimal point, not a comma"
    return "; it has a non-breaking space" if _NO_BREAK.search(text) else ""


def _label(text: bytes, header: Header) -> int:
    if not text:
        raise LineError("a label is missing beside a comma; labels are `l1,l2,...` without blanks")
    return _index(text, "label", header.labels, text)


def _entry(field: bytes, header: Header) -> tuple[int, float]:
    before, colon, after = field.partition(b":")
    if not colon:
        comment = "; comments are not allowed: remove them" if field.startswith(b"#") else ""
        raise LineError(
            f"a feature must be `index:value` (got {shown(field)}, without a colon){comment}"
        )
    index = _index(before, "feature index", header.features, field)
    if not VALUE.fullmatch(after):
        raise LineError(
            f"a feature's value must be a finite number (got {shown(field)}){_about_value(after)}"
        )
    value = float(after)
    if not _fits(value):
        raise LineError(f"a feature's value must fit into float32 (got {shown(field)})")
    return index, value

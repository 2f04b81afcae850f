"""Numbers of a text, read all at once from the runs of its digits.

Everything but a digit ends a run of digits. The bytes that end a run and the next one, and whether
there are digits between, determine the run: a label, a feature's index, the whole part of its value
or the fraction. All runs become numbers eight digits at a time, in 64-bit words (D. Lemire,
"Number parsing at a gigabyte per second", Software: Practice and Experience 51, 2021, section 3);
a value is its digits as a whole number divided by a power of ten. Both are exact in float64 up to
2^53 and 10^22, so the quotient is the one that `float` rounds to (W. Clinger, "How to read
floating point numbers accurately", PLDI 1990); other values go to `float` one by one.
"""

import re

import numpy as np
import numpy.typing as npt

from ist_hpc.prepare.xmc.block import Block, Entries, Integers, sorted_block
from ist_hpc.prepare.xmc.line import VALUE, Header

_NEWLINE, _BLANK, _COMMA, _COLON, _DOT, _MINUS, _OTHER = range(7)
_BAD, _NOTHING, _LABEL, _INDEX, _PART = range(5)

_VALUES = re.compile(rb"(?:" + VALUE.pattern + rb" )*+")

_FRONT = 16  # bytes before the text, so that two words can end at its first run
_WORD = 8  # digits
_MOST_DIGITS = 2 * _WORD  # in a run that this module reads
_MOST_MANTISSA_DIGITS = 19  # fewer than 2^64
_EXACT = 2**53
_TENS = np.array([10**k for k in range(_MOST_DIGITS + 1)], dtype=np.uint64)
_TENS_FLOAT = _TENS.astype(np.float64)


def _classes() -> npt.NDArray[np.uint8]:
    classes = np.full(256, _OTHER, dtype=np.uint8)
    classes[list(b" \t")] = _BLANK
    for byte, kind in ((b"\n", _NEWLINE), (b",", _COMMA), (b":", _COLON), (b".", _DOT)):
        classes[byte[0]] = kind
    classes[b"-"[0]] = _MINUS
    return classes


def _kinds() -> npt.NDArray[np.uint8]:
    """What a run is, by (byte before, byte after, whether it has digits); see `Runs`."""
    kinds = np.zeros((8, 8, 2), dtype=np.uint8)
    for end in (_NEWLINE, _BLANK):
        kinds[_NEWLINE, end] = kinds[_BLANK, end] = _NOTHING, _BAD
        kinds[_NEWLINE, end, 1] = kinds[_COMMA, end, 1] = _LABEL
        kinds[_COLON, end, 1] = kinds[_MINUS, end, 1] = _PART
        kinds[_DOT, end] = _PART
    kinds[_NEWLINE, _COMMA, 1] = kinds[_COMMA, _COMMA, 1] = _LABEL
    kinds[_NEWLINE, _COLON, 1] = kinds[_BLANK, _COLON, 1] = _INDEX
    kinds[_COLON, _DOT] = kinds[_MINUS, _DOT] = _PART
    kinds[_COLON, _MINUS, 0] = _NOTHING
    return kinds.reshape(-1)


_CLASS_OF_BYTE = _classes()
_KIND_OF_RUN = _kinds()


class Runs:
    """The runs of digits in a text, and the bytes that separate them.

    Run k lies between the marks k and k + 1; a mark is any byte other than a digit, and mark 0 a
    line end before the text.
    """

    def __init__(self, text: bytes) -> None:
        self._padded = b"".join((bytes(_FRONT - 1), b"\n", text))
        codes = np.frombuffer(self._padded, dtype=np.uint8)
        self._marks = np.flatnonzero((codes - np.uint8(ord("0"))) > 9)[_FRONT - 1 :]
        self._class = _CLASS_OF_BYTE.take(codes.take(self._marks))
        self._odd_colons = np.zeros(0, dtype=np.int64)
        self._odd_values: list[float] = []
        if self._class.max() == _OTHER:
            self._set_odd_values_aside()
        before, after = self._class[:-1], self._class[1:]
        self._lengths = np.diff(self._marks)
        self._lengths -= 1
        code = before << np.uint8(4)
        code |= after << np.uint8(1)
        code |= self._lengths > 0
        self._kinds = _KIND_OF_RUN.take(code)
        self._line_ends = np.flatnonzero(after == _NEWLINE)

    def parse(self, header: Header) -> Block | Integers:
        """The block, or the lines, ascending, that must be parsed by the book first."""
        bad = np.flatnonzero(self._kinds == _BAD)
        if len(bad):
            return self._lines_of(bad)
        numbers = self._numbers()
        label_runs = np.flatnonzero(self._kinds == _LABEL)
        labels = numbers.take(label_runs)
        wrong_labels = self._out_of_range(label_runs, labels, header.labels)
        index_runs = np.flatnonzero(self._kinds == _INDEX)
        indices = numbers.take(index_runs)
        values, wrong = self._values(index_runs, numbers)
        wrong |= self._out_of_range(index_runs, indices, header.features)
        if wrong.any() or wrong_labels.any():
            return self._lines_of(np.concatenate([index_runs[wrong], label_runs[wrong_labels]]))
        return sorted_block(
            header,
            Entries(indices, self._starts(index_runs)),
            values,
            Entries(labels, self._starts(label_runs)),
        )

    def _lines_of(self, runs: Integers) -> Integers:
        """The lines in which `runs` are; ascending, each once."""
        return np.unique(np.searchsorted(self._line_ends, runs))

    def _starts(self, runs: Integers) -> Integers:
        """Where each line's part of `runs` begins, and the end of the last: int64 [lines + 1]."""
        starts = np.zeros(len(self._line_ends) + 1, dtype=np.int64)
        starts[1:] = np.searchsorted(runs, self._line_ends, side="right")
        return starts

    def _out_of_range(
        self, runs: Integers, numbers: npt.NDArray[np.uint64], limit: int
    ) -> npt.NDArray[np.bool_]:
        wrong = numbers >= limit
        wrong |= self._lengths.take(runs) > _MOST_DIGITS
        return wrong

    def _set_odd_values_aside(self) -> None:
        """Read with `float` each value that has an exponent or a plus; forget the marks in it.

        A field with any other unknown byte keeps its marks, which makes its line bad.
        """
        ends_field = np.flatnonzero(self._class <= _BLANK)
        odd = np.flatnonzero(self._class == _OTHER)
        stops = ends_field[np.unique(np.searchsorted(ends_field, odd))]
        firsts = ends_field[np.searchsorted(ends_field, stops) - 1] + 1
        known = self._class[firsts] == _COLON
        firsts, stops = firsts[known], stops[known]
        values = [
            self._padded[begin:end]
            for begin, end in zip(
                (self._marks[firsts] + 1).tolist(), self._marks[stops].tolist(), strict=True
            )
        ]
        if not _VALUES.fullmatch(b" ".join((*values, b""))):
            good = [place for place, value in enumerate(values) if VALUE.fullmatch(value)]
            firsts, stops = firsts[good], stops[good]
            values = [values[place] for place in good]
        self._odd_values = [float(value) for value in values]
        self._odd_colons = self._marks[firsts]
        forget = np.zeros(len(self._marks), dtype=np.int8)
        forget[firsts + 1] = 1
        forget[stops] -= 1
        keep = np.cumsum(forget, dtype=np.int8) == 0
        self._marks, self._class = self._marks[keep], self._class[keep]

    def _numbers(self) -> npt.NDArray[np.uint64]:
        """Each run as a number, uint64; of runs longer than 16 digits the last 16."""
        ends, lengths = self._marks[1:], self._lengths
        windows = len(self._padded) - _WORD + 1
        words = np.ascontiguousarray(
            np.ndarray((windows,), dtype="<u8", buffer=self._padded, strides=(1,))
        )
        numbers = _eight_digits(words.take(ends - _WORD), lengths)
        long = np.flatnonzero(lengths > _WORD)
        if len(long):
            upper = _eight_digits(words.take(ends[long] - 2 * _WORD), lengths[long] - _WORD)
            numbers[long] += upper * np.uint64(10**_WORD)
        return numbers

    def _values(
        self, index_runs: Integers, numbers: npt.NDArray[np.uint64]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """The value after each index, float32, and where there is none that fits float32."""
        lengths = self._lengths
        whole_runs = index_runs + 1
        ends = self._class.take(whole_runs + 1)
        minus = np.flatnonzero(ends == _MINUS)
        if len(minus):
            whole_runs[minus] += 1
            ends[minus] = self._class.take(whole_runs[minus] + 1)
        has_dot = ends == _DOT
        fraction_runs = whole_runs + has_dot
        places = lengths.take(fraction_runs)
        places *= has_dot
        digits = lengths.take(whole_runs)
        digits += places
        unread = (digits > _MOST_MANTISSA_DIGITS) | (places > _MOST_DIGITS)
        nothing = digits == 0
        np.minimum(places, _MOST_DIGITS, out=places)
        mantissa = numbers.take(whole_runs)
        mantissa *= _TENS.take(places)
        fraction = numbers.take(fraction_runs)
        fraction *= has_dot
        mantissa += fraction
        unread |= mantissa >= _EXACT
        # A whole part alone of 17 to 19 digits is not in `numbers`.
        unread |= lengths.take(whole_runs) > _MOST_DIGITS
        exact = mantissa.astype(np.float64)
        exact /= _TENS_FLOAT.take(places)
        if len(minus):
            exact[minus] *= -1.0
        if len(self._odd_values):
            odd = np.searchsorted(self._marks.take(index_runs + 1), self._odd_colons)
            exact[odd] = self._odd_values
            unread[odd] = nothing[odd] = False
        if unread.any():
            self._read_one_by_one(np.flatnonzero(unread), index_runs, exact)
        with np.errstate(over="ignore"):
            values = exact.astype(np.float32)
        if len(self._odd_values) or unread.any():
            nothing |= ~np.isfinite(values)
        return values, nothing

    def _read_one_by_one(
        self, places: Integers, index_runs: Integers, exact: npt.NDArray[np.float64]
    ) -> None:
        colons = index_runs[places] + 1
        ends_field = np.flatnonzero(self._class <= _BLANK)
        stops = self._marks[ends_field[np.searchsorted(ends_field, colons)]].tolist()
        begins = self._marks[colons].tolist()
        for place, begin, stop in zip(places.tolist(), begins, stops, strict=True):
            exact[place] = float(self._padded[begin + 1 : stop])


def _eight_digits(words: npt.NDArray[np.uint64], lengths: Integers) -> npt.NDArray[np.uint64]:
    """The last `lengths` (8 at most count) bytes of each word, all digits, as a number.

    Overwrites `words` with the result.
    """
    unused = np.clip(_WORD - lengths, 0, _WORD).astype(np.uint64) << np.uint64(3)
    words >>= unused
    words <<= unused
    for mask, factor, shift in (
        (0x0F0F0F0F0F0F0F0F, 10 << 8 | 1, 8),
        (0x00FF00FF00FF00FF, 100 << 16 | 1, 16),
        (0x0000FFFF0000FFFF, 10000 << 32 | 1, 32),
    ):
        words &= np.uint64(mask)
        words *= np.uint64(factor)
        words >>= np.uint64(shift)
    return words

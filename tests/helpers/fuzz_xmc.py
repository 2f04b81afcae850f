"""Hostile text for the reader of `prepare xmc`.

    python tests/helpers/fuzz_xmc.py --cases 1000000 --seed 1

Every case is a file of a few lines, mutated or random. The reader, with blocks of a random size,
must give the rows and name the lines that a plain parser written apart from it does, and may raise
nothing but InputError. A failure prints the seed that makes the case again.
"""

import argparse
import io
import math
import random
import re
import struct
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ist_hpc.common.errors import InputError
from ist_hpc.prepare.xmc.source import Source

MOST_INDICES, MOST_ROWS = 2**31 - 1, 2**53
VALUE_BYTES = set(b"0123456789.+-eE")
CASES_A_LINE_OF_PROGRESS = 50_000

Row = tuple[int, tuple[int, ...], tuple[int, ...], bytes]
"""Number of the sample, labels, feature indices, values as the bytes of float32."""


@dataclass
class Read:
    """What a reader makes of a file: its rows, the malformed lines, and one that ends it."""

    rows: list[Row] = field(default_factory=list)
    malformed: list[int] = field(default_factory=list)
    ended_by: int | None = None
    malformed_count: int = 0
    samples: int = 0


class MalformedError(Exception):
    pass


def plain_number(text: bytes, most: int) -> int:
    if not text or any(byte not in b"0123456789" for byte in text):
        raise MalformedError
    number = 0
    for byte in text:
        number = min(10 * number + byte - 48, most + 1)
    if number > most:
        raise MalformedError
    return number


def plain_value(text: bytes) -> float:
    if not set(text) <= VALUE_BYTES:
        raise MalformedError
    try:
        value = float(text)
        struct.pack("<f", value)
    except (ValueError, OverflowError):
        raise MalformedError from None
    if math.isinf(value):
        raise MalformedError
    return value


def plain_row(number: int, line: bytes, features: int, labels: int) -> Row:
    fields = line.replace(b"\t", b" ").split(b" ")
    label_set = set()
    if fields[0] and b":" not in fields[0]:
        label_set = {plain_number(text, labels - 1) for text in fields.pop(0).split(b",")}
    values = {}
    for text in filter(None, fields):
        parts = text.split(b":")
        if len(parts) != 2:
            raise MalformedError
        index = plain_number(parts[0], features - 1)
        if index in values:
            raise MalformedError
        values[index] = plain_value(parts[1])
    indices = tuple(sorted(values))
    packed = struct.pack(f"<{len(indices)}f", *(values[index] for index in indices))
    return number, tuple(sorted(label_set)), indices, packed


def plain_read(data: bytes) -> Read:
    """The file read line by line, in the plainest way."""
    data = data.removeprefix(b"\xef\xbb\xbf")
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    lines = [line.removesuffix(b"\r") for line in lines]
    read = Read()
    try:
        fields = [text for text in (lines or [b""])[0].replace(b"\t", b" ").split(b" ") if text]
        if len(fields) != 3:
            raise MalformedError
        limits = (MOST_ROWS, MOST_INDICES, MOST_INDICES)
        count, features, labels = map(plain_number, fields, limits)
        if not count or not features or not labels:
            raise MalformedError
    except MalformedError:
        read.ended_by = 1
        return read
    for number, line in enumerate(lines[1:]):
        if number >= count and not line.strip(b" \t\r\0\x1a"):
            continue
        try:
            if number >= count:
                raise MalformedError
            read.rows.append(plain_row(number, line, features, labels))
        except MalformedError:
            read.malformed.append(number + 2)
    if len(lines) - 1 < count:
        read.ended_by = len(lines)
    read.malformed_count = len(read.malformed)
    read.samples = count
    return read


def fast_read(data: bytes, block_bytes: int, skip_malformed: bool) -> Read:
    """The file as `prepare xmc` reads it; raises what it raises except InputError."""
    read = Read()
    try:
        source = Source(
            io.BytesIO(data), "f", skip_malformed=skip_malformed, block_bytes=block_bytes
        )
        for block in source.blocks():
            features, labels = block.features, block.labels
            for array, dtype in (
                (features.indices, "int32"),
                (features.values, "float32"),
                (labels.indices, "int32"),
                (features.indptr, "int64"),
                (labels.indptr, "int64"),
                (block.rows, "int64"),
            ):
                assert array is not None
                assert array.dtype == dtype
            assert len(features) == len(labels) == len(block.rows)
            assert features.values is not None
            for k, number in enumerate(block.rows.tolist()):
                entries = slice(features.indptr[k], features.indptr[k + 1])
                own = slice(labels.indptr[k], labels.indptr[k + 1])
                read.rows.append(
                    (
                        number,
                        tuple(labels.indices[own].tolist()),
                        tuple(features.indices[entries].tolist()),
                        features.values[entries].tobytes(),
                    )
                )
        read.malformed = [number_of(message) for message in source.first_malformed]
        read.malformed_count = source.malformed
    except InputError as error:
        read.ended_by = number_of(str(error))
    return read


def number_of(message: str) -> int:
    found = re.match(r"f, line (\d+): |f: is ", message)
    assert found, message
    assert message.isascii()
    assert message.isprintable()
    return int(found[1] or 1)  # a file of another kind has no line 1


def check(data: bytes, block_bytes: int) -> Read:
    """What the plain parser makes of `data`; AssertionError if the reader makes anything else."""
    check_skipping(data, block_bytes)
    return check_stopping(data, block_bytes)


def check_skipping(data: bytes, block_bytes: int) -> Read:
    """`check` of a reader that leaves malformed lines out."""
    wanted = plain_read(data)
    read = fast_read(data, block_bytes, skip_malformed=True)
    assert read.rows == wanted.rows
    assert read.ended_by == wanted.ended_by
    if wanted.ended_by is None:
        assert read.malformed_count == wanted.malformed_count
        # Of the lines after the last sample at most one a block is named.
        inside = [line for line in wanted.malformed if line < wanted.samples + 2]
        named = [line for line in read.malformed if line < wanted.samples + 2]
        assert named == inside[:5]
        assert set(read.malformed) <= set(wanted.malformed)
    return wanted


def check_stopping(data: bytes, block_bytes: int) -> Read:
    """`check` of a reader that stops at the first malformed line."""
    wanted = plain_read(data)
    read = fast_read(data, block_bytes, skip_malformed=False)
    assert read.ended_by == (wanted.malformed[0] if wanted.malformed else wanted.ended_by)
    assert read.rows == wanted.rows[: len(read.rows)]
    if read.ended_by is None:
        assert read.rows == wanted.rows
    return wanted


NUMBERS = [
    *(b"0", b"1", b"7", b"10", b"00", b"007", b"2147483647", b"2147483648", b"4294967295"),
    *(b"99999999", b"123456789", b"9007199254740991", b"9007199254740992", b"9007199254740993"),
    *(b"18446744073709551615", b"18446744073709551616", b"1" * 17, b"0" * 16 + b"3", b"9" * 40),
]
VALUES = [
    *(b"1e-400", b"0.5", b"-0.25", b"1.", b".5", b"-.5", b"-0", b"-0.0", b"3", b"1e-3", b"2E+5"),
    *(b"0.1234567890123456789", b"0.30000000000000004", b"123456789.123456789", b"1e400"),
    *(b"3.4028235e38", b"340282356779733661637539395458142568447.9", b"3.5e38", b"1e39", b"+1.5"),
    *(b"9007199254740993", b"0.0000000000000000000001", b"12345678.87654321", b"1e", b"e5", b"."),
    *(b"-", b"+", b"--1", b"-+1", b"1-", b"nan", b"inf", b"-inf", b"Infinity", b"NaN", b"1_0"),
    *(b"0x1p3", b"1e5e5", b"1..5", b"1.2.3", "\u0661".encode(), "\uff11".encode(), b"", b"1e+-5"),
    *(b"1e0000000000000000000000005", b"0" * 30 + b".5", b"1d5", b"1e99999999999999999999"),
    *(b"1844674407370955.1617", b"184467440737095516.17", b"0.18446744073709551617", b"- 1"),
]
SNIPPETS = [
    *(b"\n", b"\r\n", b"\r", b"\r\r\n", b"\0", b" ", b"  ", b"\t", b",", b":", b".", b"-", b"--"),
    *(b"+", b":::", b",,", b"\x0b", b"\x0c", b"\xff", b"\xc2\xa0", "\u0663".encode(), b"#", b"/"),
    *(b";", b"e", b"qid:1", b"1:", b":1", b" :1", b"3:4:5", b"0:1", b" 1:1 1:1", b"\n\n", b"\n \n"),
    *(b"\x00\x00", b"_", b"\x1a", b"\n\x1a", b"\xef\xbb\xbf", b"\n\0\0\0", b"\n\n\n\r\n"),
]


def near_a_tie(draw: random.Random) -> bytes:
    """Sixteen or so digits close to the middle of two float32: a last bit lost shows."""
    exponent = draw.randrange(-12, 10)
    middle = (2 * draw.randrange(2**23, 2**24) + 1) * 2.0 ** (exponent - 25)
    text = f"{middle:.{draw.randrange(12, 19)}f}"
    last = draw.choice((1, 2, 3))
    return (text[:-last] + str(draw.randrange(10**last)).zfill(last)).encode()


def random_value(draw: random.Random) -> bytes:
    kind = draw.random()
    if kind < 0.75:
        return b"%.6f" % draw.random()
    if kind < 0.83:
        return draw.choice(VALUES)
    if kind < 0.89:
        return near_a_tie(draw)
    whole = str(draw.getrandbits(draw.choice((1, 8, 27, 54, 64, 90))))
    places = draw.randrange(len(whole) + 2)
    text = whole[:places] + draw.choice((".", ".", "", "e", "E-", "e+")) + whole[places:]
    return draw.choice(("", "", "-", "+")).encode() + text.encode()


def random_index(draw: random.Random, count: int) -> bytes:
    if draw.random() < 0.01:
        return draw.choice(NUMBERS)
    return b"%d" % draw.randrange(count + (draw.random() < 0.01))


def random_line(draw: random.Random, features: int, labels: int) -> bytes:
    own = b",".join(random_index(draw, labels) for _ in range(draw.choice((0, 1, 2, 5))))
    indices = [random_index(draw, features) for _ in range(draw.choice((0, 1, 3, 8)))]
    if draw.random() < 0.8:
        indices = sorted(set(indices), key=int)
    entries = [index + b":" + random_value(draw) for index in indices]
    return b" ".join([own, *entries])


def random_file(draw: random.Random) -> bytes:
    features, labels = draw.choice(((500, 983), (3, 2), (135909, 670091), (2**31 - 1, 2**31 - 1)))
    count = draw.choice((1, 1, 2, 3, 6))
    lines = [random_line(draw, features, labels) for _ in range(count)]
    if draw.random() < 0.04:
        count += draw.choice((-1, 1, 2))
    header = b"%d %d %d" % (count, features, labels)
    if draw.random() < 0.02:
        others = (b"", b"1 2", b"1 2 3 4", b"-1 5 5", b"a b c", header + b" ", b" " + header)
        header = draw.choice(others)
    end = draw.choice((b"\n", b"\n", b"\r\n"))
    data = end.join([header, *lines])
    return data + end if draw.random() < 0.8 else data


def mutated(draw: random.Random, data: bytes) -> bytes:
    for _ in range(draw.choice((0, 0, 0, 1, 1, 2, 5))):
        at = draw.randrange(len(data) + 1)
        until = min(len(data), at + draw.choice((0, 0, 1, 1, 3, 20)))
        kind = draw.random()
        if kind < 0.5:
            new = draw.choice(SNIPPETS)
        elif kind < 0.7:
            new = draw.choice(VALUES + NUMBERS)
        elif kind < 0.8:
            new = draw.randbytes(draw.randrange(1, 4))
        elif kind < 0.9:
            new = b""
        else:
            begin = draw.randrange(len(data) + 1)
            new = data[begin : begin + draw.randrange(1, 30)]
        data = data[:at] + new + data[until:]
    return data


def random_case(case_seed: str) -> tuple[bytes, int, bool]:
    """The case's file, the bytes of a block and whether to leave malformed lines out."""
    draw = random.Random(case_seed)
    kind = draw.random()
    if kind < 0.03:
        data = draw.randbytes(draw.randrange(60))
    elif kind < 0.06:
        data = b"2 9 9\n" + bytes(draw.choices(b"0123456789:., -e\n\r\t", k=draw.randrange(50)))
    else:
        data = mutated(draw, random_file(draw))
    size = draw.choice((len(data) + 1, len(data) + 1, len(data) // 2 + 1, 64, 7, 1))
    return data, size, draw.random() < 0.75


def fuzz(cases: int, seed: int, report: bool = False) -> dict[str, int]:
    """Run so many cases; counts of what they were. AssertionError names the seed of a failure."""
    counts = {"cases": 0, "bytes": 0, "rows": 0, "malformed lines": 0, "refused files": 0}
    began = time.monotonic()
    for number in range(cases):
        case_seed = f"{seed}:{number}"
        data, block_bytes, skipping = random_case(case_seed)
        try:
            read = (check_skipping if skipping else check_stopping)(data, block_bytes)
        except Exception as error:
            raise AssertionError(
                f"case {case_seed}, blocks of {block_bytes} bytes, {data!r}: {error!r}"
            ) from error
        counts["cases"] += 1
        counts["bytes"] += len(data)
        counts["rows"] += len(read.rows)
        counts["malformed lines"] += len(read.malformed)
        counts["refused files"] += read.ended_by is not None
        if report and counts["cases"] % CASES_A_LINE_OF_PROGRESS == 0:
            seconds = time.monotonic() - began
            print(f"fuzz_xmc: {counts['cases']} cases, {seconds:.0f} s", flush=True)
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="SEED:CASE", help="one case, as a failure names it")
    args = parser.parse_args()
    if args.only:
        data, block_bytes, _ = random_case(args.only)
        print(f"{data!r}, blocks of {block_bytes} bytes")
        check(data, block_bytes)
        return 0
    try:
        counts = fuzz(args.cases, args.seed, report=True)
    except AssertionError as error:
        print(f"fuzz_xmc: FAILED: {error}\nrepeat it with --only SEED:CASE", file=sys.stderr)
        return 1
    print("fuzz_xmc: ok: " + ", ".join(f"{count} {what}" for what, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The text of `prepare xmc`, line by line: what is a row, what is named as malformed and how."""

import io
import struct

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ist_hpc.common.errors import InputError
from ist_hpc.prepare.xmc import source as xmc_source
from ist_hpc.prepare.xmc.line import Header, LineError, parse_header, parse_line
from ist_hpc.prepare.xmc.source import Source
from ist_hpc.prepare.xmc.text import parse_block
from tests.helpers.fuzz_xmc import check, fuzz, plain_read

HEADER = Header(rows=9, features=500, labels=983)
MIXED = (
    b"9 500 983\r\n"
    b"3,17,4 0:0.5 12:1e-3 499:-2.\n"
    b" 7:1 8:0.123456789012345678\r\n"
    b"982\n"
    b"\n"
    b" \t \n"
    b"5 9:.25\t3:0.1 4:+3 \n"
    b"1:2 3:4\r\n"
    b"4,4,4 00012:000000000000000000.5\n"
    b"0 1:-0 2:1e-400 3:3.4028235e38"
)


def read(data: bytes, block_bytes: int = 1 << 20, skip_malformed: bool = False) -> Source:
    """A source that has been read to its end."""
    source = Source(io.BytesIO(data), "f", block_bytes=block_bytes, skip_malformed=skip_malformed)
    for _ in source.blocks():
        pass
    return source


def rows_of(text: bytes) -> list[tuple[list[int], dict[int, float]]]:
    """Labels and features of the lines of a block, all well-formed."""
    block = parse_block(text, HEADER)
    assert block.errors == []
    assert block.features.values is not None
    rows = []
    for k in range(len(block.rows)):
        features, labels = block.features.part(k, k + 1), block.labels.part(k, k + 1)
        values = features.values.tolist() if features.values is not None else []
        rows.append(
            (labels.indices.tolist(), dict(zip(features.indices.tolist(), values, strict=True)))
        )
    return rows


class TestAgainstThePlainParser:
    @pytest.mark.parametrize("block_bytes", range(1, len(MIXED) + 2))
    def test_a_block_may_end_at_any_byte(self, block_bytes):
        wanted = check(MIXED, block_bytes)
        assert len(wanted.rows) == 9
        assert not wanted.malformed

    def test_the_short_form_of_the_fuzzer(self):
        counts = fuzz(3000, seed=3)
        assert counts["rows"] > 2000
        assert counts["malformed lines"] > 1000
        assert counts["refused files"] > 300

    @settings(max_examples=300, deadline=None)
    @given(
        text=st.text(alphabet="0123456789:., -+eE\n\r\t\0x٣", max_size=80).map(str.encode),
        block_bytes=st.integers(1, 90),
    )
    @example(text=b"0,1 2:3\n\n:::\n", block_bytes=3)
    @example(text=b"\n\n\n ", block_bytes=1)
    @example(text=b"\n\n\n\0\n1", block_bytes=2)
    def test_any_text(self, text, block_bytes):
        """Every line is a row or malformed, but for those without anything after the last row."""
        wanted = check(b"3 12 12\n" + text, block_bytes)
        lines = text.split(b"\n")
        told = [line for line in lines[3:] if line.strip(b" \t\r\0\x1a")]
        counted = len(lines[:3]) - (len(lines) <= 3 and not lines[-1])  # what the last break ends
        assert len(wanted.rows) + len(wanted.malformed) == counted + len(told)

    @settings(max_examples=150, deadline=None)
    @given(
        rows=st.lists(
            st.tuples(
                st.lists(st.integers(0, 12), max_size=4),
                st.dictionaries(
                    st.integers(0, 12), st.floats(width=32, allow_nan=False, allow_infinity=False)
                ),
            ),
            min_size=1,
            max_size=6,
        ),
        form=st.sampled_from(["{!r}", "{:.6f}", "{:.9g}", "{:.17g}", "{:e}", "{:.0f}"]),
        end=st.sampled_from(["\n", "\r\n"]),
        block_bytes=st.integers(1, 400),
    )
    def test_valid_rows(self, rows, form, end, block_bytes):
        lines = [f"{len(rows)} 13 13"]
        for labels, features in rows:
            entries = [f"{index}:{form.format(value)}" for index, value in features.items()]
            lines.append(" ".join([",".join(map(str, labels)), *entries]))
        wanted = check(end.join([*lines, ""]).encode(), block_bytes)
        assert [set(row[1]) for row in wanted.rows] == [set(labels) for labels, _ in rows]
        assert [set(row[2]) for row in wanted.rows] == [set(features) for _, features in rows]

    @settings(max_examples=500, deadline=None)
    @given(
        st.one_of(
            st.floats(0, 1e9).map(repr),
            st.floats(0, 10).map("{:.18f}".format),
            st.floats(-1e30, 1e30, allow_nan=False).map("{:.12g}".format),
            st.decimals(-10, 10, places=15).map(str),
            st.integers(0, 10**25).map(str),
        )
    )
    @example("9007199254740993")  # 2^53 + 1
    @example("1.00000005960464477539")  # half a float32 above 1, and a little less
    def test_values_are_the_bits_of_float(self, text):
        block = parse_block(f"1 2:{text}\n".encode(), HEADER)
        assert block.features.values is not None
        assert block.features.values.tobytes() == struct.pack("<f", np.float32(float(text)))


class TestWhatIsARow:
    @pytest.mark.parametrize(
        ("line", "labels", "features"),
        [
            (b"3,17 0:0.5 12:2", [3, 17], {0: 0.5, 12: 2.0}),
            (b"17,3 12:2 0:0.5", [3, 17], {0: 0.5, 12: 2.0}),  # sorted
            (b"3,3,17,3 1:1", [3, 17], {1: 1.0}),  # a set
            (b" 1:1", [], {1: 1.0}),
            (b"1:1 2:2", [], {1: 1.0, 2: 2.0}),  # the leading blank is lost
            (b"7", [7], {}),
            (b"", [], {}),
            (b"  ", [], {}),
            (b"\t1:1\t \t2:2\t", [], {1: 1.0, 2: 2.0}),
            (b"007 00000000000000000001:1", [7], {1: 1.0}),
            (b"1 1:0 2:-0.0 3:1e-60", [1], {1: 0.0, 2: -0.0, 3: 0.0}),
        ],
    )
    def test_lines(self, line, labels, features):
        assert rows_of(line + b"\n") == [(labels, features)]
        sample = parse_line(line, HEADER)
        assert (sample.labels, sample.indices) == (labels, list(features))

    def test_repeated_labels_are_counted(self):
        assert parse_block(b"3,3,17,3 1:1\n2,2 5:1\n1\n", HEADER).repeated_labels == 3
        assert parse_block(b"3,3\n" + b"0" * 20 + b"1,1 5:1\n", HEADER).repeated_labels == 2

    def test_line_ends(self):
        wanted = rows_of(b"1 1:1\n 2:2\n3\n")
        assert rows_of(b"1 1:1\r\n 2:2\r\n3\r\n") == wanted
        assert rows_of(b"1 1:1\r\n 2:2\n3\r\n") == wanted
        assert read(b"2 500 983\n1 1:1\n2 1:1").malformed == 0
        assert read(b"2 500 983\r\n1 1:1\r\n2 1:1\r\n").malformed == 0


MALFORMED = [
    (b"1 500:1", "a feature index must be 0 to 499, as line 1 says (got '500:1'); do the indices"),
    (b"1 501:1", "a feature index must be 0 to 499, as line 1 says (got '501:1')"),
    (b"983 1:1", "a label must be 0 to 982, as line 1 says (got '983'); do the indices count from"),
    (b"1 99999999999999999999:1", "a feature index must be 0 to 499"),
    (b"9" * 9000 + b" 1:1", "a label must be 0 to 982, as line 1 says (got '99999999999999999999"),
    (b"1 -3:1", "a feature index must be a whole number, 0 to 499 (got '-3:1')"),
    (b"-1 3:1", "a label must be a whole number, 0 to 982 (got '-1')"),
    (b"1 2.0:1", "a feature index must be a whole number, 0 to 499 (got '2.0:1')"),
    (b"1.0 2:1", "a label must be a whole number, 0 to 982 (got '1.0')"),
    (b"x 2:1", "a label must be a whole number, 0 to 982 (got 'x')"),
    (b"1 :1", "a feature index must be a whole number, 0 to 499 (got ':1')"),
    (b"1 2:", "a feature's value must be a finite number (got '2:')"),
    (b"1 2:.", "a feature's value must be a finite number (got '2:.')"),
    (b"1 2:-", "a feature's value must be a finite number (got '2:-')"),
    (b"1 2:x", "a feature's value must be a finite number (got '2:x')"),
    (b"1 2:nan", "a feature's value must be a finite number (got '2:nan')"),
    (b"1 2:-inf", "a feature's value must be a finite number (got '2:-inf')"),
    (b"1 2:1_0", "a feature's value must be a finite number (got '2:1_0')"),
    (b"1 2:3:4", "a feature's value must be a finite number (got '2:3:4')"),
    (b"1 2:1e400", "a feature's value must fit into float32 (got '2:1e400')"),
    (b"1 2:-4e38", "a feature's value must fit into float32 (got '2:-4e38')"),
    (b"1 2", "a feature must be `index:value` (got '2', without a colon)"),
    (b"1 2:1 7", "a feature must be `index:value` (got '7', without a colon)"),
    (b"1, 2:1", "a label is missing beside a comma"),
    (b"1,,2 2:1", "a label is missing beside a comma"),
    (b" 1,2 2:1", "a feature must be `index:value` (got '1,2', without a colon)"),
    (b"1 2:1 3:1 2:1", "feature 2 is there twice; a feature has one value"),
    (b"1 2:1\0", "a feature's value must be a finite number (got '2:1\\x00')"),
    (b"1 2:1\r", "a feature's value must be a finite number (got '2:1\\r')"),
    ("1 2:٣".encode(), "a feature's value must be a finite number (got '2:\\xd9\\xa3')"),
]


class TestMalformedLines:
    @pytest.mark.parametrize(("line", "message"), MALFORMED)
    def test_every_kind_is_named_with_its_line(self, line, message):
        with pytest.raises(LineError) as by_the_book:
            parse_line(line, HEADER)
        assert str(by_the_book.value).startswith(message)
        data = b"3 500 983\n1 1:1\n" + line + b"\n2 2:2\n"
        if not line.endswith(b"\r"):
            with pytest.raises(InputError) as raised:
                read(data)
            assert str(raised.value).startswith(f"f, line 3: {message}")
            assert "(--skip-malformed)" in str(raised.value)
            source = read(data, skip_malformed=True)
            assert source.malformed == 1
            assert source.first_malformed[0].startswith(f"f, line 3: {message}")

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            (b"", "must be `N D L`, the numbers of samples, features and labels (got '')"),
            (b"12920 500", "must be `N D L`"),
            (b"12920 500 983 4", "must be `N D L`"),
            (b"0,1 2:0.5 3:0.5", "must be `N D L`"),
            (b"-1 2 3", "must be `N D L`"),
            (b"1.5 2 3", "must be `N D L`"),
            (b"0 2 3", "the number of samples must be 1 to 9007199254740992 (got '0')"),
            (b"1 0 3", "the number of features must be 1 to 2147483647 (got '0')"),
            (b"1 2 2147483648", "the number of labels must be 1 to 2147483647 (got '2147483648')"),
            (b"1 " + b"9" * 900 + b" 2", "the number of features must be 1 to 2147483647"),
        ],
    )
    def test_header(self, line, message):
        with pytest.raises(LineError) as raised:
            parse_header(line)
        assert str(raised.value).startswith(message)
        with pytest.raises(InputError, match=r"^f, line 1: "):
            read(line + b"\n1 1:1\n")

    def test_fewer_lines_than_line_1_says(self):
        data = b"3 500 983\n1 1:1\n2 1:1\n"
        for skip_malformed in (False, True):
            with pytest.raises(
                InputError, match=r"^f, line 3: line 1 says 3 samples, but the file"
            ):
                read(data, skip_malformed=skip_malformed)
        assert plain_read(data).ended_by == 3

    @pytest.mark.parametrize("block_bytes", [1, 7, 1000])
    def test_more_lines_than_line_1_says(self, block_bytes):
        data = b"2 500 983\n1 1:1\n2 1:1\n3 1:1\n4 1:1\n"
        with pytest.raises(InputError) as raised:
            read(data, block_bytes)
        message = "f, line 4: line 1 says 2 samples, but here is one more (got '3 1:1')"
        assert str(raised.value).startswith(message)
        source = read(data, block_bytes, skip_malformed=True)
        assert source.malformed == 2
        assert source.first_malformed[0] == message

    def test_only_the_first_five_are_kept(self):
        source = read(b"20 5 5\n" + b"x\n" * 20, block_bytes=4, skip_malformed=True)
        assert source.malformed == 20
        assert [m.partition(":")[0] for m in source.first_malformed] == [
            f"f, line {line}" for line in range(2, 7)
        ]

    def test_a_line_without_end(self, monkeypatch):
        monkeypatch.setattr(xmc_source, "_MOST_LINE_BYTES", 1000)
        with pytest.raises(InputError, match="a line is longer than"):
            read(b"1 5 5\n" + b"1" * 5000, block_bytes=100)

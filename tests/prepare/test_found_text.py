"""Text of the right kind as other programs write it: accepted if that is harmless, else named."""

import numpy as np
import pytest

from ist_hpc.data.shards import Dataset
from ist_hpc.prepare.__main__ import main
from tests.helpers.found_input import LINES, TEXT, answer, saved
from tests.helpers.xmc_text import rows_in

ROWS = [([0, 1], [0, 3], [0.5, 2.0]), ([], [1], [1.0]), ([2], [2], [0.25])]
HARMLESS_TEXT = {
    "as it should be": TEXT.encode(),
    "byte order mark": b"\xef\xbb\xbf" + TEXT.encode(),
    "cr lf": TEXT.replace("\n", "\r\n").encode(),
    "mark and cr lf": b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode(),
    "^Z at the end": TEXT.encode() + b"\x1a",
    "zeros at the end": TEXT.encode() + bytes(5000),
    "many zeros at the end": TEXT.encode() + bytes(20_000_000),
    "blank lines at the end": TEXT.encode() + b"\n\r\n \t\n\n",
    "no last line end": TEXT.rstrip().encode(),
    "trailing blanks": TEXT.replace("\n", " \t\n").encode(),
    "tabs": TEXT.replace(" 3:2", "\t3:2").encode(),
    "exponents": TEXT.replace("0.25", "2.5E-01").encode(),
    "exponents of windows": TEXT.replace("0.25", "2.5e-001").encode(),
    "blanks around the header": TEXT.replace("3 4 5", " 3\t4  5 ").encode(),
}
REFUSED_TEXT = {
    "cr alone": (TEXT.replace("\n", "\r"), "its lines end with CR alone or twice"),
    "cr cr lf": (TEXT.replace("\n", "\r\r\n"), "its lines end with CR alone or twice"),
    "no header": ("\n".join(LINES), "line 1: must be `N D L`"),
    "no header, the fix": ("\n".join(LINES), "it is a sample already; put a line with the three"),
    "comment": ("# by scikit-learn\n" + TEXT, "it is a comment, which is not allowed"),
    "blank line first": ("\n" + TEXT, "remove the blank line"),
    "header of floats": (TEXT.replace("3 4 5", "3.0 4.0 5.0"), "write whole numbers, in digits"),
    "thousands": (TEXT.replace("3 4 5", "3 1,000 5"), "write whole numbers, in digits alone"),
    "non-breaking space": (TEXT.replace("3 4 5", "3\xa04 5"), "it has a non-breaking space"),
    "in a line": (TEXT.replace(" 3:2", "\xa03:2"), "line 2: a feature's value must be a finite"),
    "decimal comma": (TEXT.replace("0.25", "0,25"), "(got '2:0,25'); write a decimal point"),
    "a label as 1.0": (TEXT.replace("2 2:", "2.0 2:"), "(got '2.0'); write it in digits alone"),
    "blanks after commas": (TEXT.replace("0,1", "0, 1"), "labels are `l1,l2,...` without blanks"),
    "nan": (TEXT.replace("0.25", "nan"), "line 4: a feature's value must be a finite number"),
    "inf": (TEXT.replace("0.25", "-inf"), "line 4: a feature's value must be a finite number"),
    "counts from 1": (TEXT.replace("3:2", "4:2"), "do the indices count from 1?"),
    "qid": (TEXT.replace("2 2:", "2 qid:1 2:"), "it is of ranking data: remove the qid"),
    "comment behind": (TEXT.replace("3:2", "3:2 # a"), "comments are not allowed: remove them"),
    "a blank line inside": (TEXT.replace("\n ", "\n\n "), "here is one more (got '2 2:0.25')"),
    "json": ('{"error": "not found"}', "line 1: must be `N D L`"),
    "csv": ("label,pixel\n1,2\n", "is it a data file of the repository?"),
}  # fmt: skip


class TestText:
    @pytest.mark.parametrize("kind", HARMLESS_TEXT)
    def test_harmless(self, kind, tmp_path):
        (tmp_path / "a").write_bytes(HARMLESS_TEXT[kind])
        files = ["--train", str(tmp_path / "a"), "--test", str(tmp_path / "a")]
        assert main(["xmc", *files, "--output", str(tmp_path / "out")]) == 0
        assert rows_in(tmp_path / "out", "test") == ROWS

    @pytest.mark.parametrize("kind", REFUSED_TEXT)
    def test_refused(self, kind, tmp_path, capsys):
        text, words = REFUSED_TEXT[kind]
        assert words in answer("xmc --train", text.encode(), tmp_path, capsys)

    def test_as_scikit_learn_writes_it(self, tmp_path, capsys):
        datasets = pytest.importorskip("sklearn.datasets")
        matrix, labels = np.array([[0.5, 0.0], [0.0, 1e-5]]), np.array([1.0, 0.0])
        for comment, words in ((None, "it is a sample already"), ("x", "it is a comment")):
            text = saved(
                lambda file, comment=comment: datasets.dump_svmlight_file(
                    matrix, labels, file, comment=comment
                )
            )
            folder = tmp_path / str(comment)
            folder.mkdir()
            assert words in answer("xmc --train", text, folder, capsys)
        (tmp_path / "a").write_bytes(
            b"2 2 2\n" + saved(lambda file: datasets.dump_svmlight_file(matrix, labels, file))
        )
        files = ["--train", str(tmp_path / "a"), "--test", str(tmp_path / "a")]
        assert main(["xmc", *files, "--output", str(tmp_path / "out")]) == 0
        values = [row[2] for row in rows_in(tmp_path / "out", "test")]
        assert values == [[0.5], [float(np.float32(1e-5))]]


HARMLESS_SPLITS = {
    "as published": b"2\n3\n",
    "byte order mark": b"\xef\xbb\xbf2\n3\n",
    "savetxt": saved(lambda file: np.savetxt(file, np.array([2, 3]))),
    "savetxt of integers": saved(lambda file: np.savetxt(file, np.array([2, 3]), fmt="%d")),
    "columns of floats": saved(lambda file: np.savetxt(file, np.array([[2, 1], [3, 1]]))),
    "2.0": b"2.0\n3.0\n",
    "cr lf, ^Z": b"2\r\n3\r\n\x1a",
    "blank lines at the end": b"2\n3\n\n \r\n",
    "zeros at the end": b"2\n3\n" + bytes(100),
}
REFUSED_SPLITS = {
    "cr alone": (b"2\r3\r", "line 1: its lines end with CR alone"),
    "from 0": (b"0\n1\n", "(got '0'); samples count from 1"),
    "csv": (b"2,1\n3,1\n", "(got '2,1'); part columns by blanks"),
    "of pandas": (b",0\n0,2\n", "line 1: a sample's number must be a whole one, 1 to 3"),
    "a header": (b"# numbers\n2\n", "(got '#'); comments are not allowed: remove them"),
    "2.5": (b"2.5\n", "(got '2.5')"),
    "nan": (b"nan\n", "must be a whole one, 1 to 3, as line 1 of --data says (got 'nan')"),
    "blank line inside": (b"2\n\n3\n", "line 2: must have 1 or more numbers"),
    "many digits": (b"1" * 5000, "a sample's number must be a whole one"),
    "padding only": (b"\n\n", "has no numbers; it must have those of samples"),
}


class TestSplitFiles:
    @pytest.mark.parametrize("kind", HARMLESS_SPLITS)
    def test_harmless(self, kind, tmp_path):
        (tmp_path / "data").write_text(TEXT)
        (tmp_path / "tr").write_bytes(HARMLESS_SPLITS[kind])
        (tmp_path / "te").write_text("1\n")
        files = [f"--data={tmp_path}/data", f"--train-split={tmp_path}/tr"]
        files += [f"--test-split={tmp_path}/te", "--output", str(tmp_path / "out")]
        assert main(["xmc", *files]) == 0
        assert rows_in(tmp_path / "out", "test") == ROWS[:1]
        assert Dataset.open(tmp_path / "out").rows("train") == 2

    @pytest.mark.parametrize("kind", REFUSED_SPLITS)
    def test_refused(self, kind, tmp_path, capsys):
        content, words = REFUSED_SPLITS[kind]
        assert words in answer("xmc --train-split", content, tmp_path, capsys)

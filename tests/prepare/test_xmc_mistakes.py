"""`prepare xmc`: mistakes in files and on the command line, which leave nothing; split files."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ist_hpc.data.shards import Dataset
from ist_hpc.prepare.__main__ import main
from ist_hpc.prepare.xmc import shuffle
from tests.helpers.xmc_text import FEATURES, LABELS, expected, lines_of, rows_in, text_files, write

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return text_files(tmp_path_factory.mktemp("text"))


def run_split(folder: Path, train: str, test: str, *options: str) -> int:
    write(folder / "data.txt", lines_of(10, 5))
    (folder / "tr.txt").write_text(train)
    (folder / "te.txt").write_text(test)
    files = ["--data", "data.txt", "--train-split", "tr.txt", "--test-split", "te.txt"]
    return main(["xmc", *files, "--output", "x", *options])


class TestSplitFiles:
    @pytest.mark.parametrize(
        ("train", "test", "options"),
        [
            ("2\n9\n4\n", "1\n10\n", []),
            ("2 1\r\n9 2\r\n4 3\r\n", "1 4\r\n10 5", ["--split-column", "1"]),
            ("1 2 7\n2 9 7\n\t3 4 7", "4 1 7\n5 10 7\n", ["--split-column", "2"]),
        ],
    )
    def test_rows(self, train, test, options, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert run_split(tmp_path, train, test, *options) == 0
        wanted = expected(lines_of(10, 5))
        assert rows_in(tmp_path / "x", "test") == [wanted[0], wanted[9]]
        got = sorted(rows_in(tmp_path / "x", "train"), key=lambda row: row[2][0])
        assert got == [wanted[1], wanted[3], wanted[8]]
        assert Dataset.open("x").made_by["unused_samples"] == 5

    @pytest.mark.parametrize(
        ("train", "test", "message"),
        [
            ("1\n2\n", "3\n2\n", "te.txt, line 2: sample 2 is a train row already, in tr.txt"),
            ("1\n2\n1\n", "3\n", "tr.txt, line 3: sample 1 is there twice (column 1)"),
            ("1\n11\n", "3\n", "tr.txt, line 2: a sample's number must be a whole one, 1 to 10"),
            ("1\n0\n", "3\n", "tr.txt, line 2: a sample's number must be a whole one, 1 to 10"),
            ("1\n-2\n", "3\n", "te.txt, line 2: a sample's number must be a whole one, 1 to 10"),
            ("1\n2.5\n", "3\n", "tr.txt, line 2: a sample's number must be a whole one, 1 to 10"),
            ("9" * 5000, "3\n", "tr.txt, line 1: a sample's number must be a whole one, 1 to 10"),
            ("1\n\n2\n", "3\n", "tr.txt, line 2: must have 1 or more numbers"),
            ("", "3\n", "tr.txt: is empty"),
            ("1\r3\r", "2\n", "tr.txt, line 1: its lines end with CR alone"),
        ],
    )
    def test_mistakes(self, train, test, message, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        if message.startswith("te.txt, line 2: a"):
            train, test = test, train
        assert run_split(tmp_path, train, test) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "x").exists()

    def test_too_few_columns(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert run_split(tmp_path, "1 2\n3\n", "4 5\n", "--split-column", "2") == 2
        assert "tr.txt, line 2: must have 2 or more numbers" in capsys.readouterr().err


MALFORMED = [
    "40:1",
    "1 40:1",
    "12 1:1",
    "1 -1:1",
    "1 1:x",
    "1 1:nan",
    "1 1:1e99",
    "1 2",
    "1 1:1 1:2",
]


class TestMistakes:
    @pytest.mark.parametrize("line", MALFORMED)
    @pytest.mark.parametrize("broken", ["train", "test"])
    def test_a_malformed_line_ends_it_and_leaves_nothing(
        self, line, broken, tmp_path, monkeypatch, capsys
    ):
        monkeypatch.setattr(shuffle, "BUCKET_BYTES", 500)
        monkeypatch.setattr("ist_hpc.prepare.xmc.source.BLOCK_BYTES", 300)
        lines = {"train": lines_of(40, 1), "test": lines_of(20, 2)}
        lines[broken][15] = line
        for split, text in lines.items():
            write(tmp_path / f"{split}.txt", text)
        monkeypatch.chdir(tmp_path)
        command = ["xmc", "--train", "train.txt", "--test", "test.txt", "--output", "out/x"]
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"prepare: error: {broken}.txt, line 17: ")
        assert error.count("\n") == 1
        assert list((tmp_path / "out").iterdir()) == []

    def test_skip_malformed(self, tmp_path, monkeypatch, capsys):
        lines = lines_of(40, 1)
        for at, line in enumerate(MALFORMED):
            lines[3 * at] = line
        write(tmp_path / "train.txt", lines)
        write(tmp_path / "test.txt", ["x", *lines_of(5, 2)])
        monkeypatch.chdir(tmp_path)
        command = ["xmc", "--train", "train.txt", "--test", "test.txt", "--output", "x"]
        assert main([*command, "--skip-malformed"]) == 0
        assert len(rows_in(tmp_path / "x", "train")) == 31
        assert len(rows_in(tmp_path / "x", "test")) == 5
        left_out = json.loads((tmp_path / "x" / "meta.json").read_text())["made_by"][
            "malformed_lines"
        ]
        assert left_out["left_out"] == 10
        assert [m.partition(":")[0] for m in left_out["first"]] == [
            f"train.txt, line {line}" for line in (2, 5, 8, 11, 14)
        ]
        out, err = capsys.readouterr()
        assert "10 malformed lines left out" in out
        assert "left out train.txt, line 2: " in err
        assert "left out 5 more malformed lines" in err

    def test_nothing_but_malformed_rows(self, tmp_path, monkeypatch, capsys):
        write(tmp_path / "train.txt", ["x", "y"])
        write(tmp_path / "test.txt", lines_of(5, 2))
        monkeypatch.chdir(tmp_path)
        command = ["xmc", "--train", "train.txt", "--test", "test.txt", "--output", "x"]
        assert main([*command, "--skip-malformed"]) == 2
        assert "every train row is malformed" in capsys.readouterr().err
        assert not (tmp_path / "x").exists()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "required: --output"),
            (["--output", "x"], "give --train and --test, or else --data, --train-split and"),
            (["--output", "x", "--train", "train.txt"], "give --train and --test, or else"),
            (
                ["--output", "x", "--data", "train.txt", "--test", "t"],
                "give --train and --test, or",
            ),
            (["F", "--output", "x", "--split-column", "0"], "--split-column must be 1 or more"),
            (["F", "--output", "x", "--shards", "0"], "--shards must be 1 to 10000 (got 0)"),
            (["F", "--output", "x", "--seed", "-1"], "--seed must be 0 to"),
            (["F", "--output", "."], ". exists; give another folder"),
            (
                ["--train", "no", "--test", "no", "--output", "x"],
                "no: cannot be read (No such file or directory); the files are at http",
            ),
            (["--train", ".", "--test", "no", "--output", "x"], ".: is a folder, must be a file"),
            (
                ["--train", "wide.txt", "--test", "F2", "--output", "x"],
                "line 1: must have the numbers",
            ),
            (
                ["--train", "vast.txt", "--test", "F2", "--output", "x"],
                "says 999999999999 samples, but",
            ),
            (
                ["--train", "empty.txt", "--test", "F2", "--output", "x"],
                "empty.txt: is empty (0 bytes)",
            ),
        ],
    )
    def test_command_line(self, arguments, message, files, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        write(tmp_path / "wide.txt", lines_of(3, 1), header=f"3 {FEATURES + 1} {LABELS}")
        write(tmp_path / "vast.txt", lines_of(3, 1), header=f"999999999999 {FEATURES} {LABELS}")
        (tmp_path / "empty.txt").touch()
        before = sorted(tmp_path.iterdir())
        given_files = {"F": files, "F2": files[3:]}
        command = [word for part in arguments for word in given_files.get(part, [part])]
        assert main(["xmc", *command]) == 2
        error = capsys.readouterr().err
        assert error.startswith("prepare: error: ")
        assert message in error
        assert error.count("\n") == 1
        assert sorted(tmp_path.iterdir()) == before

    def test_a_cancelled_job_leaves_nothing(self, files, tmp_path):
        train = tmp_path / "train.txt"
        line = "1,2 0:0.5 1:0.25 2:0.125\n"
        train.write_text(f"2000000 {FEATURES} {LABELS}\n" + line * 2_000_000)
        command = [
            sys.executable,
            "-m",
            "ist_hpc.prepare",
            "xmc",
            "--train",
            str(train),
            *files[2:],
        ]
        output = tmp_path / "out" / "x"
        process = subprocess.Popen([*command, "--output", str(output)], cwd=ROOT)
        give_up = time.monotonic() + 30
        while not list(tmp_path.glob("out/.x.shuffle*/*")) and time.monotonic() < give_up:
            time.sleep(0.01)
        process.terminate()
        assert process.wait(timeout=30) == 128 + signal.SIGTERM
        assert list(output.parent.iterdir()) == []

"""What other programs leave where a data set should be: accepted if that is harmless, else named.

The tables are by kind of file and place where a converter meets it. A message must be true of that
input: it names what the file is, by its content.
"""

import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import pickle
import shutil
import socket
import sqlite3
import struct
import subprocess
import sys
import tarfile
import wave
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ist_hpc.prepare import found, speech
from ist_hpc.prepare.__main__ import main
from ist_hpc.prepare.speech_audio import ClipError, read_clip
from ist_hpc.shards import Dataset

ROOT = Path(__file__).resolve().parent.parent
RATE = 16000
NAMES = ["apple", "bee", "castle"]
LINES = ["0,1 0:0.5 3:2", " 1:1", "2 2:0.25"]
TEXT = "\n".join(["3 4 5", *LINES, ""])
TIME_LIMIT_S = 480


def wav_bytes(samples: int = 800, seed: int = 0) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as clip:
        clip.setnchannels(1)
        clip.setsampwidth(2)
        clip.setframerate(RATE)
        noise = np.random.default_rng(seed).integers(-9000, 9000, size=samples)
        clip.writeframes(noise.astype("<i2").tobytes())
    return file.getvalue()


def zip_of(**files: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def tar_of(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def saved(save: Callable[[io.BytesIO], object]) -> bytes:
    file = io.BytesIO()
    save(file)
    return file.getvalue()


def sqlite_bytes() -> bytes:
    with contextlib.closing(sqlite3.connect(":memory:")) as data:
        data.execute("create table t (x)")
        return bytes(data.serialize())


def by_torch() -> bytes:
    torch = pytest.importorskip("torch")
    return saved(lambda file: torch.save({"a": torch.zeros(2)}, file))


def by_joblib() -> bytes:
    joblib = pytest.importorskip("joblib")
    return saved(lambda file: joblib.dump({"data": np.zeros((2, 3072), np.uint8)}, file))


def by_joblib_packed() -> bytes:
    joblib = pytest.importorskip("joblib")
    return saved(lambda file: joblib.dump({"data": np.zeros(9)}, file, compress=3))


def by_scipy() -> bytes:
    scipy_io = pytest.importorskip("scipy.io")
    return saved(lambda file: scipy_io.savemat(file, {"x": np.zeros(3)}))


def by_h5py() -> bytes:
    import h5py

    file = io.BytesIO()
    with h5py.File(file, "w") as h5:
        h5["x"] = np.zeros(3)
    return file.getvalue()


FOREIGN: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "is empty (0 bytes); copy or download it again"),
    "zeros": (lambda: bytes(5000), "has nothing but zeros in its first 1024 bytes"),
    "gzip": (lambda: gzip.compress(TEXT.encode()), "is packed with gzip; unpack it: gzip -dc < "),
    "bzip2": (lambda: bz2.compress(TEXT.encode()), "is packed with bzip2; unpack it: bzip2 -dc < "),
    "xz": (lambda: lzma.compress(TEXT.encode()), "is packed with xz; unpack it: xz -dc < "),
    "zstd": (lambda: b"\x28\xb5\x2f\xfd\x04\x00", "is packed with zstd; unpack it: zstd -dc < "),
    "zlib": (lambda: zlib.compress(TEXT.encode()), "is packed with zlib, as joblib does"),
    "compress": (lambda: b"\x1f\x9d\x90abc", "is packed with compress; unpack it: gzip -dc < "),
    "zip": (lambda: zip_of(train=b"x"), "is a zip archive; unpack it: unzip "),
    "zip of nothing": (zip_of, "is a zip archive; unpack it: unzip "),
    "tar": (lambda: tar_of("train", b"x"), "is a tar archive; unpack it: tar -xf "),
    "tar.gz": (
        lambda: gzip.compress(tar_of("train", b"x")),
        "is a tar archive packed with gzip; unpack it: tar -xf ",
    ),
    "tar.bz2": (
        lambda: bz2.compress(tar_of("train", b"x")),
        "is a tar archive packed with bzip2; unpack it: tar -xf ",
    ),
    "tar.xz": (
        lambda: lzma.compress(tar_of("train", b"x")),
        "is a tar archive packed with xz; unpack it: tar -xf ",
    ),
    "7z": (lambda: b"7z\xbc\xaf\x27\x1c\x00\x04", "is a 7-Zip archive; unpack it: 7z x "),
    "rar": (lambda: b"Rar!\x1a\x07\x01\x00", "is a RAR archive; unpack it: unrar x "),
    "npy": (lambda: saved(lambda file: np.save(file, np.zeros(3))), "is a NumPy array (.npy)"),
    "npz": (
        lambda: saved(lambda file: np.savez(file, x=np.zeros(3))),
        "is an archive of NumPy arrays (.npz)",
    ),
    "mat": (by_scipy, "is a MATLAB file (.mat)"),
    "hdf5": (by_h5py, "is an HDF5 file"),
    "parquet": (lambda: b"PAR1\x15\x04\x15", "is a Parquet file"),
    "xlsx": (lambda: zip_of(**{"[Content_Types].xml": b"<"}), "is an office document, such as .x"),
    "sqlite": (sqlite_bytes, "is an SQLite database"),
    "torch": (by_torch, "is a file that torch.save wrote"),
    "joblib": (by_joblib, "is a file that joblib wrote; save it with pickle instead"),
    "joblib, packed": (by_joblib_packed, "is packed with zlib, as joblib does"),
    "html": (
        lambda: b"\n<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n",
        "is an HTML page; it is most likely what a download that failed has saved",
    ),
    "xml": (
        lambda: b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
        "is an XML document; it is most likely what a download that failed has saved",
    ),
    "git lfs": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "is a pointer of Git LFS, not the file itself; fetch it: git lfs pull",
    ),
    "appledouble": (
        lambda: b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(90),
        "is an AppleDouble file, which macOS writes beside another file",
    ),
    "utf-16": (
        lambda: TEXT.encode("utf-16"),
        "is text in UTF-16, as Notepad and PowerShell may write it; make it UTF-8: iconv -f UTF-16",
    ),
    "utf-16 without a mark": (lambda: TEXT.encode("utf-16-le"), "is text in UTF-16LE, as Notepad"),
    "utf-32": (lambda: TEXT.encode("utf-32"), "is text in UTF-32, as Notepad"),
    "flac": (lambda: b"fLaC\x00\x00\x00\x22", "is a FLAC file; convert it to a wav file of 16 bit"),
    "mp3": (lambda: b"ID3\x04\x00", "is an MP3 file; convert it"),
    "ogg": (lambda: b"OggS\x00\x02", "is an Ogg file; convert it"),
    "png": (lambda: b"\x89PNG\r\n\x1a\n", "is a PNG picture"),
    "pdf": (lambda: b"%PDF-1.7\n", "is a PDF document"),
    "pickle": (lambda: pickle.dumps({"a": 1}), "is a pickle, a file of Python's objects"),
    "wav": (wav_bytes, "is a wav file, a recording"),
}  # fmt: skip
PLACES = ("xmc --train", "xmc --train-split", "cifar100 train", "cifar100 meta", "speech")
OWN = {("pickle", "cifar100 train"), ("pickle", "cifar100 meta"), ("wav", "speech")}


def images(rows: int = 6) -> dict[str, object]:
    labels = [row % len(NAMES) for row in range(rows)]
    data = np.random.default_rng(rows).integers(0, 256, size=(rows, 3072), dtype=np.uint8)
    return {"fine_labels": labels, "coarse_labels": [0] * rows, "data": data}


def cifar(folder: Path, protocol: int = 4, **changed: object) -> Path:
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        (folder / split).write_bytes(pickle.dumps(images() | changed, protocol))
    names = {"fine_label_names": NAMES, "coarse_label_names": ["food"]}
    (folder / "meta").write_bytes(pickle.dumps(names, protocol))
    return folder


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a converter refuses; nothing is left."""
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("prepare: error: ")
    assert error.count("\n") == 1
    assert not Path(arguments[arguments.index("--output") + 1]).exists()
    return error


def answer(place: str, content: bytes, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What is said of a file with this content at the place of a data set's file."""
    converter, _, where = place.partition(" ")
    output = ["--output", str(folder / "out")]
    if converter == "xmc":
        for name in ("train", "test", "--train", "--train-split"):
            (folder / name).write_text(TEXT if name == "train" else "1\n")
        (folder / where).write_bytes(content)
        if where == "--train":
            files = [f"--train={folder / '--train'}", f"--test={folder / 'train'}"]
        else:
            files = [f"--data={folder / 'train'}", f"--train-split={folder / '--train-split'}"]
            files.append(f"--test-split={folder / 'test'}")
        return error_of(["xmc", *files, *output], capsys)
    if converter == "cifar100":
        (cifar(folder / "in") / where).write_bytes(content)
        return error_of(["cifar100", "--input", str(folder / "in"), *output], capsys)
    (folder / "a_nohash_0.wav").write_bytes(content)
    with pytest.raises(ClipError) as raised:
        read_clip(folder / "a_nohash_0.wav")
    return str(raised.value)


class TestFilesOfAnotherKind:
    @pytest.mark.parametrize("place", PLACES)
    @pytest.mark.parametrize("kind", FOREIGN)
    def test_they_are_named_as_what_they_are(self, kind, place, tmp_path, capsys):
        if (kind, place) in OWN:
            return
        make, words = FOREIGN[kind]
        said = answer(place, make(), tmp_path, capsys)
        assert words in said

    def test_the_own_kind_is_not_called_foreign(self, tmp_path, capsys):
        for place in ("cifar100 train", "cifar100 meta"):
            folder = tmp_path / place
            folder.mkdir()
            said = answer(place, pickle.dumps({"a": 1}), folder, capsys)
            assert "is a pickle" not in said
            assert "but a; is it a file of CIFAR-100?" in said

    @pytest.mark.parametrize("name", ["train.txt.gz", "a b.gz", "with'quote"])
    def test_the_command_unpacks_it(self, name, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path(name).write_bytes(gzip.compress(TEXT.encode()))
        Path("test.txt").write_text(TEXT)
        said = error_of(["xmc", "--train", name, "--test", "test.txt", "--output", "out"], capsys)
        command = said.partition("unpack it: ")[2].strip()
        subprocess.run(["bash", "-c", command], check=True, timeout=60)
        assert TEXT in [path.read_text() for path in tmp_path.iterdir() if path.suffix != ".gz"
                        and path.name not in ("test.txt", name)]  # fmt: skip

    def test_bytes_of_a_file_never_raise(self):
        random = np.random.default_rng(0)
        heads = [make() for make, _ in FOREIGN.values()]
        for _ in range(3000):
            head = heads[random.integers(len(heads))][: random.integers(0, 1100)]
            place = int(random.integers(0, len(head) + 1))
            changed = head[:place] + random.bytes(3) + head[place + 3 :]
            for own in ("text", "pickle", "wav"):
                said = found.why("file", "problem", changed, own)
                assert said
                assert "\n" not in said


def read_rows(output: Path) -> list[tuple[list[int], list[int], list[float]]]:
    with Dataset.open(output) as data:
        features, labels = data.read("test", 0, data.rows("test"))
    rows = []
    for row in range(len(features)):
        one, own = features.part(row, row + 1), labels.part(row, row + 1)
        rows.append((own.indices.tolist(), one.indices.tolist(), one.values.tolist()))
    return rows


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
        assert read_rows(tmp_path / "out") == ROWS

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
        values = [row[2] for row in read_rows(tmp_path / "out")]
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
        assert read_rows(tmp_path / "out") == ROWS[:1]
        assert Dataset.open(tmp_path / "out").rows("train") == 2

    @pytest.mark.parametrize("kind", REFUSED_SPLITS)
    def test_refused(self, kind, tmp_path, capsys):
        content, words = REFUSED_SPLITS[kind]
        assert words in answer("xmc --train-split", content, tmp_path, capsys)


LABELS = [0, 1, 2, 0, 1, 2]
HARMLESS_LABELS = {
    "list": LABELS,
    "tuple": tuple(LABELS),
    "array of int64": np.array(LABELS),
    "array of uint8": np.array(LABELS, np.uint8),
    "array of the other byte order": np.array(LABELS, ">i4"),
    "array by columns": np.asfortranarray(np.array(LABELS, np.int16)),
    "list of numpy's integers": [np.int64(label) for label in LABELS],
    "list of small ones": [np.uint8(label) for label in LABELS],
    "array of floats": np.array(LABELS, float),
    "list of numpy's floats": [np.float32(label) for label in LABELS],
    "list of floats": [float(label) for label in LABELS],
}
REFUSED_LABELS = {
    "fractions": ([0.5] * 6, "must be whole numbers from 0 to 2, as `meta` has 3 names (got 0.5"),
    "nan": (np.full(6, np.nan), "must be whole numbers from 0 to 2, as `meta` has 3 names (got na"),
    "truth values": (np.ones(6, bool), "(got bool at row 0)"),
    "numpy's truth values": ([np.True_] * 6, "(got bool at row 0)"),
    "text": (["apple"] * 6, "(got str at row 0)"),
    "bytes": ([b"0"] * 6, "(got bytes at row 0)"),
    "a column": (np.array(LABELS).reshape(6, 1), "a list of whole numbers (got int64 [6, 1])"),
    "array of text": (np.array(["a"] * 6), "has an array of U1, must be of numbers"),
    "array of objects": (np.array(LABELS, object), "has an array of O8, must be of numbers"),
    "none": (None, "must be a list of whole numbers (got NoneType)"),
    "out of range": (np.array([0, 1, 2, 0, 1, 100]), "(got 100 at row 5)"),
    "negative": ([np.int8(-1)] * 6, "(got -1 at row 0)"),
    "too few": (np.array(LABELS[:5]), "got 6 images and 5 `fine_labels`"),
}
REFUSED_IMAGES = {
    "float64": (np.zeros((6, 3072)), "must be of uint8, 0 to 255 (got float64 [6, 3072])"),
    "int64": (np.zeros((6, 3072), int), 'save it again as data.astype("uint8")'),
    "planes last": (np.zeros((6, 32, 32, 3), np.uint8), "(got uint8 [6, 32, 32, 3])"),
    "planes first": (np.zeros((6, 3, 32, 32), np.uint8), "(got uint8 [6, 3, 32, 32])"),
    "list": ([[0] * 3072] * 6, "(got list)"),
}


class TestPickles:
    @pytest.mark.parametrize("protocol", [0, 2, 4, 5])
    @pytest.mark.parametrize("kind", HARMLESS_LABELS)
    def test_labels_of_any_whole_type(self, kind, protocol, tmp_path):
        source = cifar(tmp_path / "in", protocol, fine_labels=HARMLESS_LABELS[kind])
        assert main(["cifar100", "--input", str(source), "--output", str(tmp_path / "out")]) == 0
        with Dataset.open(tmp_path / "out") as data:
            assert data.read("test", 0, 6)[1].tolist() == LABELS

    def test_as_many_numpy_scalars_as_there_are_images(self, tmp_path):
        file = tmp_path / "train"
        labels = [np.int64(row % 100) for row in range(50_000)]
        for protocol in (2, 4):
            file.write_bytes(pickle.dumps({"fine_labels": labels}, protocol))
            from ist_hpc.prepare.safe_pickle import load_dict

            assert load_dict(file, 1 << 24)["fine_labels"] == [row % 100 for row in range(50_000)]

    @pytest.mark.parametrize("kind", REFUSED_LABELS)
    def test_other_labels(self, kind, tmp_path, capsys):
        labels, words = REFUSED_LABELS[kind]
        source = cifar(tmp_path / "in", fine_labels=labels)
        command = ["cifar100", "--input", str(source), "--output", str(tmp_path / "out")]
        assert words in error_of(command, capsys)

    @pytest.mark.parametrize("kind", REFUSED_IMAGES)
    def test_other_images(self, kind, tmp_path, capsys):
        data, words = REFUSED_IMAGES[kind]
        source = cifar(tmp_path / "in", data=data)
        command = ["cifar100", "--input", str(source), "--output", str(tmp_path / "out")]
        assert words in error_of(command, capsys)

    def test_cifar_10(self, tmp_path, capsys):
        source = cifar(tmp_path / "in")
        (source / "train").write_bytes(pickle.dumps({"labels": [0], "data": np.zeros((1, 3072))}))
        command = ["cifar100", "--input", str(source), "--output", str(tmp_path / "out")]
        assert "`fine_labels`, but labels, data; it is of CIFAR-10" in error_of(command, capsys)

    def test_names_of_classes(self, tmp_path, capsys):
        source = cifar(tmp_path / "in")
        command = ["cifar100", "--input", str(source), "--output", str(tmp_path / "out")]
        bad = {"fine_label_names": ["a\n", "b", "c"]}
        (source / "meta").write_bytes(pickle.dumps(bad))
        assert "must be of printable characters (got 'a\\n')" in error_of(command, capsys)
        (source / "meta").write_bytes(
            pickle.dumps({"fine_label_names": ["é".encode(), "é".encode("latin-1") + b"t", "c"]})
        )
        assert main(command) == 0
        assert Dataset.open(tmp_path / "out").classes == ("é", "ét", "c")

    @pytest.mark.parametrize("chain", [2, 200_000])
    def test_calls_of_two_arguments_cannot_nest(self, chain, tmp_path, capsys):
        """Of those there may be many, so each must refuse what is nested."""
        for name in (b"numpy\ndtype", b"numpy.core.multiarray\n_reconstruct"):
            source = cifar(tmp_path / f"in{len(name)}")
            call = b"c" + name + b"\nq\x01"
            link = b"h\x01h\x00N\x86q\x00R0"
            (source / "train").write_bytes(b"\x80\x02}q\x00" + call + b"0" + link * chain + b"}.")
            command = ["cifar100", "--input", str(source), "--output", str(tmp_path / "out")]
            said = error_of(command, capsys)
            assert "cut short or damaged" in said or "not the pickle of a few arrays" in said


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def riff(*chunks: bytes) -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


SAMPLES = np.arange(-50, 50, dtype="<i2")
PCM = struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16)
EXTENSIBLE = struct.pack("<HHIIHHHHI", 0xFFFE, 1, RATE, 2 * RATE, 2, 16, 22, 16, 4)
GUID_END = bytes.fromhex("000000001000800000aa00389b71")
DATA = chunk(b"data", SAMPLES.tobytes())
LIST = chunk(b"LIST", b"INFOISFT\x05\0\0\0Lavf\0")
HARMLESS_WAV = {
    "plain": riff(chunk(b"fmt ", PCM), DATA),
    "extensible": riff(chunk(b"fmt ", EXTENSIBLE + b"\x01\0" + GUID_END), DATA),
    "format of 18 bytes": riff(chunk(b"fmt ", PCM + b"\0\0"), DATA),
    "list before": riff(chunk(b"fmt ", PCM), LIST, DATA),
    "list after": riff(chunk(b"fmt ", PCM), DATA, LIST),
    "list of odd size": riff(chunk(b"LIST", b"odd"), chunk(b"fmt ", PCM), DATA),
    "streamed by ffmpeg": b"RIFF\xff\xff\xff\xffWAVE" + chunk(b"fmt ", PCM) + LIST + b"data"
    + b"\xff\xff\xff\xff" + SAMPLES.tobytes(),
    "streamed by sox": b"RIFF\x24\xf0\xff\x7fWAVE" + chunk(b"fmt ", PCM) + b"data"
    + b"\x00\xf0\xff\x7f" + SAMPLES.tobytes(),
    "junk after": riff(chunk(b"fmt ", PCM), DATA) + b"junk",
}  # fmt: skip
REFUSED_WAV = {
    "float": (
        riff(chunk(b"fmt ", struct.pack("<HHIIHH", 3, 1, RATE, 4 * RATE, 4, 32)), DATA),
        "must be PCM, mono, 16 bit, 16000 Hz (got floating point, 1 channels, 32 bit, 16000 Hz)",
    ),
    "float, extensible": (
        riff(chunk(b"fmt ", EXTENSIBLE + b"\x03\0" + GUID_END), DATA),
        "must be PCM, mono, 16 bit, 16000 Hz (got floating point",
    ),
    "mu-law": (
        riff(chunk(b"fmt ", struct.pack("<HHIIHH", 7, 1, 8000, 8000, 1, 8)), DATA),
        "(got mu-law, 1 channels, 8 bit, 8000 Hz)",
    ),
    "8 bit of odd size": (
        riff(chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, RATE, RATE, 1, 8)), chunk(b"data", b"a")),
        "must be mono, 16 bit, 16000 Hz (got 1 channels, 8 bit, 16000 Hz)",
    ),
    "rf64": (b"RF64\xff\xff\xff\xffWAVE", "is an RF64 file, the wav format of large files"),
    "avi": (b"RIFF\x24\0\0\0AVI LIST", "is a RIFF file of type 'AVI '"),
    "cut in its name": (b"RIFF\x24\0\0\0WA", "not a readable PCM wav file (it ends too early)"),
    "no format": (riff(DATA), "not a readable PCM wav file (no format before the samples)"),
    "no samples": (riff(chunk(b"fmt ", PCM), chunk(b"data", b"")), "has no samples"),
    "killed recorder": (
        riff(chunk(b"fmt ", PCM), chunk(b"data", b"")) + SAMPLES.tobytes(),
        "has no samples: its header says so, but 200 bytes follow",
    ),
    "truncated": (
        riff(chunk(b"fmt ", PCM), DATA)[:-20],
        "truncated: its header says 100 samples, it has 90",
    ),
    "chunks without end": (
        riff(chunk(b"fmt ", PCM), *[chunk(b"junk", b"")] * 5000),
        "no samples in its first 1000 chunks",
    ),
}


class TestRecordings:
    @pytest.mark.parametrize("kind", HARMLESS_WAV)
    def test_harmless(self, kind, tmp_path):
        (tmp_path / "a.wav").write_bytes(HARMLESS_WAV[kind])
        clip, samples = read_clip(tmp_path / "a.wav")
        assert samples == 100
        np.testing.assert_array_equal(clip[:100], SAMPLES.astype(np.float32) / 2**15)
        assert not clip[100:].any()

    @pytest.mark.parametrize("kind", REFUSED_WAV)
    def test_refused(self, kind, tmp_path):
        content, words = REFUSED_WAV[kind]
        (tmp_path / "a.wav").write_bytes(content)
        with pytest.raises(ClipError) as raised:
            read_clip(tmp_path / "a.wav")
        assert words in str(raised.value)


def special(path: Path, kind: str) -> None:
    """Something that is no file one may read, in its place."""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link to nothing":
        path.symlink_to("nowhere")
    elif kind == "link to itself":
        path.symlink_to(path.name)
    elif kind == "device":
        path.symlink_to("/dev/null")
    else:
        here = Path.cwd()
        os.chdir(path.parent)  # the name of a socket may not be long
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
            listener.bind(path.name)
        os.chdir(here)


SPECIAL = {
    "pipe": "is a pipe, must be a file; write what comes out of it to a file",
    "folder": "is a folder, must be a file",
    "link to nothing": "is a symbolic link to nowhere, which is not there",
    "link to itself": "cannot be read (Too many levels of symbolic links)",
    "device": "is a device, must be a file",
    "socket": "is a socket, must be a file",
}


class TestNoFiles:
    @pytest.mark.parametrize("place", PLACES)
    @pytest.mark.parametrize("kind", SPECIAL)
    def test_in_the_place_of_a_file(self, kind, place, tmp_path, capsys, monkeypatch):
        written = Path.write_bytes

        def write_bytes(path: Path, content: bytes) -> int:
            if content == b"here":
                special(path, kind)
                return 0
            return written(path, content)

        monkeypatch.setattr(Path, "write_bytes", write_bytes)
        assert SPECIAL[kind] in answer(place, b"here", tmp_path, capsys)

    def test_a_folder_that_an_archive_made(self, tmp_path, capsys):
        (tmp_path / "train.txt").mkdir()
        (tmp_path / "train.txt" / "train.txt").write_text(TEXT)
        files = ["--train", str(tmp_path / "train.txt"), "--test", str(tmp_path / "train.txt")]
        said = error_of(["xmc", *files, "--output", str(tmp_path / "out")], capsys)
        assert f"give the file in it, {tmp_path / 'train.txt' / 'train.txt'}" in said

    def test_a_file_that_is_still_packed(self, tmp_path, capsys):
        (tmp_path / "train.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
        files = ["--train", str(tmp_path / "train.txt"), "--test", str(tmp_path / "train.txt")]
        said = error_of(["xmc", *files, "--output", str(tmp_path / "out")], capsys)
        assert f"but there is {tmp_path / 'train.txt.gz'}: unpack that first" in said


def clips(folder: Path, words: tuple[str, ...] = ("no", "yes"), speakers: int = 10) -> Path:
    for number, word in enumerate(words):
        (folder / word).mkdir(parents=True)
        for speaker in range(speakers):
            path = folder / word / f"speaker{speaker}_nohash_0.wav"
            path.write_bytes(wav_bytes(800, 100 * number + speaker))
    return folder


class TestFolders:
    @pytest.mark.parametrize("depth", [1, 2])
    def test_too_high(self, depth, tmp_path, capsys):
        inner = "/".join(["a", "b"][:depth])
        for converter, make in (("speech", clips), ("cifar100", cifar)):
            right = make(tmp_path / converter / inner)
            command = [converter, "--input", str(tmp_path / converter)]
            said = error_of([*command, "--output", str(tmp_path / "out")], capsys)
            assert f"; give {right}, which has them" in said

    def test_too_deep(self, tmp_path, capsys):
        for converter, make, inner in (("speech", clips, "yes"), ("cifar100", cifar, "x")):
            right = make(tmp_path / converter)
            (right / inner).mkdir(exist_ok=True)
            command = [converter, "--input", str(right / inner)]
            said = error_of([*command, "--output", str(tmp_path / "out")], capsys)
            assert f"; give {right}, which has them" in said

    def test_a_file_and_what_it_is(self, tmp_path, capsys):
        archive = tmp_path / "speech_commands_v0.02.tar.gz"
        archive.write_bytes(gzip.compress(tar_of("yes/a_nohash_0.wav", wav_bytes())))
        for converter in ("speech", "cifar100"):
            command = [converter, "--input", str(archive), "--output", str(tmp_path / "out")]
            said = error_of(command, capsys)
            assert "is a file, must be a folder; it is a tar archive packed with gzip" in said
            assert f"unpack it: tar -xf {archive}" in said

    def test_the_archive_in_the_folder(self, tmp_path, capsys):
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "x.tar.gz").write_bytes(gzip.compress(tar_of("train", b"x")))
        for converter in ("speech", "cifar100"):
            command = [
                converter,
                "--input",
                str(tmp_path / "in"),
                "--output",
                str(tmp_path / "out"),
            ]
            said = error_of(command, capsys)
            assert "x.tar.gz in it is a tar archive packed with gzip; unpack it: tar -xf" in said

    @pytest.mark.parametrize(
        ("name", "what"),
        [
            ("train.bin", "the binary version of CIFAR-100"),
            ("data_batch_1", "CIFAR-10"),
            ("data_batch_1.bin", "the binary version of CIFAR-10"),
            ("train.mat", "the Matlab version of CIFAR-100"),
        ],
    )
    def test_other_versions_of_cifar(self, name, what, tmp_path, capsys):
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / name).write_bytes(b"\1\2\3")
        command = ["cifar100", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
        said = error_of(command, capsys)
        assert f"has no file train, but {name}: it is {what}; give the folder" in said

    @pytest.mark.parametrize("converter", ["speech", "cifar100"])
    @pytest.mark.parametrize(
        ("kind", "words"),
        [
            ("nothing", "no such folder; give the folder"),
            ("pipe", "is a pipe, must be a folder"),
            ("link to nothing", "is a symbolic link to nowhere, which is not there"),
            ("link to itself", "cannot be read (Too many levels of symbolic links)"),
        ],
    )
    def test_no_folder(self, converter, kind, words, tmp_path, capsys):
        if kind != "nothing":
            special(tmp_path / "in", kind)
        command = [converter, "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
        assert words in error_of(command, capsys)


def as_a_plain_user(*command: str | Path | bytes) -> list[str | bytes]:
    """The command without root's right to read everything."""
    words = [word if isinstance(word, bytes) else str(word) for word in command]
    if os.geteuid() != 0:
        return list(words)
    rights = "-dac_override,-dac_read_search"
    return ["setpriv", f"--bounding-set={rights}", "--inh-caps=-all", *words]


def prepare(*arguments: str | Path | bytes, **options: object) -> subprocess.CompletedProcess[str]:
    command = as_a_plain_user(sys.executable, "-m", "ist_hpc.prepare", *arguments)
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, timeout=TIME_LIMIT_S, encoding="utf-8", **options
    )  # type: ignore[call-overload, no-any-return]


class TestWhatLiesBesideTheClips:
    @pytest.fixture(scope="class")
    def converted(self, tmp_path_factory):
        """Two words among everything that may lie beside them: what was said, and the data set."""
        pytest.importorskip("librosa")
        place = tmp_path_factory.mktemp("beside")
        folder = clips(place / "in")
        wav = wav_bytes()
        for name in (
            *("__MACOSX/yes/._speaker0_nohash_0.wav", ".hidden/a_nohash_0.wav", ".DS_Store"),
            *("yes/._speaker0_nohash_0.wav", "yes/.DS_Store", "yes/Thumbs.db", "yes/desktop.ini"),
            *("yes/speaker0_nohash_0.wav~", "yes/b_nohash_0.wav.part", "README.md"),
            *("yes/c_nohash_0.wav.crdownload", "LICENSE", "testing_list.txt", "no/notes.txt"),
        ):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"\0\5\x16\7")
        for name in (
            "speaker0_nohash_0 (1).wav",
            "Copy of speaker1_nohash_0.wav",
            "speaker2_nohash_0 - Copy.wav",
            "speaker3_nohash_0_1.wav",
        ):
            (folder / "yes" / name).write_bytes(wav)
        bare = os.fsencode(folder)
        os.mkdir(bare + b"/caf\xe9")
        os.mkdir(bare + b"/new\nline")
        for name in (b"/caf\xe9/d_nohash_0.wav", b"/new\nline/e_nohash_0.wav"):
            Path(os.fsdecode(bare + name)).write_bytes(wav)
        Path(os.fsdecode(bare + b"/no/ren\xe9_nohash_0.wav")).write_bytes(wav)
        Path(os.fsdecode(bare + b"/no/\xff.wav")).write_bytes(wav)
        (folder / "broken").mkdir()
        for number in range(3):
            (folder / "broken" / f"f{number}_nohash_0.wav").write_bytes(b"fLaC")
        for kind in ("pipe", "folder", "link to nothing", "link to itself", "socket"):
            special(folder / "no" / f"{kind.replace(' ', '-')}_nohash_0.wav", kind)
        (folder / "loop").symlink_to("loop")
        (folder / "no" / "secret_nohash_0.wav").write_bytes(wav)
        (folder / "no" / "secret_nohash_0.wav").chmod(0)
        for name in ("lost+found", "yes/lost+found"):
            (folder / name).mkdir(mode=0)
        output = os.fsencode(place) + b"/sp\xe9ech"
        try:
            done = prepare(
                "speech", "--input", folder, "--output", output, "--workers", "1",
                env=os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
            )  # fmt: skip
        finally:
            for name in ("lost+found", "yes/lost+found"):
                (folder / name).chmod(0o700)
        return done, Path(os.fsdecode(output))

    def test_it_ends_well(self, converted):
        done, output = converted
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        assert "of 2 words" in done.stdout
        assert "wrote " in done.stdout
        assert "sp\\xe9ech" in done.stdout
        assert output.is_dir()

    def test_the_data_set(self, converted):
        data = Dataset.open(converted[1])
        assert data.classes == ("no", "yes")
        # Ten speakers a word, and one whose name is not UTF-8.
        assert data.rows("train") + data.rows("test") == 21

    def test_all_that_was_left_out_is_named(self, converted):
        made_by = json.loads((converted[1] / "meta.json").read_text("utf-8"))["made_by"]
        assert "sp\\xe9ech" in made_by["command"]
        folders = made_by["left_out_folders"]
        assert folders == {
            "broken": "none of its 3 clips can be read",
            "caf\\xe9": "a word becomes the name of a class, and this one is no printable UTF-8; "
            "rename it",
            "lost+found": "the folder cannot be read (Permission denied)",
            "new\\x0aline": folders["caf\\xe9"],
        }
        flac = "is a FLAC file; convert it to a wav file of 16 bit, mono, 16 kHz"
        copy = "its name is not <speaker>_nohash_<n>.wav; most likely a copy"
        pipe = "is a pipe, must be a file; write what comes out of it to a file, and give that"
        assert made_by["unreadable"] == {
            **{f"broken/f{number}_nohash_0.wav": flac for number in range(3)},
            "no/folder_nohash_0.wav": "is a folder, must be a file",
            "no/link-to-itself_nohash_0.wav": "cannot be read (Too many levels of symbolic links)",
            "no/link-to-nothing_nohash_0.wav": "is a symbolic link to nowhere, which is not there",
            "no/pipe_nohash_0.wav": pipe,
            "no/secret_nohash_0.wav": "cannot be read (Permission denied)",
            "no/socket_nohash_0.wav": "is a socket, must be a file",
            "no/\\xff.wav": "its name is not <speaker>_nohash_<n>.wav",
            "yes/Copy of speaker1_nohash_0.wav": copy,
            "yes/speaker0_nohash_0 (1).wav": copy,
            "yes/speaker2_nohash_0 - Copy.wav": copy,
            "yes/speaker3_nohash_0_1.wav": "its name is not <speaker>_nohash_<n>.wav",
        }

    def test_two_ways_of_unicode(self, tmp_path, capsys):
        folder = clips(tmp_path / "in", ("caf\u00e9", "cafe\u0301"))
        command = ["speech", "--input", str(folder), "--output", str(tmp_path / "out")]
        said = error_of(command, capsys)
        assert "'cafe\\u0301' and 'caf\\xe9' are one name in two ways of Unicode" in said
        for way in ("ren\u00e9", "rene\u0301"):
            (folder / "cafe\u0301" / f"{way}_nohash_0.wav").write_bytes(wav_bytes())
        shutil.rmtree(folder / "caf\u00e9")
        _, found_clips = speech.find_clips(speech.Report(folder))
        assert len({clip.speaker for clip in found_clips if clip.speaker.startswith("ren")}) == 1

    def test_all_words_left_out(self, tmp_path, capsys):
        folder = tmp_path / "in"
        folder.mkdir()
        os.mkdir(os.fsencode(folder) + b"/\xff")
        path = Path(os.fsdecode(os.fsencode(folder) + b"/\xff/a_nohash_0.wav"))
        path.write_bytes(wav_bytes())
        command = ["speech", "--input", str(folder), "--output", str(tmp_path / "out")]
        assert "no clip can be used; \\xff: a word becomes the name" in error_of(command, capsys)

    def test_an_input_that_may_not_be_read(self, tmp_path):
        (tmp_path / "in").mkdir(mode=0)
        (tmp_path / "file").write_text(TEXT)
        (tmp_path / "file").chmod(0)
        (tmp_path / "names").mkdir()
        for name in ("train", "test", "meta"):
            (tmp_path / "names" / name).touch()
        (tmp_path / "names").chmod(0o600)  # its names may be read, and no more
        output = ("--output", tmp_path / "out")
        try:
            for arguments, words in (
                (("speech", "--input", tmp_path / "in"), "in: cannot be read (Permission denied)"),
                (
                    ("speech", "--input", tmp_path / "in" / "x"),
                    "cannot be read (Permission denied)",
                ),
                (("cifar100", "--input", tmp_path / "in"), "in: cannot be read (Permission denied"),
                (("cifar100", "--input", tmp_path / "names"), "meta: cannot be read (Permission"),
                (
                    ("xmc", "--train", tmp_path / "file", "--test", tmp_path / "file"),
                    "file: cannot be read (Permission denied)",
                ),
                (
                    ("xmc", "--train", tmp_path / "in" / "x", "--test", tmp_path / "file"),
                    "x: cannot be read (Permission denied)",
                ),
            ):
                done = prepare(*arguments, *output)
                assert done.returncode == 2, done.stderr
                assert done.stderr.count("\n") == 1
                assert words in done.stderr
        finally:
            for name in ("in", "names"):
                (tmp_path / name).chmod(0o700)


class TestNames:
    def test_a_data_set_of_text_whose_names_are_no_utf_8(self, tmp_path):
        folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
        folder.mkdir()
        train = folder / os.fsdecode(b"tr\xffin.txt")
        train.write_text(TEXT.replace("2 2:0.25", "x"))
        files = ("--train", os.fsencode(train), "--test", os.fsencode(train))
        output = os.fsencode(folder) + b"/d\xe9licious"
        done = prepare("xmc", *files, "--output", output, env=os.environ | {"LC_ALL": "C"})
        assert done.returncode == 2
        assert "caf\\xe9/tr\\xffin.txt, line 4: a label must be a whole number" in done.stderr
        done = prepare("xmc", *files, "--skip-malformed", "--output", output)
        assert done.returncode == 0, done.stderr
        meta = json.loads(Path(os.fsdecode(output + b"/meta.json")).read_text("utf-8"))
        assert meta["name"] == "d\\xe9licious"
        assert [*meta["made_by"]["file_bytes"]] == [f"{tmp_path}/caf\\xe9/tr\\xffin.txt"]

    @pytest.mark.parametrize("name", ["", "a\nb", "\x1b[31m", os.fsdecode(b"caf\xe9")])
    def test_the_name_of_a_data_set(self, name, tmp_path, capsys):
        (tmp_path / "a").write_text(TEXT)
        files = ["--train", str(tmp_path / "a"), "--test", str(tmp_path / "a"), "--name", name]
        said = error_of(["xmc", *files, "--output", str(tmp_path / "out")], capsys)
        assert "--name must be printable UTF-8, at least one character (got " in said

    def test_the_fold_of_a_speaker_is_of_the_bytes_of_the_name(self):
        assert speech.fold_of("é") == 3
        assert speech.fold_of(os.fsdecode(b"\xe9")) in range(speech.NUM_FOLDS)


IN_SANDBOX = """
mount --bind -o ro "$1" "$1" && mount -o remount,ro,bind "$1" || exit 77
shift
exec "$@"
"""


def _can_mount() -> bool:
    done = subprocess.run(
        [*_unshare(), "sh", "-c", 'mount --bind -o ro "$0" "$0"', str(ROOT)],
        capture_output=True,
        timeout=60,
        check=False,
    )
    return done.returncode == 0


def _unshare() -> list[str]:
    return (
        ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    )


class TestNothingCanBeWritten:
    """The folder of the packages is read-only, and there is no home folder."""

    def run(self, code: str, tmp_path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        if shutil.which("unshare") is None or not _can_mount():
            pytest.skip("this system does not let one mount a folder read-only")
        packages = str(Path(np.__file__).parent.parent)
        home = "/dev/null/home"  # nobody can make it, not even root
        return subprocess.run(
            [*_unshare(), "sh", "-c", IN_SANDBOX, "sh", packages, sys.executable, "-c", code],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "HOME": home, "TMPDIR": str(tmp_path)} | variables,
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT_S,
            check=False,
        )

    REQUIRE = """
import os
from ist_hpc.prepare.common import require
require("librosa", "pip")
print(os.path.isdir(os.environ["NUMBA_CACHE_DIR"]), os.environ["NUMBA_CACHE_DIR"])
"""

    def test_librosa_is_imported_and_nothing_is_left(self, tmp_path):
        pytest.importorskip("librosa")
        done = self.run(self.REQUIRE, tmp_path, NUMBA_CACHE_DIR="/dev/null/cache")
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert done.stdout.startswith(f"True {tmp_path}/ist_hpc-cache-")
        assert list(tmp_path.iterdir()) == []

    def test_recordings_are_converted(self, tmp_path):
        pytest.importorskip("librosa")
        folder = clips(tmp_path / "in")
        (tmp_path / "temporary").mkdir()
        code = (
            "import sys; from ist_hpc.prepare.__main__ import main\n"
            "if __name__ == '__main__':\n"
            f"    sys.exit(main(['speech', '--input', {str(folder)!r}, '--workers', '1',"
            f" '--output', {str(tmp_path / 'out')!r}]))"
        )
        done = self.run(code, tmp_path / "temporary", TMPDIR=str(tmp_path / "temporary"))
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert Dataset.open(tmp_path / "out").classes == ("no", "yes")
        assert list((tmp_path / "temporary").iterdir()) == []

    def test_matplotlib_is_imported_without_a_word(self, tmp_path):
        pytest.importorskip("matplotlib")
        code = "from ist_hpc.pictures import new_figure; new_figure(1, 1, 'x')"
        done = self.run(code, tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stderr == done.stdout == ""
        assert list(tmp_path.iterdir()) == []

    def test_nowhere_at_all(self, tmp_path):
        code = (
            "import tempfile; tempfile._candidate_tempdir_list = lambda: ['/dev/null/x']\n"
            "from ist_hpc import caches; from ist_hpc.errors import InputError\n"
            "try: caches.for_numba('librosa')\n"
            "except InputError as error: print(error)"
        )
        done = self.run(code, tmp_path)
        assert "librosa needs a folder to write to as it is imported" in done.stdout, done.stderr
        assert "set TMPDIR to one that can" in done.stdout

    def test_a_folder_that_can_be_written_is_taken(self, tmp_path, monkeypatch):
        from ist_hpc import caches

        monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
        monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))
        assert not caches.for_numba("librosa")
        assert not caches.for_matplotlib()
        assert os.environ["NUMBA_CACHE_DIR"] == os.environ["MPLCONFIGDIR"] == str(tmp_path)


def with_memory(mebibytes: int, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    limit = ["prlimit", f"--as={mebibytes << 20}", sys.executable, "-m", "ist_hpc.prepare"]
    return subprocess.run(
        [*limit, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
        check=False,
    )


class TestNumbersThatInputClaims:
    @pytest.mark.parametrize("labels", [2**31 - 1, 3 * 10**8])
    def test_labels_of_line_1(self, labels, tmp_path):
        (tmp_path / "a").write_text(TEXT.replace("3 4 5", f"3 4 {labels}"))
        files = ("--train", tmp_path / "a", "--test", tmp_path / "a")
        done = with_memory(2500, "xmc", *files, "--output", tmp_path / "out")
        assert done.returncode == 2, done.stderr
        assert f"a, line 1: {labels} labels: needs {32 * labels / 1e9:.1f} GB" in done.stderr
        assert "(what ulimit -v leaves)" in done.stderr
        assert done.stderr.count("\n") == 1
        assert [path.name for path in tmp_path.iterdir()] == ["a"]

    def test_labels_of_made_data(self, tmp_path):
        sizes = ("--labels", "100000000", "--workers", "1")
        output = ("--output", tmp_path / "out")
        done = with_memory(2500, "synthetic", "--like", "delicious", *sizes, *output)
        assert done.returncode == 2, done.stderr
        assert "100000000 labels in 1 processes (--train-rows" in done.stderr
        assert done.stderr.count("\n") == 1

    def test_a_pickle_for_which_there_is_no_memory_is_not_called_damaged(self, tmp_path):
        source = cifar(tmp_path / "in")
        rows = 130_000  # the file has 400 MB, and needs three times as much
        with (source / "train").open("wb") as file:
            pickle.dump(images() | {"data": np.zeros((rows, 3072), np.uint8)}, file, 4)
        output = ("--output", tmp_path / "out")
        done = with_memory(650, "cifar100", "--input", source, *output)
        assert done.returncode == 2, done.stderr
        assert "out of memory" in done.stderr
        assert done.stderr.count("\n") == 1

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["speech", "--input", ".", "--shards", "1000000000"], "--shards must be 1 to 10000"),
            (["speech", "--input", ".", "--workers", "1000000"], "--workers must be 1 to 1024"),
            (["speech", "--input", ".", "--fold", "9" * 4000], "(got a number of many digits)"),
            (["cifar100", "--input", ".", "--shards", "1000000000"], "--shards must be 1 to 10000"),
            (["xmc", "--shards", "1000000000"], "--shards must be 1 to 10000 (got 1000000000)"),
            (["xmc", "--seed", "9" * 4000], "--seed must be 0 to 18446744073709551615 (got a numb"),
            (["xmc", "--split-column", "-" + "9" * 4000], "(got a number of many digits)"),
            (["synthetic", "--like", "delicious", "--workers", "99999"], "--workers must be 1 to"),
            (["synthetic", "--like", "delicious", "--labels", "9" * 99], "--labels must be 1 to"),
            (["digits", "--seed", "9" * 5000], "--seed"),
        ],
    )
    def test_options(self, arguments, words, tmp_path, capsys):
        said = error_of([*arguments, "--output", str(tmp_path / "out")], capsys)
        assert words in said

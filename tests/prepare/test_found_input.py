"""What other programs leave where a data set should be: accepted if that is harmless, else named.

The tables are by kind of file and place where a converter meets it. A message must be true of that
input: it names what the file is, by its content.
"""

import bz2
import gzip
import lzma
import pickle
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ist_hpc.data.shards import Dataset
from ist_hpc.prepare import found
from ist_hpc.prepare.__main__ import main
from ist_hpc.prepare.speech.audio import ClipError, read_clip
from tests.helpers.found_input import (
    LINES,
    PLACES,
    RATE,
    TEXT,
    answer,
    by_h5py,
    by_joblib,
    by_joblib_packed,
    by_scipy,
    by_torch,
    cifar,
    error_of,
    saved,
    sqlite_bytes,
    tar_of,
    wav_bytes,
    zip_of,
)

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
OWN = {("pickle", "cifar100 train"), ("pickle", "cifar100 meta"), ("wav", "speech")}


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

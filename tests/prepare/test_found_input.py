"""What other programs leave where a data set should be: accepted if that is harmless, else named.

The table is by kind of file and place where a converter meets it. A message must be true of that
input: it names what the file is, by its content. `test_found_text` and `test_found_binary` have
files of the right kind with something unusual in them.
"""

import bz2
import gzip
import lzma
import pickle
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ist_hpc.prepare import found
from tests.helpers.found_input import (
    PLACES,
    TEXT,
    answer,
    by_h5py,
    by_joblib,
    by_joblib_packed,
    by_scipy,
    by_torch,
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

"""Pickles and recordings as other programs write them: accepted if harmless, else named."""

import pickle
import struct

import numpy as np
import pytest

from ist_hpc.data.shards import Dataset
from ist_hpc.prepare.__main__ import main
from ist_hpc.prepare.speech.audio import ClipError, read_clip
from tests.helpers.found_input import RATE, cifar, error_of

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

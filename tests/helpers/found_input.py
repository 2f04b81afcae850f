"""What the tests of found input are made of: files of other programs, small data sets, a user."""

import contextlib
import io
import os
import pickle
import sqlite3
import subprocess
import sys
import tarfile
import wave
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ist_hpc.prepare.__main__ import main
from ist_hpc.prepare.speech.audio import ClipError, read_clip

ROOT = Path(__file__).resolve().parents[2]
RATE = 16000
NAMES = ["apple", "bee", "castle"]
LINES = ["0,1 0:0.5 3:2", " 1:1", "2 2:0.25"]
TEXT = "\n".join(["3 4 5", *LINES, ""])
TIME_LIMIT_S = 480
PLACES = ("xmc --train", "xmc --train-split", "cifar100 train", "cifar100 meta", "speech")


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


def clips(folder: Path, words: tuple[str, ...] = ("no", "yes"), speakers: int = 10) -> Path:
    for number, word in enumerate(words):
        (folder / word).mkdir(parents=True)
        for speaker in range(speakers):
            path = folder / word / f"speaker{speaker}_nohash_0.wav"
            path.write_bytes(wav_bytes(800, 100 * number + speaker))
    return folder


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

"""A speech clip: reads its wav file, and computes its log-mel spectrogram.

The worker processes of `prepare speech` import only this file.
"""

import os
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from ist_hpc.prepare.common import require
from ist_hpc.prepare.file_kinds import HEAD_BYTES
from ist_hpc.prepare.found import UnusableError, opened, why

SAMPLE_RATE = 16000  # Hz; also the samples of a clip, which lasts one second
MELS, FRAMES = 128, 32

INSTALL = "pip install 'ist_hpc[speech]'"

_FFT_SAMPLES, _HOP_SAMPLES = 2048, 512
_MOST_CHUNKS = 1000
_PCM, _EXTENSIBLE = 1, 0xFFFE
_GUID_END = bytes.fromhex("000000001000800000aa00389b71")  # of all formats with a number
_FORMATS = {2: "ADPCM", 3: "floating point", 6: "A-law", 7: "mu-law", 17: "ADPCM", 85: "MP3"}
_UNKNOWN_SIZES = (0xFFFFFFFF, 0x7FFFF000)  # of the samples, as ffmpeg and sox write to a pipe


class ClipError(Exception):
    """A clip that cannot be used; the message says why."""


@dataclass(frozen=True)
class Converted:
    """A clip's features, float32 [4096], and how many samples its file has."""

    features: npt.NDArray[np.float32]
    samples: int


def convert_clips(paths: list[Path]) -> list[Converted | str]:
    """The features of each clip, or why it has none. Runs in a worker process."""
    results: list[Converted | str] = []
    for path in paths:
        try:
            clip, samples = read_clip(path)
            results.append(Converted(log_mel(clip).reshape(-1), samples))
        except ClipError as error:
            results.append(str(error))
    return results


def read_clip(path: Path) -> tuple[npt.NDArray[np.float32], int]:
    """The first second of a wav file, padded with zeros, and the file's number of samples.

    Float32 [16000] in [-1, 1). Raises ClipError unless it is RIFF PCM, 16 bit, mono, 16 kHz.
    """
    try:
        with opened(path) as file:
            samples = _find_samples(file, path.name)
            # Reads no more than it uses: a damaged header can claim gigabytes.
            wanted = min(samples, SAMPLE_RATE)
            data = file.read(2 * wanted)
    except UnusableError as error:
        raise ClipError(str(error)) from error
    except OSError as error:
        raise ClipError(f"cannot be read ({error.strerror})") from error
    if len(data) != 2 * wanted:
        raise ClipError(f"truncated: its header says {samples} samples, it has {len(data) // 2}")
    clip = np.zeros(SAMPLE_RATE, dtype=np.float32)
    clip[:wanted] = np.frombuffer(data, dtype="<i2") / np.float32(2**15)
    return clip, samples


def _find_samples(file: BinaryIO, name: str) -> int:
    """The number of samples; moves the file to their beginning. Raises ClipError, OSError."""
    head = file.read(HEAD_BYTES)
    file.seek(12)
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        cut = len(head) < 12 and head[:4] == b"RIFF"
        problem = "it ends too early" if cut else "it does not begin as one"
        raise ClipError(why(name, f"not a readable PCM wav file ({problem})", head, own="wav"))
    seen_format = False
    for _ in range(_MOST_CHUNKS):
        begin = file.read(8)
        if len(begin) < 8:
            raise ClipError("not a readable PCM wav file (it ends too early)")
        kind, size = struct.unpack("<4sI", begin)
        if kind == b"data":
            if not seen_format:
                raise ClipError("not a readable PCM wav file (no format before the samples)")
            return _count_samples(file, size)
        start = file.tell()
        if kind == b"fmt ":
            _check_format(file.read(min(size, 40)))
            seen_format = True
        file.seek(start + size + size % 2)
    raise ClipError(f"not a readable PCM wav file (no samples in its first {_MOST_CHUNKS} chunks)")


def _check_format(form: bytes) -> None:
    if len(form) < 16:
        raise ClipError("not a readable PCM wav file (it ends too early, or its format is damaged)")
    code, channels, rate, _, _, bits = struct.unpack("<HHIIHH", form[:16])
    if code == _EXTENSIBLE and len(form) == 40 and form[26:] == _GUID_END:
        (code,) = struct.unpack("<H", form[24:26])
    got = f"{channels} channels, {bits} bit, {rate} Hz"
    if code != _PCM:
        coding = _FORMATS.get(code, f"format {code}")
        raise ClipError(f"must be PCM, mono, 16 bit, {SAMPLE_RATE} Hz (got {coding}, {got})")
    if (channels, bits, rate) != (1, 16, SAMPLE_RATE):
        raise ClipError(f"must be mono, 16 bit, {SAMPLE_RATE} Hz (got {got})")


def _count_samples(file: BinaryIO, size: int) -> int:
    left = os.fstat(file.fileno()).st_size - file.tell()
    if size in _UNKNOWN_SIZES:
        # Written to a pipe: what follows is the samples.
        size = left
    if size < 2:
        follow = f": its header says so, but {left} bytes follow" if left > 1 and not size else ""
        raise ClipError(f"has no samples{follow}")
    return size // 2


def log_mel(clip: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The spectrogram of one second, float32 [16000]: float32 [128, 32], mels x frames, in dB.

    It has the bits of librosa.feature.melspectrogram and power_to_db(ref=np.max), but reuses the
    mel filters: building them for every clip takes most of the time. A silent clip is all zeros.
    """
    librosa = require("librosa", INSTALL)
    spectrum = librosa.stft(clip, n_fft=_FFT_SAMPLES, hop_length=_HOP_SAMPLES)
    power = _mel_filters() @ np.abs(spectrum) ** 2
    return np.asarray(librosa.power_to_db(power, ref=np.max), dtype=np.float32)


@cache
def _mel_filters() -> npt.NDArray[np.float32]:
    filters = require("librosa.filters", INSTALL).mel(
        sr=SAMPLE_RATE, n_fft=_FFT_SAMPLES, n_mels=MELS
    )
    return np.asarray(filters, dtype=np.float32)

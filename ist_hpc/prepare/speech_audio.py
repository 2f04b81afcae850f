"""A speech clip: reading its wav file, and its log-mel spectrogram.

This is all that the worker processes of `prepare speech` import.
"""

import wave
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

SAMPLE_RATE = 16000  # Hz; also the samples of a clip, which lasts one second
MELS, FRAMES = 128, 32

_FFT_SAMPLES, _HOP_SAMPLES = 2048, 512


class ClipError(Exception):
    """A clip that cannot be used; the message says why."""


@dataclass(frozen=True)
class Converted:
    """A clip's features, float32 [4096], and how many samples its file has."""

    features: npt.NDArray[np.float32]
    samples: int


def convert_clips(paths: list[Path]) -> list[Converted | str]:
    """The features of each clip, or the reason why it has none. Runs in a worker process."""
    results: list[Converted | str] = []
    for path in paths:
        try:
            clip, samples = read_clip(path)
            results.append(Converted(log_mel(clip).reshape(-1), samples))
        except ClipError as error:
            results.append(str(error))
    return results


def read_clip(path: Path) -> tuple[npt.NDArray[np.float32], int]:
    """The first second of a wav file, padded with zeros, and how many samples the file has.

    Float32 [16000] in [-1, 1). Raises ClipError unless it is RIFF PCM, 16 bit, mono, 16 kHz.
    """
    try:
        with wave.open(str(path), "rb") as file:
            form = file.getparams()
            # No more than is used: a damaged header can claim gigabytes.
            wanted = min(form.nframes, SAMPLE_RATE)
            data = file.readframes(wanted)
    except (wave.Error, EOFError, OSError, RuntimeError) as error:
        reason = str(error) or "it ends too early"
        raise ClipError(f"not a readable PCM wav file ({reason})") from error
    got = (form.nchannels, 8 * form.sampwidth, form.framerate)
    if got != (1, 16, SAMPLE_RATE):
        raise ClipError(
            f"must be mono, 16 bit, {SAMPLE_RATE} Hz (got {got[0]} channels, {got[1]} bit, "
            f"{got[2]} Hz)"
        )
    if len(data) != 2 * wanted:
        raise ClipError(
            f"truncated: its header says {form.nframes} samples, it has {len(data) // 2}"
        )
    if not wanted:
        raise ClipError("has no samples")
    clip = np.zeros(SAMPLE_RATE, dtype=np.float32)
    clip[:wanted] = np.frombuffer(data, dtype="<i2") / np.float32(2**15)
    return clip, form.nframes


def log_mel(clip: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The spectrogram of one second, float32 [16000]: float32 [128, 32], mels x frames, in dB.

    The bits of librosa.feature.melspectrogram and power_to_db(ref=np.max), without making the mel
    filters anew for every clip, which is most of the time. A silent clip is all zeros.
    """
    import librosa

    spectrum = librosa.stft(clip, n_fft=_FFT_SAMPLES, hop_length=_HOP_SAMPLES)
    power = _mel_filters() @ np.abs(spectrum) ** 2
    return np.asarray(librosa.power_to_db(power, ref=np.max), dtype=np.float32)


@cache
def _mel_filters() -> npt.NDArray[np.float32]:
    import librosa

    filters = librosa.filters.mel(sr=SAMPLE_RATE, n_fft=_FFT_SAMPLES, n_mels=MELS)
    return np.asarray(filters, dtype=np.float32)

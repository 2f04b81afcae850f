"""Google Speech Commands (v0.01 or v0.02) as log-mel spectrograms, as in the paper's experiments.

DIR holds a folder a word with clips named <speaker>_nohash_<n>.wav, RIFF PCM of 16 bit, mono,
16 kHz; folders whose name begins with _ or . are ignored. A clip becomes 4096 float32 features:
128 mels x 32 frames (librosa's defaults, FFT of 2048 samples, hop of 512), in dB relative to the
loudest of the clip, row-major. Clips are padded with zeros, or cut, to one second. A clip that
cannot be read is named and left out, and so is a word without any that can.

A fifth of the speakers, by the SHA-1 of their name, is the test set: nobody is in both. --fold says
which fifth; over the five folds every clip is tested once.
"""

import argparse
import math
import time
from collections.abc import Generator
from contextlib import closing

import numpy as np

from ist_hpc.common.commandline import given_path
from ist_hpc.common.disk import caches
from ist_hpc.common.errors import InputError, printable
from ist_hpc.data.shards import DatasetWriter
from ist_hpc.prepare.common import (
    add_output_arguments,
    answers_for_memory,
    begin,
    check_counts,
    check_range,
    of_output,
    ordered_map,
    require,
    shard_ends,
    usable_cores,
)
from ist_hpc.prepare.speech.audio import (
    FRAMES,
    INSTALL,
    MELS,
    SAMPLE_RATE,
    Converted,
    convert_clips,
    log_mel,
)
from ist_hpc.prepare.speech.clips import find_clips
from ist_hpc.prepare.speech.report import Clip, Report, print_report
from ist_hpc.prepare.speech.split import NUM_FOLDS, split_rows

HELP = "Google Speech Commands: one-second clips of spoken words as log-mel spectrograms"
EXAMPLES = """\
examples:
  python -m ist_hpc.prepare speech --input speech_commands_v0.02 --output data/speech
  python -m ist_hpc.prepare speech --input speech_commands_v0.02 --output data/speech-fold1 --fold 1
"""

_CLIPS_A_TASK = 16
_TRAIN_SHARDS_PER_TEST_SHARD = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `prepare speech`."""
    parser.add_argument(
        "--input", type=given_path, required=True, metavar="DIR", help="the folder of word folders"
    )
    add_output_arguments(parser)
    parser.add_argument(
        "--fold",
        type=int,
        default=0,
        help=f"which fifth of the speakers is the test set, 0 to {NUM_FOLDS - 1} (default 0)",
    )
    parser.add_argument(
        "--shards",
        type=int,
        default=8,
        help="files of train rows (default 8); a quarter as many of test rows",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=usable_cores(),
        help="processes; any number gives the same data (default: every core, here %(default)s)",
    )


@answers_for_memory
def run(args: argparse.Namespace) -> None:
    """Do what `prepare speech` was asked; raises InputError."""
    begin(args)
    began = time.perf_counter()
    check_range("--fold", args.fold, 0, NUM_FOLDS - 1)
    check_counts(args.shards, args.workers)
    require("librosa", INSTALL)
    if caches.is_own(caches.NUMBA_VARIABLE):
        # Functions compiled at first use are kept for the workers; else each would compile them.
        log_mel(np.zeros(SAMPLE_RATE, dtype=np.float32))
    report = Report(args.input)
    words, clips = find_clips(report)
    parts = {
        split: [clips[row] for row in rows]
        for split, rows in split_rows(clips, args.fold, args.seed).items()
    }
    _write(args, words, parts, report)
    seconds = time.perf_counter() - began
    print_report(args.output, words, report, seconds)


def _write(
    args: argparse.Namespace, words: list[str], parts: dict[str, list[Clip]], report: Report
) -> None:
    shards = {"train": args.shards, "test": max(1, args.shards // _TRAIN_SHARDS_PER_TEST_SHARD)}
    with DatasetWriter(
        args.output,
        name="speech",
        feature_shape=(MELS * FRAMES,),
        feature_dtype="float32",
        feature_description=(
            f"log-mel spectrogram, {MELS} mels x {FRAMES} frames, row-major; "
            "FFT of 2048 samples, hop of 512, at 16 kHz; dB relative to the loudest of the clip"
        ),
        classes=words,
        made_by={
            "command": printable(args.command_line),
            "parameters": {"fold": args.fold, "seed": args.seed, "shards": args.shards},
            "source": "Google Speech Commands",
        },
        shard_rows=max(-(-len(parts[split]) // count) for split, count in shards.items()),
        **of_output(args),
    ) as writer:
        with closing(_converted(parts["train"] + parts["test"], args.workers)) as results:
            for split, clips in parts.items():
                ends = set(shard_ends(len(clips), shards[split]))
                for row, clip in enumerate(clips, start=1):
                    _append(writer, split, clip, next(results), report)
                    if row in ends:
                        writer.end_shard(split)
        _check_readable(words, parts, report)
        writer.made_by.update(report.as_json(), versions=_versions())


def _append(
    writer: DatasetWriter, split: str, clip: Clip, result: Converted | str, report: Report
) -> None:
    if isinstance(result, str):
        report.left_out(clip.path, result)
    else:
        writer.append(split, result.features[np.newaxis], np.array([clip.label]))
        report.used(split, clip, result.samples)


def _check_readable(words: list[str], parts: dict[str, list[Clip]], report: Report) -> None:
    for split, clips in parts.items():
        if not report.rows[split]:
            name, reason = next(iter(report.named(report.unreadable).items()))
            raise InputError(
                f"--input {report.folder}: none of the {len(clips)} {split} clips can be read, "
                f"for example {name}: {reason}"
            )
    # One clip of each word was read before; a disk may fail after that.
    used = {clip.label for part in parts.values() for clip in part} - report.labels
    if used:
        raise InputError(
            f"--input {report.folder}: a clip of {words[min(used)]} could be read when it began, "
            "and none later; try again"
        )


def _converted(clips: list[Clip], workers: int) -> Generator[Converted | str, None, None]:
    """The features of each clip in order, or why it has none."""
    tqdm = require("tqdm", INSTALL).tqdm
    tasks = (
        [clip.path for clip in clips[start : start + _CLIPS_A_TASK]]
        for start in range(0, len(clips), _CLIPS_A_TASK)
    )
    workers = min(workers, math.ceil(len(clips) / _CLIPS_A_TASK))
    # disable=None: no bar unless stderr is a terminal, so that a batch log stays readable.
    with (
        tqdm(total=len(clips), unit="clip", disable=None, leave=False) as bar,
        closing(ordered_map(convert_clips, tasks, workers)) as blocks,
    ):
        for results in blocks:
            yield from results
            bar.update(len(results))


def _versions() -> dict[str, str]:
    return {name: str(require(name, INSTALL).__version__) for name in ("librosa", "numpy")}

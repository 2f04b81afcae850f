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
import hashlib
import math
import os
import re
import time
import unicodedata
from collections import Counter
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ist_hpc.common import caches
from ist_hpc.common.commandline import given_path
from ist_hpc.common.errors import InputError, printable
from ist_hpc.common.names import entries, is_text
from ist_hpc.common.streams import permutation
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
    say,
    shard_ends,
    usable_cores,
)
from ist_hpc.prepare.found import folder_refused, input_folder
from ist_hpc.prepare.speech.audio import (
    FRAMES,
    INSTALL,
    MELS,
    SAMPLE_RATE,
    ClipError,
    Converted,
    convert_clips,
    log_mel,
    read_clip,
)

HELP = "Google Speech Commands: one-second clips of spoken words as log-mel spectrograms"
EXAMPLES = """\
examples:
  python -m ist_hpc.prepare speech --input speech_commands_v0.02 --output data/speech
  python -m ist_hpc.prepare speech --input speech_commands_v0.02 --output data/speech-fold1 --fold 1
"""

NUM_FOLDS = 5

_CLIP = "<speaker>_nohash_<n>.wav"
# A blank, or anything after the number, marks a copy: "Copy of ...", "... (1).wav".
_CLIP_NAME = re.compile(r"(?P<speaker>\S+?)_nohash_[0-9]+\.(?i:wav)")
_HASH_BYTES = 8  # of a SHA-1; a fold is a fifth of their range
_CLIPS_A_TASK = 16
_WORDS_TRIED = 20  # in another folder, which may be the right one
_TRAIN_SHARDS_PER_TEST_SHARD = 4
_MOST_NAMED = 5  # unreadable clips named on stderr; meta.json names them all


@dataclass(frozen=True)
class Clip:
    """A wav file: its path, the number of its word, its speaker."""

    path: Path
    label: int
    speaker: str


@dataclass
class Report:
    """The results of the clips below `folder`.

    `unreadable` maps a clip to the reason why it was left out; `folders` maps a whole folder.
    """

    folder: Path
    padded: int = 0
    cut: int = 0
    unreadable: dict[Path, str] = field(default_factory=dict)
    folders: dict[Path, str] = field(default_factory=dict)
    rows: Counter[str] = field(default_factory=Counter)
    labels: set[int] = field(default_factory=set)
    speakers: dict[str, set[str]] = field(default_factory=lambda: {"train": set(), "test": set()})

    def left_out(self, path: Path, reason: str) -> None:
        """Count a clip that cannot be used."""
        self.unreadable[path] = reason

    def folder_left_out(self, path: Path, reason: str) -> None:
        """Name a folder that is not used at all."""
        self.folders[path] = reason

    def named(self, left_out: dict[Path, str]) -> dict[str, str]:
        """Paths below `folder` in printable form; sorted."""
        return {
            printable(str(path.relative_to(self.folder))): reason
            for path, reason in sorted(left_out.items(), key=lambda item: os.fsencode(item[0]))
        }

    def used(self, split: str, clip: Clip, samples: int) -> None:
        """Count a clip that became a row of `split`, and its file's number of samples."""
        self.rows[split] += 1
        self.labels.add(clip.label)
        self.speakers[split].add(clip.speaker)
        self.padded += samples < SAMPLE_RATE
        self.cut += samples > SAMPLE_RATE

    def as_json(self) -> dict[str, Any]:
        """For `made_by` in meta.json."""
        return {
            "clips": self.rows.total() + len(self.unreadable),
            "padded": self.padded,
            "cut": self.cut,
            "speakers": {split: len(names) for split, names in self.speakers.items()},
            "unreadable": self.named(self.unreadable),
            "left_out_folders": self.named(self.folders),
        }


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
    _print_report(args.output, words, report, seconds)


def find_clips(report: Report) -> tuple[list[str], list[Clip]]:
    """The words below `report.folder`, sorted, and their clips, sorted by word and name.

    A word is a folder with a storable name and at least one readable wav file.
    A clip whose name has no speaker is left out. Raises InputError if there is no such folder or no
    clip in it, or if two words cannot be told apart.
    """
    folder = report.folder
    input_folder("--input", folder, _where_to_get())
    words: list[str] = []
    clips: list[Clip] = []
    for word in entries(folder, report.folder_left_out, _may_be_word):
        found = _clips_of(word, len(words), report)
        if found and _may_be_class(word, found, report):
            words.append(word.name)
            clips += found
    if not clips:
        raise _no_clips(report)
    _check_different(folder, words)
    return words, clips


def _may_be_word(path: Path) -> bool:
    return path.is_dir() and path.name[0] not in "_."


def _may_be_clip(path: Path) -> bool:
    return path.suffix.lower() == ".wav" and path.name[0] != "."


def _clips_of(word: Path, label: int, report: Report) -> list[Clip]:
    clips = []
    for path in entries(word, report.folder_left_out, _may_be_clip):
        form = _CLIP_NAME.fullmatch(path.name)
        if form:
            # A name may be composed or decomposed; that must not put a speaker into both sets.
            clips.append(Clip(path, label, unicodedata.normalize("NFC", form["speaker"])))
        else:
            copy = "; most likely a copy" if " " in path.name else ""
            report.left_out(path, f"its name is not {_CLIP}{copy}")
    return clips


def _may_be_class(word: Path, clips: list[Clip], report: Report) -> bool:
    """Whether a word can be a class of the data set; if not, report why."""
    if not is_text(word.name):
        report.folder_left_out(
            word,
            "a word becomes the name of a class, and this one is no printable UTF-8; rename it",
        )
        return False
    reasons = {}
    for clip in clips:
        try:
            read_clip(clip.path)
            return True
        except ClipError as error:
            reasons[clip.path] = str(error)
    for path, reason in reasons.items():
        report.left_out(path, reason)
    report.folder_left_out(word, f"none of its {len(clips)} clips can be read")
    return False


def _check_different(folder: Path, words: list[str]) -> None:
    seen: dict[str, str] = {}
    for word in words:
        other = seen.setdefault(unicodedata.normalize("NFC", word), word)
        if other != word:
            raise InputError(
                f"--input {folder}: the words {other!a} and {word!a} are one name in two ways of "
                "Unicode; put their clips into one folder, or rename one"
            )


def _no_clips(report: Report) -> InputError:
    folder, unreadable = report.folder, report.named(report.unreadable)
    form = [
        (name, why) for name, why in unreadable.items() if not why.startswith("its name is not")
    ]
    if form:
        name, why = form[0]
        return InputError(
            f"--input {folder}: none of the {len(form)} clips can be read, "
            f"for example {name}: {why}"
        )
    for name, why in report.named(report.folders).items():
        return InputError(f"--input {folder}: no clip can be used; {name}: {why}")
    found = "none of its .wav files has such a name" if unreadable else "it has no such file"
    return folder_refused(
        "--input",
        folder,
        f"must hold clips <word>/{_CLIP}, but {found}",
        _where_to_get(),
        _holds_words,
    )


def _holds_words(folder: Path) -> bool:
    def ignore(path: Path, reason: str) -> None:
        pass

    return any(
        _CLIP_NAME.fullmatch(path.name)
        for word in entries(folder, ignore, _may_be_word)[:_WORDS_TRIED]
        for path in entries(word, ignore, _may_be_clip)
    )


def _where_to_get() -> str:
    return (
        "give the folder that the archive speech_commands_v0.02.tar.gz unpacks to "
        "(http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz)"
    )


def fold_of(speaker: str) -> int:
    """The fold, 0 to 4, in whose test set the speaker is: a fifth of the range of a SHA-1.

    Its leading bytes decide. The data set's publisher divides by the last 27 bits; dividing by the
    same bits would make nearly all of the official test archive test rows in one fold and train
    rows in the others. The leading bytes divide that archive, and any other part, evenly.
    """
    digest = hashlib.sha1(os.fsencode(speaker), usedforsecurity=False).digest()
    leading = int.from_bytes(digest[:_HASH_BYTES], "big")
    return leading * NUM_FOLDS >> (8 * _HASH_BYTES)


def split_rows(clips: list[Clip], fold: int, seed: int) -> dict[str, list[int]]:
    """The positions in `clips` of the train and of the test rows, each in its random order.

    The order matters: a rank gets a contiguous range of rows, which unshuffled would have only a
    few words. Raises InputError if either part is empty.
    """
    is_test = [fold_of(clip.speaker) == fold for clip in clips]
    order = permutation("prepare speech rows", seed, 0, len(clips)).tolist()
    rows = {
        "train": [row for row in order if not is_test[row]],
        "test": [row for row in order if is_test[row]],
    }
    for split, chosen in rows.items():
        if not chosen:
            speakers = len({clip.speaker for clip in clips})
            raise InputError(
                f"fold {fold} of {speakers} speakers leaves no {split} clips; "
                "give another --fold or an --input with more speakers"
            )
    return rows


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


def _print_report(output: Path, words: list[str], report: Report, seconds: float) -> None:
    unreadable = report.named(report.unreadable)
    named = [*report.named(report.folders).items(), *unreadable.items()]
    for name, reason in named[:_MOST_NAMED]:
        say(f"prepare: warning: left out {name}: {printable(reason)}", error=True)
    if len(named) > _MOST_NAMED:
        more = len(named) - _MOST_NAMED
        say(f"prepare: warning: left out {more} more, named in meta.json", error=True)
    rows, speakers = report.rows, report.speakers
    clips = rows.total() + len(unreadable)
    say(
        f"speech: {clips} clips of {len(words)} words; "
        f"{report.padded} padded, {report.cut} cut, {len(unreadable)} unreadable\n"
        f"train: {rows['train']} rows of {len(speakers['train'])} speakers; "
        f"test: {rows['test']} rows of {len(speakers['test'])} speakers\n"
        f"{seconds:.1f} s, {clips / seconds:.0f} clips/s; wrote {printable(str(output))}"
    )

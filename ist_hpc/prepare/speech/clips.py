"""The words and the clips in a folder of recordings; what cannot be used is told the report."""

import re
import unicodedata
from pathlib import Path

from ist_hpc.common.disk.names import entries, is_text
from ist_hpc.common.errors import InputError
from ist_hpc.prepare.found import folder_refused, input_folder
from ist_hpc.prepare.speech.audio import ClipError, read_clip
from ist_hpc.prepare.speech.report import Clip, Report

_CLIP = "<speaker>_nohash_<n>.wav"
# A blank, or anything after the number, marks a copy: "Copy of ...", "... (1).wav".
_CLIP_NAME = re.compile(r"(?P<speaker>\S+?)_nohash_[0-9]+\.(?i:wav)")
_WORDS_TRIED = 20  # in another folder, which may be the right one


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

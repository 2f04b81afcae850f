"""What became of the clips below a folder: which are used, and why others are not."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ist_hpc.common.errors import printable
from ist_hpc.prepare.common import say
from ist_hpc.prepare.speech.audio import SAMPLE_RATE

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


def print_report(output: Path, words: list[str], report: Report, seconds: float) -> None:
    """Say what was converted into `output`, and name the first of what was left out."""
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

"""The contents of a checkpoint, on one screen."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from ist_hpc.checkpoint.folder import Checkpoint
from ist_hpc.checkpoint.read import OpenCheckpoint
from ist_hpc.checkpoint.statistics import GROUPS, statistics_of
from ist_hpc.config.keys import (
    MlpConfig,
    ModelConfig,
    ResnetConfig,
    channels_of,
    sections_of,
)
from ist_hpc.config.yaml_text import read_yaml, write_yaml

_MOST_FILES = 8  # listed one by one
_MOST_CLASSES = 10  # named


def describe(checkpoint: Checkpoint) -> list[str]:
    """Check the files of a checkpoint; return the lines about it. Local.

    Raises `InputError` if a file is damaged: the lines describe only what was saved.
    """
    checkpoint.check_files(checkpoint.files)
    with checkpoint.opened() as opened:
        facts = [f"  {name:10} {value}" for name, value in _facts(checkpoint, opened)]
        tensors, unusable = _tensor_lines(opened)
        configuration = _configuration_lines(opened)
    files = _file_lines(checkpoint)
    lines = [str(checkpoint.folder), *facts, *tensors, *files, *configuration]
    if unusable:
        lines += ["", f"{unusable} values are NaN or infinite: training diverged"]
    return lines


def _facts(checkpoint: Checkpoint, opened: OpenCheckpoint) -> Iterator[tuple[str, str]]:
    """The facts printed on top, as (name, value)."""
    attributes, progress = opened.file.attrs, opened.progress
    epochs = _epochs(checkpoint.folder, progress.round)
    passed = f"{epochs:.2f} epochs, " if epochs is not None else ""
    best = f"{progress.best:.4f}" if progress.best >= 0 else "none, not evaluated yet"
    data = opened.data
    classes = ", ".join(data.classes[:_MOST_CLASSES]) or "without names"
    more = ", ..." if len(data.classes) > _MOST_CLASSES else ""
    yield (
        "format",
        f"{attributes['format']}, version {attributes['format_version']}, written by ist_hpc "
        f"{attributes['package_version']}",
    )
    yield "trained", f"algorithm {opened.config.train.algorithm} on {progress.ranks} rank(s)"
    yield (
        "progress",
        f"{progress.round} rounds, {progress.steps} local steps a rank, {passed}"
        f"{progress.samples} samples",
    )
    yield "best", f"test {opened.metric.replace('_', ' ')} {best}"
    yield "model", f"{opened.config.model.kind}, {_widths(opened.config.model)}"
    yield "features", f"{data.features} a row{', sparse' if data.sparse else ''}"
    yield "labels" if data.sparse else "classes", f"{data.outputs}: {classes}{more}"


def _widths(model: ModelConfig) -> str:
    """The sizes of a network in words."""

    def sizes(numbers: Sequence[int]) -> str:
        return f"[{', '.join(map(str, numbers))}]"

    if isinstance(model, ResnetConfig):
        return f"sections {sizes(sections_of(model))}, channels {sizes(channels_of(model))}"
    if isinstance(model, MlpConfig):
        return f"hidden {sizes(model.hidden)}"
    held = "dealt out" if model.deal_channels else "frozen" if model.freeze_body else "shared"
    return f"hidden {sizes(model.hidden)}, channels {sizes(channels_of(model))}, {held}"


def _epochs(folder: Path, round_index: int) -> float | None:
    """Passes over the training rows, from the run's metrics.jsonl if it exists.

    The checkpoint alone does not have the number of rows.
    """
    try:
        with (folder.parent.parent / "metrics.jsonl").open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                if row["round"] == round_index:
                    return float(row["epoch"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _tensor_lines(opened: OpenCheckpoint) -> tuple[list[str], int]:
    """The table of tensors, and how many values are not finite."""
    lines: list[str] = []
    unusable = 0
    for group in GROUPS:
        rows = []
        for key in opened.keys(group):
            shape = opened.shape(group, key)
            found = statistics_of(opened, group, key, shape)
            unusable += found.unusable
            rows.append((key, shape, found, _about(opened, group, key)))
        if not rows:
            continue
        size = sum(_mib(shape) for _, shape, _, _ in rows)
        columns = (
            f"{'shape':>14} {'MiB':>9} {'mean':>10} {'std':>10} {'min':>10} {'max':>10}  about"
        )
        width = max(len(key) for key, *_ in rows)
        width = max(width, len(group) + 14)
        lines += ["", f"{f'{group}, {size:.2f} MiB':{width + 2}} {columns}"]
        for key, shape, found, about in rows:
            numbers = (found.mean, found.std, found.low, found.high)
            lines.append(
                f"  {key:{width}} {' x '.join(map(str, shape)):>14} {_mib(shape):9.3f} "
                + " ".join(f"{number:10.3g}" for number in numbers)
                + (f"  {found.unusable} NaN or infinite!" if found.unusable else "")
                + f"  {about}"
            )
    return lines, unusable


def _about(opened: OpenCheckpoint, group: str, key: str) -> str:
    about = str(opened.file[group][key].attrs.get("about", ""))
    return about.removeprefix("dimensions: ")


def _mib(shape: Sequence[int]) -> float:
    return 4 * math.prod(shape) / 2**20


def _file_lines(checkpoint: Checkpoint) -> list[str]:
    sizes = {name: size for name, (size, _) in sorted(checkpoint.files.items())}
    lines = ["", f"files, {sum(sizes.values()) / 2**20:.2f} MiB"]
    for name in list(sizes)[:_MOST_FILES]:
        lines.append(f"  {name:20} {sizes[name]:14,} bytes")
    if len(sizes) > _MOST_FILES:
        lines.append(f"  ... and {len(sizes) - _MOST_FILES} more")
    return lines


def _configuration_lines(opened: OpenCheckpoint) -> list[str]:
    """A line for each section, as YAML for `train --config`."""
    lines = ["", "configuration"]
    values_of = read_yaml(str(opened.file.attrs["config"]), f"of {opened.path}")
    for section, values in values_of.items():
        lines.append("  " + write_yaml({section: values}, one_line=True).strip()[1:-1])
    return lines

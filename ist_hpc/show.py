"""`python -m ist_hpc.show`: what is in a checkpoint, whether it is whole, and its plain export.

No MPI is started: one process reads the checkpoint a block of rows at a time. Only `--export` holds
the whole model.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ist_hpc.common.commandline import Parser, add_version, given_path
from ist_hpc.common.errors import EXIT_BAD_INPUT, InputError
from ist_hpc.common.files import exists_error, refuse_target, replacing
from ist_hpc.common.outputs import complain, only_printing
from ist_hpc.config.keys import (
    MlpConfig,
    ModelConfig,
    ResnetConfig,
    channels_of,
    sections_of,
    subnets_of,
)
from ist_hpc.config.yaml_text import read_yaml, write_yaml
from ist_hpc.runtime.ending import run

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    from ist_hpc.checkpoint.read import Checkpoint, OpenCheckpoint
    from ist_hpc.models.base import ExportEntry, Model

_PROGRAM = "python -m ist_hpc.show"
_DESCRIPTION = """\
Show how a run stands, or what is in a checkpoint. Of a run's folder: why it stopped or that it goes
on, its progress, rates, metrics, checkpoints and starts. Of a checkpoint (its folder, or the
checkpoint.h5 in it): what it is, every tensor with its shape and statistics, its files and its
configuration. Needs no MPI, and memory for a few MiB of rows, whatever the model.
"""
_EPILOG = f"""\
examples:
  {_PROGRAM} runs/a                                     how the run stands
  {_PROGRAM} runs/a/checkpoints/round-00000040          what is in a checkpoint
  {_PROGRAM} runs/a --verify                            its newest: is every byte as it was?
  {_PROGRAM} runs/a --export model.pt                   for PyTorch, without this package

exit code 2, and one line that names the file, for a checkpoint that is damaged or not there.
docs/checkpoint-format.md describes the files; h5ls, h5dump and h5py read them, too.
"""

GROUPS = ("parameters", "statistics", "optimizer")
_BLOCK_BYTES = 8 << 20  # read at a time
_MOST_FILES = 8  # listed one by one
_MOST_CLASSES = 10  # named


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog=_PROGRAM,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint", type=given_path, metavar="CKPT", help="checkpoint or run folder"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="check the SHA-256 of every file, read every tensor, refuse NaN and infinity; of a "
        "run's folder the newest checkpoint",
    )
    parser.add_argument(
        "--export",
        type=given_path,
        metavar="FILE",
        help="write a PyTorch state dict (torch.save) that loads without this package, and print "
        "the Python that loads it; the one command that holds the whole model in memory",
    )
    parser.add_argument("--overwrite", action="store_true", help="let --export replace FILE")
    add_version(parser)
    arguments = parser.parse_args(argv)
    if arguments.overwrite and not arguments.export:
        raise InputError("--overwrite is of --export FILE, which is not given")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Parse arguments and do what they ask. Returns the exit code."""
    try:
        _show(_arguments(argv))
    except InputError as error:
        sys.stdout.flush()
        complain(f"show: error: {error}")
        return EXIT_BAD_INPUT
    return 0


def _show(arguments: argparse.Namespace) -> None:
    from ist_hpc.checkpoint.read import Checkpoint, resolve
    from ist_hpc.show_run import describe_run, is_run

    if not arguments.verify and not arguments.export and is_run(arguments.checkpoint):
        with only_printing():
            print("\n".join(describe_run(arguments.checkpoint)))
        return
    if arguments.export:
        refuse_target(arguments.export, "--export", arguments.overwrite)
    checkpoint = Checkpoint(resolve(arguments.checkpoint))
    if arguments.verify:
        verify(checkpoint)
    if arguments.export:
        export(checkpoint, arguments.export, arguments.overwrite)
    if not arguments.verify and not arguments.export:
        with only_printing():
            describe(checkpoint)


# What the checkpoint is.


def describe(checkpoint: "Checkpoint") -> None:
    """Check the files of a checkpoint and print what is in it, on one screen. Local.

    Raises `InputError` if a file is damaged: what is printed is what was saved.
    """
    checkpoint.check_files(checkpoint.files)
    with checkpoint.opened() as opened:
        facts = [f"  {name:10} {value}" for name, value in _facts(checkpoint, opened)]
        tensors, unusable = _tensor_lines(opened)
        configuration = _configuration_lines(opened)
    print(checkpoint.folder)
    print("\n".join([*facts, *tensors, *_file_lines(checkpoint), *configuration]))
    if unusable:
        print(f"\n{unusable} values are NaN or infinite: training diverged")


def _facts(checkpoint: "Checkpoint", opened: "OpenCheckpoint") -> Iterator[tuple[str, str]]:
    """What is printed on top, as (name, value)."""
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
    """What `show` says of the sizes of a network."""

    def sizes(numbers: Sequence[int]) -> str:
        return f"[{', '.join(map(str, numbers))}]"

    if isinstance(model, ResnetConfig):
        return f"sections {sizes(sections_of(model))}, channels {sizes(channels_of(model))}"
    if isinstance(model, MlpConfig):
        return f"hidden {sizes(model.hidden)}"
    held = "dealt out" if model.deal_channels else "frozen" if model.freeze_body else "shared"
    return f"hidden {sizes(model.hidden)}, channels {sizes(channels_of(model))}, {held}"


def _epochs(folder: Path, round_index: int) -> float | None:
    """Passes over the training rows, from the run's metrics.jsonl if it is there.

    The checkpoint alone does not know how many rows there were.
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


@dataclass(frozen=True)
class _Summary:
    """Mean, standard deviation and range of the finite values, and how many are not finite."""

    mean: float
    std: float
    low: float
    high: float
    unusable: int


def _summarise(blocks: Iterator["npt.NDArray[Any]"]) -> _Summary:
    """Statistics of values that come in blocks, in float64, by merging those of the blocks."""
    import numpy as np

    count, mean, squares = 0, 0.0, 0.0
    low, high, unusable = math.inf, -math.inf, 0
    for block in blocks:
        finite = block[np.isfinite(block)] if not np.isfinite(block).all() else block
        unusable += block.size - finite.size
        if not finite.size:
            continue
        block_mean = float(finite.mean(dtype=np.float64))
        difference = block_mean - mean
        total = count + finite.size
        squares += float(finite.var(dtype=np.float64)) * finite.size
        squares += difference**2 * count * finite.size / total
        mean += difference * finite.size / total
        count = total
        low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if not count:
        return _Summary(math.nan, math.nan, math.nan, math.nan, unusable)
    return _Summary(mean, math.sqrt(squares / count), low, high, unusable)


def _blocks(
    opened: "OpenCheckpoint", group: str, key: str, shape: tuple[int, ...]
) -> Iterator["npt.NDArray[Any]"]:
    """The rows of a tensor, about `_BLOCK_BYTES` at a time."""
    step = max(1, _BLOCK_BYTES // (4 * max(1, math.prod(shape[1:]))))
    for start in range(0, shape[0], step):
        yield opened.rows(group, key, shape, (start, min(start + step, shape[0])))


def _tensor_lines(opened: "OpenCheckpoint") -> tuple[list[str], int]:
    """The table of tensors, and how many values are not finite."""
    lines: list[str] = []
    unusable = 0
    for group in GROUPS:
        rows = []
        for key in opened.keys(group):
            shape = opened.shape(group, key)
            found = _summarise(_blocks(opened, group, key, shape))
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


def _about(opened: "OpenCheckpoint", group: str, key: str) -> str:
    about = str(opened.file[group][key].attrs.get("about", ""))
    return about.removeprefix("dimensions: ")


def _mib(shape: Sequence[int]) -> float:
    return 4 * math.prod(shape) / 2**20


def _file_lines(checkpoint: "Checkpoint") -> list[str]:
    sizes = {name: size for name, (size, _) in sorted(checkpoint.files.items())}
    lines = ["", f"files, {sum(sizes.values()) / 2**20:.2f} MiB"]
    for name in list(sizes)[:_MOST_FILES]:
        lines.append(f"  {name:20} {sizes[name]:14,} bytes")
    if len(sizes) > _MOST_FILES:
        lines.append(f"  ... and {len(sizes) - _MOST_FILES} more")
    return lines


def _configuration_lines(opened: "OpenCheckpoint") -> list[str]:
    """A line for each section, as YAML that `train --config` takes."""
    lines = ["", "configuration"]
    values_of = read_yaml(str(opened.file.attrs["config"]), f"of {opened.path}")
    for section, values in values_of.items():
        lines.append("  " + write_yaml({section: values}, one_line=True).strip()[1:-1])
    return lines


# Whether it is whole.


def verify(checkpoint: "Checkpoint") -> None:
    """Check every byte and value, and print the verdict of each file. Local.

    The SHA-256 of every file against the manifest; then every dataset is read, which checks HDF5's
    own checksums. Raises `InputError` for the first damaged file, or a value that is not finite.
    """
    print(checkpoint.folder)
    problems = []
    for name in sorted(checkpoint.files):
        try:
            checkpoint.check_files([name])
            print(f"  ok       {name}")
        except InputError as error:
            problems.append(error)
            print(f"  DAMAGED  {name}")
    if problems:
        more = f" (and {len(problems) - 1} more files)" if len(problems) > 1 else ""
        raise InputError(f"{problems[0]}{more}")
    tensors = values = 0
    with checkpoint.opened() as opened:
        for group in GROUPS:
            for key in opened.keys(group):
                shape = opened.shape(group, key)
                unusable = _summarise(_blocks(opened, group, key, shape)).unusable
                if unusable:
                    raise InputError(
                        f"{opened.path}: {unusable} of {math.prod(shape)} values of {group}/{key} "
                        "are NaN or infinite, and were when it was written: training diverged"
                    )
                tensors, values = tensors + 1, values + math.prod(shape)
    print(f"  ok       {tensors} tensors, {values:,} values, all finite")


# The export.


def export(checkpoint: "Checkpoint", target: Path, overwrite: bool = False) -> None:
    """Write the model as a PyTorch state dict and print the Python that loads it. Local.

    All files are checked first; the whole model is held in memory. `target` appears complete or not
    at all. Raises `InputError`, without `overwrite` for a file that came up meanwhile, too.
    """
    checkpoint.check_files(checkpoint.files)
    with checkpoint.opened() as opened:
        features, classes, sparse = opened.data.features, opened.data.outputs, opened.data.sparse
        mean, std = opened.config.data.mean, opened.config.data.std
        model = _model(opened)
    entries = model.export_entries()
    mib = sum(_mib(entry.shape) for entry in entries)
    print(f"export: the whole model is held in memory, {mib:.1f} MiB", flush=True)
    with checkpoint.opened() as opened:
        state = {entry.name: _value(opened, entry) for entry in entries}
    _save(state, target, overwrite)
    print(f"export: wrote {target}; this loads it, with nothing but PyTorch:\n")
    print(model.module_source())
    print(f"model.load_state_dict(torch.load({str(target)!r}, weights_only=True), strict=True)")
    print("model.eval()")
    stored = "dense rows, sparse ones filled with zeros" if sparse else "uint8 data divided by 255"
    scaled = ", then by scaled()" if mean else ""
    print(f"# float32 [rows, {features}] -> logits [rows, {classes}]; {stored}{scaled}")
    if mean:
        print(_SCALED.format(mean=mean, std=std))


_SCALED = """

def scaled(rows):
    mean = torch.tensor({mean}).unsqueeze(1)
    std = torch.tensor({std}).unsqueeze(1)
    return ((rows.view(len(rows), len(mean), -1) - mean) / std).flatten(1)"""


def _model(opened: "OpenCheckpoint") -> "Model":
    from ist_hpc.models import networks

    data = opened.data
    subnets = subnets_of(opened.config, opened.progress.ranks)
    return networks.build(opened.config.model, data.features, data.outputs, data.sparse, subnets)


def _value(opened: "OpenCheckpoint", entry: "ExportEntry") -> "Tensor":
    import torch

    if entry.source is None:
        return torch.zeros(entry.shape, dtype=torch.int64)
    group, key = entry.source
    return torch.from_numpy(opened.rows(group, key, entry.shape))


def _save(state: dict[str, "Tensor"], target: Path, overwrite: bool) -> None:
    import torch

    try:
        with replacing(target, overwrite) as beside:
            torch.save(state, beside)
    except FileExistsError:
        raise exists_error(target, "--export") from None
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError for a full disk
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"--export {target}: cannot be written ({reason})") from None


if __name__ == "__main__":
    run("show", main)

"""Saving the sharded model and bringing it back, on any number of ranks.

A checkpoint is a folder, complete or absent:

    round-00000040/
      manifest.json          bytes and SHA-256 of every other file
      checkpoint.h5          what people open: every tensor at its full global shape
        attributes           format, format_version, round, steps, samples, ranks, config, ...
        /parameters/fc1.weight   virtual, over the home blocks in the rank files
        /optimizer/momentum/fc1.weight
        /statistics/bn1.mean     of the full network; bn1.variance
      rank-0000.h5           the home blocks of rank 0, same names
      rank-0001.h5 ...
"""

import dataclasses
import json
import shutil
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ist_hpc import __version__
from ist_hpc import config as configuration
from ist_hpc.checkpoint_read import (
    FORMAT,
    FORMAT_VERSION,
    MAIN_FILE,
    MANIFEST,
    Checkpoint,
    DataShape,
    OpenCheckpoint,
    Progress,
    log,
    newest_first,
    rank_file,
    round_folder,
)
from ist_hpc.config_keys import Config
from ist_hpc.errors import InputError
from ist_hpc.files import flush_to_disk, sha256_of
from ist_hpc.hdf5_writing import written
from ist_hpc.held import Held, State, all_finite
from ist_hpc.models.base import Model, SharedSpec, Statistics
from ist_hpc.placement import TensorSpec, block_bounds
from ist_hpc.runtime import AgreedInputError, AgreedRunError, attempt, on_root, together

if TYPE_CHECKING:
    from mpi4py import MPI

_Entry = tuple[str, dict[str, object]]
"""A file of the manifest: its name, its bytes and SHA-256."""

_CHUNK_BYTES = 1 << 20
_MOST_HOSTS = 8  # that are named
# Widths are compared apart, and channels with those that stand for none; a block is a matter of
# memory and speed; where convolutions came from, whether they are trained, and how many blocks a
# rank trains are others.
_NOT_OF_THE_MODEL = frozenset(
    ("inputs", "outputs", "channels", "label_block", "body_from", "freeze_body", "min_blocks")
)


@dataclasses.dataclass
class Contents:
    """What a checkpoint holds; tensors are this rank's home blocks, or shared."""

    config: Config
    data: DataShape
    metric: str
    progress: Progress
    specs: Sequence[TensorSpec]
    slot_specs: Sequence[TensorSpec]
    state: State
    shared: Mapping[str, Tensor]
    shared_slots: Mapping[str, Tensor]
    statistics: Statistics
    statistics_shapes: Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class _Block:
    """One dataset of a rank file: this rank's rows, float32, of a tensor of `shape`.

    Copied to the CPU when it is written: a GPU's weights and slots at once might not fit there.
    """

    name: str
    shape: tuple[int, ...]
    values: Tensor
    about: str


def save(comm: "MPI.Comm", checkpoints: Path, contents: Contents, keep: int) -> Path:
    """Write a checkpoint, then remove all but the newest `keep`; returns its folder. Collective.

    Everything is written beside, flushed to disk and checked before the folder gets its name.
    Raises `AgreedRunError` if it cannot be written, and before anything is if there are numbers
    that are not finite.
    """
    blocks = _blocks(contents)
    _refuse_infinite(comm, blocks, contents)
    final = round_folder(checkpoints, contents.progress.round)
    partial = final.with_name(f".{final.name}.partial")
    at_root = comm.Get_rank() == 0
    what = f"the checkpoint of round {contents.progress.round} cannot be saved"
    try:
        attempt(comm, what, lambda: _make_folder(partial) if at_root else None)
        part = {
            "rank": comm.Get_rank(),
            "ranks": comm.Get_size(),
            "round": contents.progress.round,
        }
        entry = attempt(comm, what, lambda: _write_rank_file(partial, part, blocks))
        entries = comm.gather(entry, root=0)
        attempt(
            comm, what, lambda: _complete(partial, contents, blocks, entries) if entries else None
        )
    except AgreedRunError:
        if at_root:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    old = attempt(comm, what, lambda: _publish(partial, final, keep) if at_root else None)
    _remove_together(comm, comm.bcast(old))
    return final


def _make_folder(partial: Path) -> None:
    """The folder to write into; what a killed run left beside it goes."""
    for left in partial.parent.glob(".round-*"):
        _remove(left)
    partial.mkdir(parents=True)


def _complete(
    partial: Path, contents: Contents, blocks: Sequence[_Block], entries: Sequence[_Entry]
) -> None:
    """Write what rank 0 writes, and see whether it can be read."""
    main = _write_main_file(partial / MAIN_FILE, contents, blocks, len(entries))
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "files": dict([*entries, main]),
    }
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    flush_to_disk(partial / MANIFEST)
    flush_to_disk(partial)
    _check_readable(partial, contents)


def _refuse_infinite(comm: "MPI.Comm", blocks: Sequence[_Block], contents: Contents) -> None:
    """Raise `AgreedRunError` if a rank has a number that is not finite. Collective."""
    tensors = {block.name: block.values for block in blocks}
    tensors |= {f"parameters/{key}": tensor for key, tensor in contents.shared.items()}
    tensors |= {f"optimizer/{key}": tensor for key, tensor in contents.shared_slots.items()}
    names = (name for name, tensor in tensors.items() if not all_finite(tensor))
    found = comm.allgather(next(names, None))
    for rank, name in enumerate(found):
        if name is not None:
            raise AgreedRunError(
                f"after round {contents.progress.round} {name} of rank {rank} has numbers that are "
                "not finite; it is not saved. A lower optimizer.lr usually helps"
            )


def _publish(partial: Path, final: Path, keep: int) -> list[Path]:
    """Give a finished checkpoint its name; returns those that are to be removed.

    They are one of the same round, which is replaced, and all but the newest `keep`.
    """
    replaced = [_put_aside(final)] if final.exists() else []
    partial.rename(final)
    flush_to_disk(final.parent)
    return replaced + [_put_aside(old) for old in newest_first(final.parent)[keep:]]


def _remove_together(comm: "MPI.Comm", folders: Sequence[Path]) -> None:
    """Remove folders that are no checkpoints any more, each rank some of the files. Collective.

    Giving back the memory in which the system keeps large files takes one process a while.
    """
    for folder in folders:
        for path in sorted(folder.glob("*"))[comm.Get_rank() :: comm.Get_size()]:
            with suppress(OSError):  # what is left is removed, or complained about, below
                path.unlink()
    comm.Barrier()
    if comm.Get_rank() == 0:
        for folder in folders:
            _remove(folder)


def _put_aside(folder: Path) -> Path:
    """Take a checkpoint its name, so that one that is half removed is not taken for one."""
    return folder.rename(folder.with_name(f".{folder.name}.old"))


def _remove(folder: Path) -> None:
    """Remove what is no checkpoint any more; if that fails, the next save tries again.

    It does on NFS as long as somebody reads one of the files.
    """
    try:
        shutil.rmtree(folder)
    except OSError as error:
        log.warning("%s cannot be removed yet: %s", folder, error.strerror)


def _flushed_entry(path: Path) -> _Entry:
    """Flush a written file to disk, and what the manifest has of it; the two at the same time."""
    with ThreadPoolExecutor(1) as other:
        flushed = other.submit(flush_to_disk, path)
        entry = path.name, {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        flushed.result()
    return entry


def _blocks(contents: Contents) -> list[_Block]:
    blocks = [
        _Block(
            f"{group}/{spec.key}",
            spec.shape,
            contents.state[spec.key].place("home"),
            _about(spec),
        )
        for group, specs in (("parameters", contents.specs), ("optimizer", contents.slot_specs))
        for spec in specs
    ]
    for key, (mean, variance) in contents.statistics.items():
        shape = contents.statistics_shapes[key]
        for what, values in (("mean", mean), ("variance", variance)):
            about = f"{what} before normalisation in the full network, over calibration rows"
            blocks.append(_Block(f"statistics/{key}.{what}", shape, values, about))
    return blocks


def _array(tensor: Tensor) -> npt.NDArray[np.float32]:
    """The values of a tensor, copied if they are on a GPU."""
    return tensor.detach().cpu().numpy()


def _about(spec: TensorSpec) -> str:
    return "dimensions: " + ", ".join(axis or "not dealt" for axis in spec.axes)


def _write_rank_file(partial: Path, part: Mapping[str, int], blocks: Sequence[_Block]) -> _Entry:
    """Write this rank's blocks; `part` are the attributes that say whose they are."""
    path = partial / rank_file(part["rank"])
    with written(path) as file:
        file.attrs.update(part)
        for block in blocks:
            options = {}
            if block.values.numel():
                row_bytes = 4 * max(1, int(np.prod(block.shape[1:], dtype=np.int64)))
                chunk_rows = min(len(block.values), max(1, _CHUNK_BYTES // row_bytes))
                options = {"chunks": (chunk_rows, *block.shape[1:]), "fletcher32": True}
            file.create_dataset(block.name, data=_array(block.values), **options)
    return _flushed_entry(path)


def _write_main_file(
    path: Path, contents: Contents, blocks: Sequence[_Block], ranks: int
) -> _Entry:
    with written(path) as file:
        for block in blocks:
            bounds = block_bounds(block.shape[0], ranks)
            layout = h5py.VirtualLayout(block.shape, dtype=np.float32)
            for rank in range(ranks):
                start, stop = int(bounds[rank]), int(bounds[rank + 1])
                if start < stop:
                    shape = (stop - start, *block.shape[1:])
                    source = h5py.VirtualSource(rank_file(rank), block.name, shape=shape)
                    layout[start:stop] = source
            # HDF5 reads a missing file as the fill value: NaN shows, zeros would not.
            dataset = file.create_virtual_dataset(block.name, layout, fillvalue=np.nan)
            dataset.attrs["about"] = block.about
        for group, tensors in (
            ("parameters", contents.shared),
            ("optimizer", contents.shared_slots),
        ):
            for key, tensor in tensors.items():
                dataset = file.create_dataset(f"{group}/{key}", data=_array(tensor))
                dataset.attrs["about"] = "shared by all ranks, averaged each round"
        file.attrs.update(
            {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "package_version": __version__,
                "config": configuration.dump(contents.config),
                "features": contents.data.features,
                "outputs": contents.data.outputs,
                "sparse": contents.data.sparse,
                "metric": contents.metric,
                **dataclasses.asdict(contents.progress),
            }
        )
        file.attrs["classes"] = json.dumps(list(contents.data.classes))
    return _flushed_entry(path)


def _check_readable(folder: Path, contents: Contents) -> None:
    """Open what was written as a reader would, before it replaces anything."""
    with Checkpoint(folder).opened() as opened:
        for group, specs in (("parameters", contents.specs), ("optimizer", contents.slot_specs)):
            for spec in specs:
                opened.rows(group, spec.key, spec.shape, (spec.rows - 1, spec.rows))


def check(comm: "MPI.Comm", folder: Path) -> Checkpoint:
    """Read the manifest and check every file, each by one rank. Collective.

    Raises `AgreedInputError` that names what is damaged, or hosts that do not see the folder.
    """
    _refuse_unseen(comm, folder)
    checkpoint = together(comm, lambda: Checkpoint(folder))
    names = sorted(checkpoint.files)[comm.Get_rank() :: comm.Get_size()]
    together(comm, lambda: checkpoint.check_files(names))
    together(comm, lambda: checkpoint.check_parts(names))
    return checkpoint


def _refuse_unseen(comm: "MPI.Comm", folder: Path) -> None:
    """Raise `AgreedInputError` if rank 0 sees the folder and others do not: it is not damaged."""
    seen = comm.allgather((folder.is_dir(), socket.gethostname()))
    blind = sorted({host for is_seen, host in seen if not is_seen})
    if seen[0][0] and blind:
        error = AgreedInputError(
            f"{folder} is there on {seen[0][1]}, but not on {', '.join(blind[:_MOST_HOSTS])}"
            f"{', ...' if blind[_MOST_HOSTS:] else ''}; see whether its file system is mounted "
            "there, and start again"
        )
        error.unreadable = True
        raise error


def newest_valid(comm: "MPI.Comm", checkpoints: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; damaged ones are named and passed over. Collective.

    None if there is no checkpoint at all; `AgreedInputError` if all are damaged, or if one cannot
    be read, which says nothing of what is in it.
    """
    candidates = on_root(comm, lambda: newest_first(checkpoints))
    damaged: list[tuple[Path, str]] = []
    for folder in candidates:
        try:
            valid = check(comm, folder)
        except AgreedInputError as error:
            if error.unreadable:
                raise
            damaged.append((folder, str(error)))
            continue
        on_root(comm, lambda: _set_aside(damaged))
        return valid
    if damaged:
        raise AgreedInputError(
            f"no checkpoint in {checkpoints} can be used ({damaged[0][1]}); move the folder away "
            "to start anew"
        )
    return None


def _set_aside(damaged: Sequence[tuple[Path, str]]) -> None:
    """Rename damaged checkpoints, so that they are not counted among those that are kept."""
    for folder, problem in damaged:
        aside = folder.with_name(f"damaged-{folder.name}")
        if aside.exists():
            shutil.rmtree(aside)
        folder.rename(aside)
        log.warning("checkpoint passed over, and renamed to %s: %s", aside.name, problem)


def check_model(opened: OpenCheckpoint, config: Config, data: DataShape) -> None:
    """Raise `InputError` unless the checkpoint is of the configured model, data and optimiser."""
    saved = opened.config
    pairs = [
        (f"model.{field.name}", getattr(saved.model, field.name), getattr(config.model, field.name))
        for field in dataclasses.fields(config.model)
        if field.name not in _NOT_OF_THE_MODEL
    ]
    pairs += [
        ("data.mean", saved.data.mean, config.data.mean),
        ("data.std", saved.data.std, config.data.std),
        ("seed", saved.seed, config.seed),
        ("optimizer.kind", saved.optimizer.kind, config.optimizer.kind),
        ("optimizer.state", saved.optimizer.state, config.optimizer.state),
        ("features a row", opened.data.features, data.features),
        ("classes", opened.data.outputs, data.outputs),
        ("sparse rows", opened.data.sparse, data.sparse),
    ]
    for key, was, now in pairs:
        if was != now:
            raise InputError(
                f"{opened.path} is a checkpoint of another model: `{key}` was {was} there and is "
                f"{now} now; give the run another --name, or the old value"
            )
    thaws = saved.model.freeze_body and not config.model.freeze_body
    if thaws and (config.optimizer.kind, config.optimizer.state) == ("adam", "carry"):
        # Moments that begin at zero would be taken for those of all steps of the run.
        raise InputError(
            f"{opened.path}: `model.freeze_body` was true there, and Adam has no moments of the "
            "convolutions; leave it true, or start another run from these by `model.body_from`"
        )


@dataclasses.dataclass
class Restored:
    """A checkpoint as one rank holds it: home blocks and shared tensors, on the CPU."""

    state: State
    shared: dict[str, Tensor]
    shared_slots: dict[str, Tensor]
    statistics: Statistics


def restore(
    opened: OpenCheckpoint,
    model: Model,
    slot_specs: Sequence[TensorSpec],
    shared_slots: Sequence[SharedSpec],
    rank: int,
    ranks: int,
) -> Restored:
    """Read the home blocks that `rank` of `ranks` holds, and no more. Local.

    Raises `InputError` if the checkpoint has other tensors.
    """

    def block(group: str, key: str, shape: Sequence[int]) -> Tensor:
        bounds = block_bounds(shape[0], ranks)
        rows = (int(bounds[rank]), int(bounds[rank + 1]))
        return torch.from_numpy(opened.rows(group, key, shape, rows))

    def whole(group: str, spec: SharedSpec) -> Tensor:
        thaws = group == "optimizer" and opened.config.model.freeze_body
        if thaws and spec.key not in opened.keys(group):
            return torch.zeros(spec.shape)
        return torch.from_numpy(opened.rows(group, spec.key, spec.shape))

    state = {
        spec.key: Held(home=block(group, spec.key, spec.shape))
        for group, specs in (("parameters", model.specs), ("optimizer", slot_specs))
        for spec in specs
    }
    statistics = {
        spec.key: (
            block("statistics", f"{spec.key}.mean", spec.shape),
            block("statistics", f"{spec.key}.variance", spec.shape),
        )
        for spec in model.statistics
    }
    return Restored(
        state,
        {spec.key: whole("parameters", spec) for spec in model.shared},
        {spec.key: whole("optimizer", spec) for spec in shared_slots},
        statistics,
    )

"""Saves the sharded model; `restore` reads it on any number of ranks.

A checkpoint is a folder, complete or absent:

    round-00000040/
      manifest.json          bytes and SHA-256 of every other file
      checkpoint.h5          the file to open: every tensor at its full global shape
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
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
import numpy.typing as npt
from torch import Tensor

from ist_hpc import __version__
from ist_hpc.checkpoint.folder import MANIFEST, Checkpoint, newest_first, round_folder
from ist_hpc.checkpoint.read import (
    FORMAT,
    FORMAT_VERSION,
    MAIN_FILE,
    DataShape,
    Progress,
    rank_file,
)
from ist_hpc.common.blocks import block_bounds
from ist_hpc.common.disk.files import (
    flush_to_disk,
    hidden_beside,
    json_text,
    put_in_place,
    set_aside,
    sha256_of,
    write_text,
)
from ist_hpc.common.disk.hdf5_writing import written
from ist_hpc.config import loading
from ist_hpc.config.keys import Config
from ist_hpc.exchange.placement import TensorSpec
from ist_hpc.exchange.tensors import State, all_finite
from ist_hpc.models.base import Statistics
from ist_hpc.runtime.launch import AgreedRunError, log, write_on_all

if TYPE_CHECKING:
    from mpi4py import MPI

_Entry = tuple[str, dict[str, object]]
"""A file in the manifest: its name, its bytes and SHA-256."""

_CHUNK_BYTES = 1 << 20


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

    They are copied to the CPU when written: all weights and slots of a GPU might not fit there.
    """

    name: str
    shape: tuple[int, ...]
    values: Tensor
    about: str


def save(comm: "MPI.Comm", checkpoints: Path, contents: Contents, keep: int) -> Path:
    """Write a checkpoint, then remove all but the newest `keep`; returns its folder. Collective.

    Everything is written under another name, flushed to disk and checked before the folder gets its
    name. Raises `AgreedRunError` if it cannot be written, and also, before anything is written, if
    some numbers are not finite.
    """
    blocks = _blocks(contents)
    _refuse_infinite(comm, blocks, contents)
    final = round_folder(checkpoints, contents.progress.round)
    partial = comm.bcast(hidden_beside(final))  # unique, in case another start is also at work
    at_root = comm.Get_rank() == 0
    what = f"the checkpoint of round {contents.progress.round} cannot be saved"
    try:
        write_on_all(comm, what, lambda: _make_folder(partial) if at_root else None)
        part = {
            "rank": comm.Get_rank(),
            "ranks": comm.Get_size(),
            "round": contents.progress.round,
        }
        entry = write_on_all(comm, what, lambda: _write_rank_file(partial, part, blocks))
        entries = comm.gather(entry, root=0)
        write_on_all(
            comm, what, lambda: _complete(partial, contents, blocks, entries) if entries else None
        )
    except AgreedRunError:
        if at_root:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    old = write_on_all(comm, what, lambda: _publish(partial, final, keep) if at_root else None)
    _remove_together(comm, comm.bcast(old))
    return final


def _make_folder(partial: Path) -> None:
    """Make the folder to write into; remove what a killed run left beside it."""
    for left in partial.parent.glob(".round-*"):
        _remove(left)
    partial.mkdir(parents=True)


def _complete(
    partial: Path, contents: Contents, blocks: Sequence[_Block], entries: Sequence[_Entry]
) -> None:
    """Write the files of rank 0, and check that the whole can be read."""
    main = _write_main_file(partial / MAIN_FILE, contents, blocks, len(entries))
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "files": dict([*entries, main]),
    }
    write_text(partial / MANIFEST, json_text(manifest) + "\n")
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
    """Give a finished checkpoint its name; return those to remove.

    These are one of the same round, which is replaced, and all but the newest `keep`.
    """
    replaced = [set_aside(final)] if final.exists() else []
    put_in_place(partial, final)
    return replaced + [set_aside(old) for old in newest_first(final.parent)[keep:]]


def _remove_together(comm: "MPI.Comm", folders: Sequence[Path]) -> None:
    """Remove folders that are no longer checkpoints; each rank removes some files. Collective.

    For large files the system has to free cached memory, which takes a single process a while.
    """
    for folder in folders:
        for path in sorted(folder.glob("*"))[comm.Get_rank() :: comm.Get_size()]:
            with suppress(OSError):  # leftovers are removed, or reported, below
                path.unlink()
    comm.Barrier()
    if comm.Get_rank() == 0:
        for folder in folders:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a former checkpoint; if that fails, the next save tries again.

    It fails on NFS as long as somebody reads one of the files.
    """
    try:
        shutil.rmtree(folder)
    except OSError as error:
        log.warning("%s cannot be removed yet: %s", folder, error.strerror)


def _flushed_entry(path: Path) -> _Entry:
    """Flush a written file to disk, and at the same time compute its entry for the manifest."""
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
    """Write this rank's blocks; `part` has the attributes that say whose they are."""
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
                "config": loading.dump(contents.config),
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
    """Open the written files as a reader would, before they replace anything."""
    with Checkpoint(folder).opened() as opened:
        for group, specs in (("parameters", contents.specs), ("optimizer", contents.slot_specs)):
            for spec in specs:
                opened.rows(group, spec.key, spec.shape, (spec.rows - 1, spec.rows))

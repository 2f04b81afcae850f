"""Shared weights to start from, from another run or another program: `model.body_from`.

They come from a checkpoint of this package, of any model with such weights, or from an HDF5 file
with a dataset for each, `conv1.weight` or `parameters/conv1.weight`. No such file can run code.
"""

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from ist_hpc.checkpoint.folder import Checkpoint, resolve
from ist_hpc.checkpoint.read import OpenCheckpoint
from ist_hpc.common.disk.hdf5_reading import reporting
from ist_hpc.common.errors import InputError
from ist_hpc.exchange.tensors import all_finite
from ist_hpc.models.shapes import SharedSpec

_HDF5_SUFFIXES = (".h5", ".hdf5")
_VARIANCE = ".running_var"
_STATISTICS = {".running_mean": ".mean", _VARIANCE: ".variance"}


def read_shared(path: Path, specs: Sequence[SharedSpec]) -> dict[str, Tensor]:
    """The weights of `specs`, float32 on the CPU, by key. Local.

    path  a checkpoint, a run's folder (its newest checkpoint), or an HDF5 file
    Raises `InputError` if one is missing, has another shape, or is not finite.
    """
    if path.suffix in _HDF5_SUFFIXES and path.is_file() and path.name != "checkpoint.h5":
        found = _from_file(path, specs)
    else:
        checkpoint = Checkpoint(resolve(path))
        checkpoint.check_files(checkpoint.files)
        with checkpoint.opened() as opened:
            found = {spec.key: _from_checkpoint(opened, spec) for spec in specs}
    for spec in specs:
        values, is_variance = found[spec.key], spec.key.endswith(_VARIANCE)
        if not all_finite(values) or (is_variance and values.min() < 0):
            what = "NaN, infinity or a negative variance" if is_variance else "NaN or infinity"
            raise InputError(f"`model.body_from` {path}: {spec.key} has {what} in it")
    return found


def _from_checkpoint(opened: OpenCheckpoint, spec: SharedSpec) -> Tensor:
    group, key = "parameters", spec.key
    for running, statistic in _STATISTICS.items():
        if key.endswith(running) and key not in opened.keys(group):  # channels were dealt out
            group, key = "statistics", key.removesuffix(running) + statistic
    return torch.from_numpy(opened.rows(group, key, spec.shape))


def _from_file(path: Path, specs: Sequence[SharedSpec]) -> dict[str, Tensor]:
    found = {}
    with reporting(path), h5py.File(path, "r", locking=False) as file:
        for spec in specs:
            name = next((n for n in (f"parameters/{spec.key}", spec.key) if n in file), None)
            if name is None:
                raise InputError(
                    f"`model.body_from` {path}: has no {spec.key} {spec.shape}; "
                    "docs/checkpoint-format.md lists what it must have"
                )
            dataset = file[name]
            if getattr(dataset, "shape", None) != spec.shape or dataset.dtype.kind != "f":
                got = f"{getattr(dataset, 'dtype', 'a group')} {getattr(dataset, 'shape', '')}"
                raise InputError(
                    f"`model.body_from` {path}: {name} is {got}, the model has float {spec.shape}"
                )
            found[spec.key] = torch.from_numpy(dataset[...].astype(np.float32))
    return found

"""Restores a saved model on any number of ranks: finds a whole checkpoint, and reads its parts."""

import dataclasses
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ist_hpc.checkpoint.folder import Checkpoint, newest_first
from ist_hpc.checkpoint.read import DataShape, OpenCheckpoint
from ist_hpc.common.blocks import block_bounds
from ist_hpc.common.errors import InputError
from ist_hpc.config.keys import Config, is_frozen
from ist_hpc.exchange.placement import TensorSpec
from ist_hpc.exchange.tensors import Held, State
from ist_hpc.models.base import Model, Statistics
from ist_hpc.models.shapes import SharedSpec
from ist_hpc.runtime.launch import AgreedInputError, check_on_all, log, on_root

if TYPE_CHECKING:
    from mpi4py import MPI

_MOST_HOSTS = 8  # named in a message
# Widths are compared separately, and channels after their defaults are filled in. A block concerns
# memory and speed. These may change: the source of convolutions, whether they are trained, how many
# blocks a rank trains, how many labels a step draws and units it leaves out; and what only
# the start of a run depends on.
_NOT_OF_THE_MODEL = frozenset(
    (
        *("inputs", "outputs", "channels", "label_block", "body_from", "freeze_body"),
        *("min_blocks", "negatives", "dropout", "output_start"),
    )
)


def check(comm: "MPI.Comm", folder: Path) -> Checkpoint:
    """Read the manifest and check every file, each on one rank. Collective.

    Raises `AgreedInputError` that names damaged files, or hosts that do not see the folder.
    """
    _refuse_unseen(comm, folder)
    checkpoint = check_on_all(comm, lambda: Checkpoint(folder))
    names = sorted(checkpoint.files)[comm.Get_rank() :: comm.Get_size()]
    check_on_all(comm, lambda: checkpoint.check_files(names))
    check_on_all(comm, checkpoint.check_contents)
    return checkpoint


def _refuse_unseen(comm: "MPI.Comm", folder: Path) -> None:
    """Raise `AgreedInputError` if rank 0 sees the folder and others do not: that is no damage."""
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
    """The newest checkpoint that is whole; names and skips damaged ones. Collective.

    None if there is no checkpoint at all; `AgreedInputError` if all are damaged, or if one cannot
    be read, so that its contents are unknown.
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
    """Rename damaged checkpoints, so that they do not count among those to keep."""
    for folder, problem in damaged:
        aside = folder.with_name(f"damaged-{folder.name}")
        if aside.exists():
            shutil.rmtree(aside)
        folder.rename(aside)
        log.warning("checkpoint passed over, and renamed to %s: %s", aside.name, problem)


def check_model(opened: OpenCheckpoint, config: Config, data: DataShape) -> None:
    """Raise `InputError` unless the checkpoint fits the configured model, data and optimiser."""
    saved = opened.config
    pairs: list[tuple[str, Any, Any]] = [("model.kind", saved.model.kind, config.model.kind)]
    if saved.model.kind == config.model.kind:
        pairs += [
            (f"model.{name}", getattr(saved.model, name), getattr(config.model, name))
            for name in (field.name for field in dataclasses.fields(config.model))
            if name not in _NOT_OF_THE_MODEL
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
    thaws = is_frozen(saved.model) and not is_frozen(config.model)
    if thaws and (config.optimizer.kind, config.optimizer.state) == ("adam", "carry"):
        # Moments that begin at zero would be treated as those of all steps of the run.
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
    """Read only the home blocks that `rank` of `ranks` holds. Local.

    Raises `InputError` if the checkpoint has other tensors.
    """

    def block(group: str, key: str, shape: Sequence[int]) -> Tensor:
        bounds = block_bounds(shape[0], ranks)
        rows = (int(bounds[rank]), int(bounds[rank + 1]))
        return torch.from_numpy(opened.rows(group, key, shape, rows))

    def whole(group: str, spec: SharedSpec) -> Tensor:
        thaws = group == "optimizer" and is_frozen(opened.config.model)
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

"""From a configuration to a trainer: every check that can be made before training starts."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ist_hpc.checkpoint import restore
from ist_hpc.checkpoint.folder import Checkpoint, newest_first, round_folder
from ist_hpc.checkpoint.read import DataShape, OpenCheckpoint, Progress
from ist_hpc.common.errors import InputError
from ist_hpc.config.keys import Config, ResnetConfig
from ist_hpc.cost import prediction
from ist_hpc.data.meta_reading import load_meta
from ist_hpc.data.rows import rank_segments
from ist_hpc.data.shards import Dataset
from ist_hpc.models.base import Model
from ist_hpc.runtime import devices, precision
from ist_hpc.runtime.launch import AgreedInputError, Runtime, check_on_all, log, on_root
from ist_hpc.runtime.meters import Meter
from ist_hpc.runtime.run_folder.folder import UNSAID_END, RunFolder
from ist_hpc.runtime.run_folder.start_facts import facts_of_start
from ist_hpc.runtime.stopping import StopRequest
from ist_hpc.training import algorithms
from ist_hpc.training.algorithms.base import Algorithm
from ist_hpc.training.evaluation.full_network import main_metric
from ist_hpc.training.opening import (
    build_model,
    check_shards,
    load_pretrained,
    open_data_and_model,
)
from ist_hpc.training.trainer import Setup, Trainer

_LOCK_SILENCES = 5
"""How many times the silence a start may wait for the folder: fewer than the watchdog's six."""


def start_run(
    runtime: Runtime,
    config: Config,
    folder: RunFolder,
    *,
    resume: bool,
    stop: StopRequest,
    meter: Meter,
) -> Trainer:
    """Check everything, then make or enter the run folder and build the trainer. Collective.

    Raises `AgreedInputError` if something cannot be used. It then changes nothing, except that
    damaged checkpoints are renamed, and that the folder of a resume was locked.
    """
    comm, rank, ranks = runtime.comm, runtime.rank, runtime.ranks
    on_root(comm, lambda: _lock_existing(folder, resume, config.runtime.silence_s))
    dataset, model = check_on_all(comm, lambda: open_data_and_model(config, ranks))
    device = _choose_device(runtime, config)  # before shards are read
    _refuse_too_large(runtime, config, dataset, model, device)
    check_on_all(comm, lambda: check_shards(dataset, config, rank, ranks))
    assign = config.data.assign
    segments = check_on_all(comm, lambda: rank_segments(dataset, "train", assign, rank, ranks))
    meter.beat()
    saved = restore.newest_valid(comm, folder.checkpoints) if resume else None
    meter.beat()
    if saved is None:
        given = check_on_all(comm, lambda: load_pretrained(config, model))
    else:
        check_on_all(comm, lambda: _check_saved(saved, config, dataset))
    algorithm = algorithms.build(comm, config, model, device)  # may start Horovod
    if saved is None:
        algorithm.start_new(given)
        progress, saved_model = Progress(ranks=ranks), model
    else:
        progress, saved_model = _start_from(saved, config, dataset, algorithm)
    _enter_on_all(runtime, config, folder, resume, progress, algorithm)
    return Trainer(
        Setup(
            config=config,
            dataset=dataset,
            algorithm=algorithm,
            folder=folder,
            segments=segments,
            progress=progress,
            saved=None if saved is None else saved.folder,
            saved_model=saved_model,
            stop=stop,
            meter=meter,
        )
    )


def _lock_existing(folder: RunFolder, resume: bool, silence_s: float) -> None:
    """Make sure that no other run is in the folder before reading anything in it."""
    if not folder.path.exists() or folder.or_beside:
        return
    if not resume:
        raise folder.exists_error()
    with folder.changing():
        folder.lock(_LOCK_SILENCES * silence_s)


def _choose_device(runtime: Runtime, config: Config) -> torch.device:
    """The device of this rank, ready for the configured precision. Collective."""
    device = devices.choose(runtime.comm, config.device)
    precision.prepare(config.train.precision)
    if runtime.rank == 0 and precision.lacks_bf16(config.train.precision, device):
        log.warning(
            "train.precision: bf16 is slow on this CPU, which has no instructions for it; float32 "
            "is faster here"
        )
    return device


def _refuse_too_large(
    runtime: Runtime, config: Config, dataset: Dataset, model: Model, device: torch.device
) -> None:
    """Raise `AgreedInputError` if nodes or GPUs lack the memory for the run. Collective."""
    comm = runtime.comm
    sharing, grants = devices.ranks_on_gpu(comm, device), prediction.grants_of_node(comm)
    job = prediction.job_of(config, model, runtime.ranks, load_meta(dataset.path))
    check_on_all(comm, lambda: prediction.refuse_too_large(config, job, grants))
    check_on_all(comm, lambda: prediction.refuse_too_large_for_gpu(config, job, device, sharing))


def _check_saved(saved: Checkpoint, config: Config, dataset: Dataset) -> None:
    with saved.opened() as opened:
        restore.check_model(opened, config, DataShape.of(dataset))


def _start_from(
    saved: Checkpoint, config: Config, dataset: Dataset, algorithm: Algorithm
) -> tuple[Progress, Model]:
    """Give the saved state to the algorithm. Collective; raises `AgreedInputError`.

    Returns the position of the run, and the full network scaled for the ranks and the algorithm
    that trained it.
    """
    comm, rank, ranks = algorithm.comm, algorithm.rank, algorithm.ranks

    def restored() -> tuple[restore.Restored, Progress, Model]:
        with saved.opened() as opened:
            slots, shared_slots = algorithm.slot_specs, algorithm.shared_slot_specs
            parts = restore.restore(opened, algorithm.model, slots, shared_slots, rank, ranks)
            progress = opened.progress
            if opened.metric != main_metric(opened.data.sparse, config.evaluate):
                progress = replace(progress, best=-1.0)  # it was of another metric
            return parts, progress, _model_as_trained(opened, config, dataset)

    parts, progress, saved_model = check_on_all(comm, restored)
    algorithm.start_from(parts.state, parts.shared, parts.shared_slots)
    if progress.ranks != ranks:
        # Other ranks have other rows: on average each has seen its share of the samples so far.
        progress = replace(progress, ranks=ranks, stream_rows=progress.samples // ranks)
    return progress, saved_model


def _model_as_trained(opened: OpenCheckpoint, config: Config, dataset: Dataset) -> Model:
    """The model, with the full network scaled as for the training before the checkpoint. Local."""
    before, model = opened.config, config.model
    if isinstance(model, ResnetConfig) and isinstance(before.model, ResnetConfig):
        model = replace(model, min_blocks=before.model.min_blocks)
    as_before = replace(config, train=before.train, model=model)
    return build_model(as_before, dataset, opened.progress.ranks)


def _enter_on_all(
    runtime: Runtime,
    config: Config,
    folder: RunFolder,
    resume: bool,
    progress: Progress,
    algorithm: Algorithm,
) -> None:
    """Make or enter the folder, which from now on belongs to this start on every rank. Collective.

    Raises `AgreedInputError` if rank 0 cannot write it or another rank cannot see it; a folder made
    for this start is then removed.
    """
    comm = runtime.comm
    entered = on_root(
        comm, lambda: _enter(config, folder, resume, progress, _facts(runtime, algorithm))
    )
    if runtime.rank:
        folder.move_to(entered.path)
    folder.start = entered.start
    try:
        check_on_all(comm, lambda: _require_visible(folder))
    except AgreedInputError:
        if runtime.rank == 0 and entered.made:
            folder.remove()
        raise
    went_on = f", from round {progress.round}" if progress.round else ""
    threads = f"{runtime.threads} thread(s) each"
    log.info("%s: %d rank(s), %s%s", folder.path, runtime.ranks, threads, went_on)


def _require_visible(folder: RunFolder) -> None:
    """Every rank writes its part of a checkpoint."""
    if not folder.checkpoints.is_dir():
        raise InputError(
            f"the run folder {folder.path}, made by rank 0, is not seen by every rank; --runs must "
            "be on a file system that all ranks share"
        )


@dataclass(frozen=True)
class _Entered:
    """The run folder's path, which start of the run this is, and whether the folder is new."""

    path: Path
    start: str
    made: bool


def _facts(runtime: Runtime, algorithm: Algorithm) -> dict[str, Any]:
    """What the run folder records about this start."""
    from mpi4py import MPI

    facts = facts_of_start(runtime.ranks, runtime.threads, MPI.Get_library_version())
    return facts | {"averaged_by": algorithm.averaged_by}


def _enter(
    config: Config, folder: RunFolder, resume: bool, progress: Progress, facts: dict[str, Any]
) -> _Entered:
    """Make or enter the folder, which from now on belongs to this start.

    Raises `InputError` if it cannot be written; a folder made for this start is then removed.
    """
    made = folder.create(resume)
    try:
        _record(config, folder, progress, facts)
    except BaseException:
        if made:
            folder.remove()
        raise
    return _Entered(folder.path, folder.lock_line, made)


def _record(config: Config, folder: RunFolder, progress: Progress, facts: dict[str, Any]) -> None:
    """Keep others out of the folder, and record this start."""
    with folder.changing():
        folder.lock()
        _refuse_later(folder, progress)
        folder.forget_failure()
        folder.metrics.rewind(progress.round)
        before = UNSAID_END if folder.goes_on() else folder.status()
        if before.startswith(("failed", "ended")):
            log.info("the run before this one %s", before)
        folder.record_start(config, facts | ({"before": before} if before else {}))
        folder.set_status("starting")


def _refuse_later(folder: RunFolder, progress: Progress) -> None:
    """Raise `InputError` if another run has saved since this one looked for checkpoints."""
    newest = next(iter(newest_first(folder.checkpoints)), None)
    if newest is not None and newest.name > round_folder(folder.checkpoints, progress.round).name:
        raise InputError(
            f"another run has just saved {newest}, which this one did not see; start again"
        )

"""From a configuration to a trainer: every check that can be made before training starts."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ist_hpc.checkpoint import restore
from ist_hpc.checkpoint.pretrained import read_shared
from ist_hpc.checkpoint.read import (
    Checkpoint,
    DataShape,
    Progress,
    newest_first,
    round_folder,
)
from ist_hpc.common.errors import InputError
from ist_hpc.config.keys import Config, ResnetConfig, Vgg11Config, is_frozen, subnets_of
from ist_hpc.cost import prediction
from ist_hpc.data import images
from ist_hpc.data.rows import rank_segments, refuse_uncountable
from ist_hpc.data.shard_meta import load_meta
from ist_hpc.data.shards import Dataset
from ist_hpc.models import networks, optimizer
from ist_hpc.models.base import Model
from ist_hpc.models.convolutions import BODY_PREFIX
from ist_hpc.runtime import devices, precision
from ist_hpc.runtime.launch import AgreedInputError, Runtime, check_on_all, log, on_root
from ist_hpc.runtime.meters import Meter
from ist_hpc.runtime.run_folder import UNSAID_END, RunFolder, facts_of_start
from ist_hpc.runtime.stopping import StopRequest
from ist_hpc.training import algorithms
from ist_hpc.training.algorithms.base import Algorithm
from ist_hpc.training.full_network import main_metric, metrics_for
from ist_hpc.training.trainer import Trainer

_LOCK_SILENCES = 5
"""Times of silence that a start may wait for the folder, which are less than the watchdog's six."""


def start_run(
    runtime: Runtime,
    config: Config,
    folder: RunFolder,
    resume: bool,
    stop: StopRequest,
    meter: Meter,
) -> Trainer:
    """Check everything, then make or enter the run folder and build the trainer. Collective.

    Raises `AgreedInputError` if something cannot be used. Nothing is changed then, but that damaged
    checkpoints are renamed, and that the folder of a resume was locked.
    """
    comm = runtime.comm
    on_root(comm, lambda: _lock_existing(folder, resume, config.runtime.silence_s))
    dataset, model = check_on_all(comm, lambda: _open(config, runtime.ranks))
    device = devices.choose(comm, config.device)  # before shards are read
    precision.prepare(config.train.precision)
    if runtime.rank == 0 and precision.lacks_bf16(config.train.precision, device):
        log.warning(
            "train.precision: bf16 is slow on this CPU, which has no instructions for it; float32 "
            "is faster here"
        )
    sharing, grants = devices.ranks_on_gpu(comm, device), prediction.grants_of_node(comm)
    job = prediction.job_of(config, model, runtime.ranks, load_meta(dataset.path))
    check_on_all(comm, lambda: prediction.refuse_too_large(config, job, grants))
    check_on_all(comm, lambda: prediction.refuse_too_large_for_gpu(config, job, device, sharing))
    check_on_all(comm, lambda: check_shards(dataset, config, runtime.rank, runtime.ranks))
    segments = check_on_all(
        comm,
        lambda: rank_segments(dataset, "train", config.data.assign, runtime.rank, runtime.ranks),
    )
    meter.beat()
    saved = restore.newest_valid(comm, folder.checkpoints) if resume else None
    meter.beat()
    if saved is not None:
        check_on_all(comm, lambda: _check_saved(saved, config, dataset))
    given = check_on_all(comm, lambda: _load_pretrained(config, model)) if saved is None else None
    algorithm = algorithms.build(comm, config, model, device)
    saved_model = model
    if saved is None:
        progress = Progress(ranks=runtime.ranks)
        algorithm.start_new(config.seed, given)
    else:
        progress, restored, saved_model = check_on_all(
            comm, lambda: _restore(runtime, config, dataset, model, saved)
        )
        algorithm.start_from(restored.state, restored.shared, restored.shared_slots)
    entered = on_root(comm, lambda: _enter(runtime, config, folder, resume, progress, algorithm))
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
    at = saved.folder if saved is not None else None
    return Trainer(
        *(comm, config, dataset, model, algorithm, folder, segments, progress),
        saved=at,
        saved_model=saved_model,
        stop=stop,
        meter=meter,
    )


def _require_visible(folder: RunFolder) -> None:
    """Every rank writes its part of a checkpoint."""
    if not folder.checkpoints.is_dir():
        raise InputError(
            f"the run folder {folder.path}, made by rank 0, is not seen by every rank; --runs must "
            "be on a file system that all ranks share"
        )


def _lock_existing(folder: RunFolder, resume: bool, silence_s: float) -> None:
    """Make sure that no other run is in the folder, before anything in it is looked at."""
    if not folder.path.exists() or folder.or_beside:
        return
    if not resume:
        raise folder.exists_error()
    with folder.changing():
        folder.lock(_LOCK_SILENCES * silence_s)


def _open(config: Config, ranks: int) -> tuple[Dataset, Model]:
    dataset = Dataset.open(config.data.path)
    for split in ("train", "test"):
        if dataset.rows(split) == 0:
            raise InputError(f"{dataset.path}: the {split} split has no rows")
    images.scaling_of(config.data, dataset)  # these refuse data that they are not for
    images.augmentation_of(config.data, dataset, config.seed, rank=0)
    model = build_model(config, dataset, ranks)
    algorithms.refuse_unfit(config, model, ranks)
    metrics_for(dataset, config.evaluate)  # refuses propensities that cannot be
    for split, count in (
        ("train", config.evaluate.calibration_rows),
        ("test", config.evaluate.batch_rows),
    ):
        if not dataset.sparse:
            numbers = max(dataset.features, model.relayed_numbers)
            refuse_uncountable(min(count, dataset.rows(split)), numbers)
    return dataset, model


def build_model(config: Config, dataset: Dataset, ranks: int) -> Model:
    """The configured model for the data; `InputError` if the configuration says other widths."""
    subnets = subnets_of(config, ranks)
    model = networks.build(config.model, *widths(config, dataset), dataset.sparse, subnets)
    networks.refuse_other_rows(model, dataset.feature_shape, dataset.path)
    return model


def _load_pretrained(config: Config, model: Model) -> dict[str, Tensor]:
    """What `model.body_from` has of the shared weights; nothing if it is not set."""
    source = config.model.body_from if isinstance(config.model, Vgg11Config) else None
    if source is None:
        if is_frozen(config.model):
            raise InputError(
                "`model.freeze_body: true` would leave random convolutions as they are; give "
                "`model.body_from`, or go on with a run by --resume"
            )
        return {}
    body = [spec for spec in model.shared if spec.key.startswith(BODY_PREFIX)]
    return read_shared(Path(source), body)


def widths(config: Config, dataset: Dataset) -> tuple[int, int]:
    """(features a row, classes) of the data; `InputError` if the configuration says others."""
    features, classes = dataset.features, dataset.outputs
    for name, configured, found, what in (
        ("inputs", config.model.inputs, features, "features a row"),
        ("outputs", config.model.outputs, classes, "classes"),
    ):
        if configured is not None and configured != found:
            raise InputError(
                f"{dataset.path} has {found} {what}, `model.{name}` says {configured}; is "
                "`data.path` the data this configuration is for?"
            )
    return features, classes


def check_shards(dataset: Dataset, config: Config, rank: int, ranks: int) -> None:
    """Check this rank's part of the shards; the ranks together check all. Local.

    Under `data.assign: files` a rank checks its own shards, the only ones that it must have.
    """
    numbered = [(split, i) for split, shards in dataset.shards.items() for i in range(len(shards))]
    for position, (split, index) in enumerate(numbered):
        mine = index if config.data.assign == "files" else position
        if mine % ranks == rank:
            dataset.check_shard(split, index, checksum=config.data.verify)


def _check_saved(saved: Checkpoint, config: Config, dataset: Dataset) -> None:
    with saved.opened() as opened:
        restore.check_model(opened, config, DataShape.of(dataset))


def _restore(
    runtime: Runtime, config: Config, dataset: Dataset, model: Model, saved: Checkpoint
) -> tuple[Progress, restore.Restored, Model]:
    """Where it was, this rank's part of it, and the model scaled for how it was trained."""
    carry = config.optimizer.state == "carry"
    rule = optimizer.build(config.optimizer)
    slot_specs = rule.slot_specs(model.specs) if carry else ()
    shared_slots = rule.shared_slot_specs(model.shared) if carry else ()
    with saved.opened() as opened:
        restored = restore.restore(
            opened, model, slot_specs, shared_slots, runtime.rank, runtime.ranks
        )
        progress = opened.progress
        if opened.metric != main_metric(opened.data.sparse, config.evaluate):
            progress = replace(progress, best=-1.0)  # of another metric
        before = opened.config
        least = config.model
        if isinstance(least, ResnetConfig) and isinstance(before.model, ResnetConfig):
            least = replace(least, min_blocks=before.model.min_blocks)
        as_before = replace(config, train=before.train, model=least)
        return progress, restored, build_model(as_before, dataset, progress.ranks)


@dataclass(frozen=True)
class _Entered:
    """Where the run folder is, which start of its run this is, and whether it was made for it."""

    path: Path
    start: str
    made: bool


def _enter(
    runtime: Runtime,
    config: Config,
    folder: RunFolder,
    resume: bool,
    progress: Progress,
    algorithm: Algorithm,
) -> _Entered:
    """Make or enter the folder, which from now on is this start's.

    Raises `InputError` where it cannot be written; one that was made for it is removed then.
    """
    from mpi4py import MPI

    facts = facts_of_start(runtime.ranks, runtime.threads, MPI.Get_library_version())
    facts |= {"averaged_by": algorithm.averaged_by}
    made = folder.create(resume)
    try:
        _record(config, folder, progress, facts)
    except BaseException:
        if made:
            folder.remove()
        raise
    return _Entered(folder.path, folder.lock_line, made)


def _record(config: Config, folder: RunFolder, progress: Progress, facts: dict[str, Any]) -> None:
    """Keep others out of the folder, and write what this start is."""
    with folder.changing():
        folder.lock()
        _refuse_later(folder, progress)
        folder.forget_failure()
        folder.rewind_metrics(progress.round)
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

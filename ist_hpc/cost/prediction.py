"""What a configured run costs: its `counts.Job`, and whether the nodes have the memory for it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ist_hpc.common.errors import InputError
from ist_hpc.common.sizes import ELEMENT_BYTES
from ist_hpc.config.keys import Config
from ist_hpc.cost import counts
from ist_hpc.cost import memory as cost_memory
from ist_hpc.cost.grants import Grant, granted_bytes
from ist_hpc.cost.limits import refusal
from ist_hpc.data.shard_meta import Meta
from ist_hpc.exchange.held_bytes import home_bytes
from ist_hpc.exchange.placement import elements
from ist_hpc.models import optimizer
from ist_hpc.models.base import Model
from ist_hpc.runtime.devices import free_gpu_bytes
from ist_hpc.runtime.precision import product_bytes

if TYPE_CHECKING:
    from mpi4py import MPI


def job_of(config: Config, model: Model, ranks: int, meta: Meta | None) -> counts.Job:
    """What `counts` needs to know about a run.

    meta  describes the data; without it the configured window and `data.row_entries` replace it
    """
    evaluation_rows = config.evaluate.batch_rows
    if meta is not None and meta.shards.get("test"):
        evaluation_rows = min(evaluation_rows, sum(shard.rows for shard in meta.shards["test"]))
    calibration_rows, window_bytes = config.evaluate.calibration_rows, config.data.window_mib << 20
    if meta is not None and meta.shards.get("train"):
        rows = sum(shard.rows for shard in meta.shards["train"])
        calibration_rows = min(calibration_rows, rows)
        window_bytes = meta.window_bytes(ranks, window_bytes)
    return counts.Job(
        model=model,
        rule=optimizer.build(config.optimizer),
        ranks=ranks,
        seed=config.seed,
        carry=config.optimizer.state == "carry",
        keeps_rounds=config.train.on_nan == "skip_round",
        batch_size=config.data.batch_size,
        row_entries=_row_entries(config, meta),
        local_steps=config.train.local_steps,
        calibration_rows=calibration_rows,
        evaluation_rows=evaluation_rows,
        window_bytes=window_bytes,
        buffer_bytes=config.exchange.buffer_mib << 20,
        product_bytes=product_bytes(config.train.precision),
    )


def is_sparse(config: Config, meta: Meta | None) -> bool:
    """Whether rows are sparse, by the data, or without data if `data.row_entries` is given."""
    return config.data.row_entries is not None if meta is None else meta.kind == "sparse"


def _row_entries(config: Config, meta: Meta | None) -> float | None:
    """Average non-zeros per row; from the size of the data, if there are any."""
    if not is_sparse(config, meta):
        return None
    if meta is None or not meta.shards.get("train"):
        return config.data.row_entries or 1.0
    return meta.row_entries("train")


def grants_of_node(comm: "MPI.Comm") -> list[Grant]:
    """The grants of each rank of this node. Collective."""
    from mpi4py import MPI

    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    grants = node.allgather(granted_bytes())
    node.Free()
    return grants


def memory_of(config: Config, job: counts.Job) -> cost_memory.Memory:
    """The memory that a rank holds under the configured algorithm.

    If ranks hold whole models, an evaluation and Horovod's fusion buffer count, too. Memory that
    Horovod, MPI and gloo allocate for themselves does not count.
    """
    train = config.train
    if train.algorithm == "ist":
        return cost_memory.subnet_memory(job)
    averages = train.algorithm != "local_sgd" or train.warmup_steps > 0
    step = dict(cost_memory.replica_memory(job, averages_gradient=averages).phases["training"])
    held = {name: step[name] for name in ("weights", "slots", "window", "calibration")}
    turned = [spec for spec in job.weights if spec.transposed]
    evaluation = {
        **held,
        "home_copies": home_bytes(turned, job.ranks),
        "activations": cost_memory.full_activations(job),
    }
    phases = {"training": step, "evaluation": evaluation}
    if job.ranks > 1 and train.algorithm == "ddp":  # a gradient before it is in its bucket
        step["buffers"] = max(elements(spec) for spec in job.weights) * ELEMENT_BYTES
    elif job.ranks > 1 and averages:
        averaged = sum(counts.averaged_elements(job, steps=1, with_slots=False))
        half = round(averaged) * ELEMENT_BYTES // 2 if train.compression == "fp16" else 0
        step["buffers"] = cost_memory.fusion_bytes() + half
    elif job.ranks > 1:
        _, of_rows = counts.averaged_elements(job, job.local_steps, with_slots=job.carry)
        gathered = round(of_rows) * ELEMENT_BYTES
        phases["average"] = {**held, "buffers": cost_memory.fusion_bytes() + gathered}
    return cost_memory.Memory(phases)


def refuse_too_large_for_gpu(
    config: Config, job: counts.Job, device: torch.device, sharing: int
) -> None:
    """Raise `InputError` if the ranks that share a GPU need more than it has free. Local."""
    if device.type == "cpu":
        return
    needed_bytes, free_bytes = (
        memory_of(config, job).peaks_with_gpu()[1],
        free_gpu_bytes(device),
    )
    if sharing * needed_bytes > free_bytes:
        raise InputError(
            f"not enough memory on the GPU {device.index}: {sharing} rank(s) need "
            f"{sharing * needed_bytes / 1e9:,.2f} GB (each {needed_bytes / 1e9:,.2f} GB to train), "
            f"and {free_bytes / 1e9:,.2f} GB are free; take more GPUs, or a smaller "
            "`data.batch_size`, `exchange.buffer_mib` or `evaluate.batch_rows`"
        )


def refuse_too_large(config: Config, job: counts.Job, grants: Sequence[Grant]) -> None:
    """Raise `InputError` if the ranks of a node need more memory than it grants. Local."""
    memory = memory_of(config, job)
    needed_bytes = memory.peak if config.device == "cpu" else memory.peaks_with_gpu()[0]
    problem = refusal(needed_bytes, grants, configured_gb=config.runtime.memory_gb)
    if problem is not None:
        raise InputError(problem)

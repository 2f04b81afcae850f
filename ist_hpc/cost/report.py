"""The numbers of `python -m ist_hpc.plan`: memory, bytes and operations of a configured run."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ist_hpc.common.errors import InputError
from ist_hpc.config.keys import Config, draws_labels
from ist_hpc.cost import counts
from ist_hpc.cost import memory as cost_memory
from ist_hpc.cost.fits import fits
from ist_hpc.cost.limits import BASE_BYTES
from ist_hpc.data.meta_reading import load_meta
from ist_hpc.data.shard_meta import META_FILE, Meta

_MOST_RANKS = 4096  # tried in the search for the fewest that fit


def plan_report(
    config: Config, ranks: int, rounds: int, memory_gb: float | None = None
) -> dict[str, Any]:
    """All numbers, for `json.dumps`; bytes, elements and operations, whole or on average.

    With `memory_gb`, the limit per rank, it also has `fits`. Raises `InputError` if the widths are
    unknown or there are more ranks than units.
    """
    for name, value in (("ranks", ranks), ("rounds", rounds)):
        if value < 1:
            raise InputError(f"--{name} must be at least 1, got {value}")
    if memory_gb is not None and not 0 < memory_gb < math.inf:
        raise InputError(f"--memory-gb must be above 0, as in --memory-gb 16, got {memory_gb}")
    inputs, outputs, meta = _widths(config)
    from ist_hpc.cost import prediction
    from ist_hpc.models import networks

    sparse, frequencies = prediction.is_sparse(config, meta), None
    if draws_labels(config.model) and meta is not None and meta.shards.get("train"):
        frequencies = _label_frequencies(config)
    model = networks.build(config.model, inputs, outputs, sparse, frequencies=frequencies)
    job = prediction.job_of(config, model, ranks, meta)
    exchanges = counts.exact_bytes(job, rounds)
    memory = {
        "ist": _memory(cost_memory.subnet_memory(job)),
        "local_sgd": _memory(cost_memory.replica_memory(job, averages_gradient=False)),
        "data_parallel": _memory(cost_memory.replica_memory(job, averages_gradient=True)),
    }
    report = {
        "name": config.name,
        "seed": config.seed,
        "ranks": ranks,
        "rounds": rounds,
        "local_steps": config.train.local_steps,
        "batch_size": config.data.batch_size,
        "optimizer": config.optimizer.kind,
        "optimizer_state": config.optimizer.state,
        "model": {
            "kind": config.model.kind,
            "inputs": inputs,
            "hidden": [] if config.model.kind == "resnet" else list(config.model.hidden),
            "outputs": outputs,
            "weights": job.weight_elements,
        },
        "memory": memory,
        "bytes_a_round": {
            "ist": _ist_bytes(job, exchanges),
            "local_sgd": _replica_bytes(job, counts.local_sgd_bytes(job), times=1),
            "data_parallel": _replica_bytes(
                job, counts.data_parallel_bytes(job), config.train.local_steps
            ),
        },
        "flops_a_step": _flops(job),
    }
    if memory_gb is not None:
        most_ranks = min(_MOST_RANKS, *(axis.size for axis in model.axes.values()))

        def needs_of_ranks(n: int) -> int:
            job = prediction.job_of(config, model, n, meta)
            return cost_memory.subnet_memory(job).peak + BASE_BYTES

        report["fits"] = fits(
            round(memory_gb * 1e9),
            {name: values["peak"] + BASE_BYTES for name, values in memory.items()},
            needs_of_ranks,
            most_ranks,
        )
    return report


def _label_frequencies(config: Config) -> Any:
    """How often the labels of the data occur (a tensor); other plans do not need HDF5."""
    from ist_hpc.data.shards import Dataset
    from ist_hpc.models.frequencies import label_frequencies

    return label_frequencies(Dataset.open(config.data.path))


def _widths(config: Config) -> tuple[int, int, Meta | None]:
    """(inputs, outputs, the data's description if it exists and has these widths)."""
    path = Path(config.data.path)
    meta = load_meta(path) if (path / META_FILE).exists() else None
    inputs, outputs = config.model.inputs, config.model.outputs
    if meta is not None:
        found = (meta.features, meta.outputs)
        inputs, outputs = inputs or found[0], outputs or found[1]
        if (inputs, outputs) != found:
            meta = None  # the plan is for other data than those found here
    missing = [
        f"model.{name}=..."
        for name, value in (("inputs", inputs), ("outputs", outputs))
        if not value
    ]
    if inputs is None or outputs is None:
        raise InputError(
            f"the widths of the network are not known: there is no {path / META_FILE} to take them "
            f"from; add --set {' '.join(missing)}, or correct `data.path`"
        )
    return inputs, outputs, meta


def _memory(memory: cost_memory.Memory) -> dict[str, Any]:
    phases = {
        phase: {**items, "total": memory.total(phase)} for phase, items in memory.phases.items()
    }
    return {"peak": memory.peak, "peak_phase": memory.peak_phase, "phases": phases}


def _ist_bytes(job: counts.Job, exchanges: Sequence[counts.ExchangeBytes]) -> dict[str, Any]:
    start, *between = exchanges
    received = [int(value) for exchange in between for value in exchange.received]
    totals = [exchange.total for exchange in between]
    return {
        "expected_a_rank": counts.expected_bytes(
            job.exchanged, job.ranks, asked=job.rows_asked_for
        ),
        "exact_a_rank": _spread(received),
        "exact_all_ranks": _spread(totals),
        "averaging_a_rank": counts.averaging_bytes(job),
        "all_ranks": sum(totals) / len(totals) + job.ranks * counts.averaging_bytes(job),
        "through_server": counts.subnets_through_server_bytes(job),
        "start_all_ranks": start.total,
        "evaluation_a_rank": counts.expected_bytes(job.weights, job.ranks, at_home=True),
        "checkpoint_a_rank": counts.expected_bytes(job.exchanged, job.ranks, at_home=True),
        "exchanges": [
            {
                "to_round": exchange.round_index,
                "sent": exchange.sent.tolist(),
                "received": exchange.received.tolist(),
            }
            for exchange in exchanges
        ],
    }


def _replica_bytes(job: counts.Job, received: float, times: int) -> dict[str, float]:
    """Bytes of an algorithm whose ranks have the whole model and average it `times` per round."""
    return {
        "expected_a_rank": received,
        "all_ranks": job.ranks * received,
        "through_server": times * counts.wholes_through_server_bytes(job),
    }


def _spread(values: Sequence[int]) -> dict[str, float]:
    return {"mean": sum(values) / len(values), "min": min(values), "max": max(values)}


def _flops(job: counts.Job) -> dict[str, dict[str, int]]:
    outputs = job.model.step_outputs(job.batch_size)
    subnets = [
        counts.step_flops(job.layers, job.batch_size, job.ranks, rank, job.row_entries, outputs)
        for rank in range(job.ranks)
    ]
    whole = counts.step_flops(
        job.layers, job.batch_size, ranks=1, row_entries=job.row_entries, outputs=outputs
    )
    replicas = {"a_rank": whole, "all_ranks": whole * job.ranks}
    return {
        "ist": {"a_rank": max(subnets), "all_ranks": sum(subnets)},
        "local_sgd": replicas,
        "data_parallel": replicas,
    }

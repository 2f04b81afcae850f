"""The memory that a rank will hold, phase by phase, computed before a run starts.

Only what is held at the same time is said here. How many bytes each part takes is said beside what
allocates it: by the network (`models.shapes.Shapes`), the optimiser, the exchange
(`exchange/held_bytes.py`) and the rows. It is counted from shapes and deals, without temporaries of
a few MiB and without Python, PyTorch, MPI and Horovod themselves. The same is counted for data
parallel training and local SGD, where every rank holds the whole model.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from ist_hpc.common.decimals import whole_from
from ist_hpc.common.sizes import ELEMENT_BYTES
from ist_hpc.cost.counts import Job, averaged_elements
from ist_hpc.exchange.held_bytes import (
    exchange_buffers,
    held_bytes,
    home_bytes,
    trained_bytes,
    visit_bytes,
)
from ist_hpc.exchange.placement import home
from ist_hpc.exchange.plan import plan_exchange

_FUSION_BYTES = 128 << 20  # Horovod's default


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank, phase by phase: phase -> item -> bytes that are held at the same time."""

    phases: Mapping[str, Mapping[str, int]]

    def total(self, phase: str) -> int:
        """Bytes of a phase."""
        return sum(self.phases[phase].values())

    @property
    def peak_phase(self) -> str:
        """The phase that holds the most."""
        return max(self.phases, key=self.total)

    @property
    def peak(self) -> int:
        """Bytes of that phase."""
        return self.total(self.peak_phase)

    def peaks_with_gpu(self) -> tuple[int, int]:
        """(host, GPU) bytes, each at its peak, if weights and activations are on a GPU.

        Rows stay on the host; buffers are on both, pinned on the host. A checkpoint's home blocks
        are copied to the host tensor by tensor, but counted here all at once.
        """
        on_host = ("window", "calibration", "batches", "buffers")
        host = max(sum(items.get(name, 0) for name in on_host) for items in self.phases.values())
        host += self.phases.get("checkpoint", {}).get("home_copies", 0)
        of_host_alone = ("window", "calibration", "batches")
        gpu = max(
            sum(size for name, size in items.items() if name not in of_host_alone)
            for items in self.phases.values()
        )
        return host, gpu


def subnet_memory(job: Job) -> Memory:
    """Memory of rank 0 under independent subnet training.

    Deals and home blocks give the first ranks the extra units, so no rank holds more. Buffers are
    those of the busiest rank. Phases:

    training    a step: gradient, activations of a batch, temporaries of the optimiser's update
    exchange    to the next round: tensors that its chunks hold twice
    evaluation  a visit home: home blocks of input and output layers, the full network's activations
    checkpoint  the same with the slots' home blocks; a checkpoint also computes statistics

    Activations are an estimate; everything else is counted as the code allocates it.
    """
    here, there, at_home = job.placement(0), job.placement(1), home(job.ranks)
    weights = held_bytes(job.weights, here) + job.shared_elements * ELEMENT_BYTES
    dealt_slots = held_bytes(job.slots, here) if job.carry else trained_bytes(job.slots, here)
    slots = dealt_slots + job.shared_slot_elements * ELEMENT_BYTES
    stays, slots_stay = (  # at home, of demanded tensors, and is not trained
        home_bytes((spec for spec in specs if spec.demanded and job.ranks > 1), job.ranks)
        for specs in (job.weights, job.slots)
    )
    next_round = plan_exchange(job.exchanged, here, there, 0, job.buffer_bytes)
    moves = [(job.exchanged, there), (job.weights, at_home), (job.exchanged, at_home)]
    kept = {
        "weights": weights,
        "buffers": max(
            exchange_buffers(specs, here, target, job.buffer_bytes) for specs, target in moves
        ),
        **_rows_kept(job),
    }
    weight_copies = visit_bytes(job.weights, here)
    slot_copies = visit_bytes(job.slots, here) if job.carry else 0
    activations = full_activations(job)
    phases = {
        "training": {
            "slots": slots,
            **_kept_round(job, weights - stays, slots - slots_stay),
            "gradient": job.model.gradient_bytes(job.batch_size, job.ranks, job.row_entries),
            **_step(job, job.ranks),
            **_batches(job),
        },
        "exchange": {
            "slots": slots if job.carry else 0,
            "doubled": next_round.doubled_bytes,
            **_batches(job),
        },
        "evaluation": {
            "slots": slots,
            "home_copies": weight_copies,
            "activations": activations,
        },
        "checkpoint": {
            "slots": slots,
            "home_copies": weight_copies + slot_copies,
            "activations": activations,
        },
    }
    return Memory({name: kept | items for name, items in phases.items()})


def replica_memory(job: Job, averages_gradient: bool) -> Memory:
    """Memory of a rank that holds the whole model, in a step: data parallel and local SGD.

    Data parallel training averages the gradient, which is therefore a whole tensor even with sparse
    rows; where labels are sampled, the rows that some rank uses, of which each rank has its own,
    too. Without Horovod's fusion buffer, and without an evaluation, which adds activations.
    """
    weights = job.weight_elements * ELEMENT_BYTES
    slots = (job.replica_slot_elements + job.shared_slot_elements) * ELEMENT_BYTES
    if averages_gradient:
        whole, of_rows = averaged_elements(job, steps=1, with_slots=False)
        gradient = round(whole - job.frozen_elements + 2 * of_rows) * ELEMENT_BYTES
    else:
        gradient = job.model.gradient_bytes(job.batch_size, 1, job.row_entries)
    step = {
        "weights": weights,
        **_rows_kept(job),
        "slots": slots,
        **_kept_round(job, weights, slots),
        "gradient": gradient,
        **_step(job, ranks=1),
    }
    return Memory({"training": step})


def full_activations(job: Job) -> int:
    """Estimated bytes of the activations of the full network: calibration, or a batch of it."""
    return max(
        job.model.full_activations(rows, job.ranks, job.row_entries, calibrate)
        for rows, calibrate in ((job.calibration_rows, True), (job.evaluation_rows, False))
    )


def fusion_bytes() -> int:
    """Size of the buffer that collects small tensors before they are averaged."""
    given = os.environ.get("HOROVOD_FUSION_THRESHOLD", "")
    try:
        return whole_from(0, given)
    except ValueError:
        return _FUSION_BYTES


def _kept_round(job: Job, weights_bytes: int, slots_bytes: int) -> dict[str, int]:
    """Bytes that `Algorithm.keep_round` copies: all that a round changes."""
    if not job.keeps_rounds:
        return {}
    return {"kept_round": weights_bytes + (slots_bytes if job.carry else 0)}


def _step(job: Job, ranks: int) -> dict[str, int]:
    """Memory of a step without weights, slots and gradients; `ranks` is 1 for the whole model."""
    model, entries = job.model, job.row_entries
    updates = [job.rule.update_bytes(spec, ranks) for spec in model.dense_specs]
    for spec, of_rows in model.row_gradients(job.batch_size, ranks, entries):
        updates.append(job.rule.row_update_bytes(spec, of_rows))
    casts = {"casts": model.cast_bytes(ranks, job.product_bytes)}
    return {
        "update": max(updates),
        **(casts if job.product_bytes != ELEMENT_BYTES else {}),
        "activations": model.step_activations(job.batch_size, ranks, entries, job.product_bytes),
    }


def _batches(job: Job) -> dict[str, int]:
    """Batches of a round, where they are drawn ahead: to ask for the rows that they use."""
    if not job.demands:
        return {}
    return {"batches": job.local_steps * job.model.rows_bytes(job.batch_size, job.row_entries)}


def _rows_kept(job: Job) -> dict[str, int]:
    """Rows kept in memory: those for calibration, from the first visit on, and the window."""
    calibration = job.model.rows_bytes(job.calibration_rows, job.row_entries)
    return {"calibration": calibration, "window": job.window_bytes}

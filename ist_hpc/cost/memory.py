"""What a rank holds before a run is started: its memory, phase by phase.

The tensors that the code holds at the same time are counted from shapes and deals, without
temporaries of a few MiB and without Python, PyTorch, MPI and Horovod themselves. The same is
counted for data parallel training and local SGD, where every rank holds the whole model.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ist_hpc.common.blocks import block_bounds
from ist_hpc.common.sizes import ELEMENT_BYTES
from ist_hpc.cost.counts import Job
from ist_hpc.exchange.held_bytes import exchange_buffers, held_bytes, subnet_bytes, visit_bytes
from ist_hpc.exchange.placement import home
from ist_hpc.exchange.plan import plan_exchange
from ist_hpc.models.layers import (
    HOME_ENTRIES_AT_ONCE,
    IMAGES_AT_ONCE,
    UPDATE_SLAB_ELEMENTS,
    Layer,
    matrices,
)

UPDATE_SCRATCH: Mapping[str, tuple[int, int]] = {
    "sgd": (0, 0),
    "adam": (8, 20),
    "adagrad": (4, 4),
    "rowwise_adagrad": (0, 0),
}
"""Temporary bytes an element of the slab that is being updated, by kind of optimiser.

(where one count of updates serves the tensor, where every element has its own). Adam makes a root
and a quotient; with counts of their own also an index (int64) and the factors looked up by it.
"""

_SPARSE_WORDS = 14  # a step's batch: entries, their order by feature, and indices on the way
_BLOCKS_OF_TOP = 4  # logits of a block of labels, and what finding the largest makes of them
_GATHER_BYTES = 8 << 20  # of the activations that an evaluation gathers, at a time


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank, phase by phase: phase -> item -> bytes that are held at the same time."""

    phases: Mapping[str, Mapping[str, int]]

    def total(self, phase: str) -> int:
        """Bytes of a phase."""
        return sum(self.phases[phase].values())

    @property
    def peak_phase(self) -> str:
        """The phase that holds most."""
        return max(self.phases, key=self.total)

    @property
    def peak(self) -> int:
        """Bytes of that phase."""
        return self.total(self.peak_phase)

    def peaks_with_gpu(self) -> tuple[int, int]:
        """(host, GPU) bytes, each at its peak, where weights and activations are on a GPU.

        Rows stay on the host; buffers are on both, pinned on the host; a checkpoint's home blocks
        are copied to it tensor by tensor, counted here all at once.
        """
        on_host = ("window", "calibration", "buffers")
        host = max(sum(items.get(name, 0) for name in on_host) for items in self.phases.values())
        host += self.phases.get("checkpoint", {}).get("home_copies", 0)
        gpu = max(
            sum(size for name, size in items.items() if name not in ("window", "calibration"))
            for items in self.phases.values()
        )
        return host, gpu


def subnet_memory(job: Job) -> Memory:
    """Memory of rank 0 under independent subnet training.

    Deals and home blocks give the first ranks the extra units, so no rank holds more but for the
    buffers, which are those of the busiest rank. Phases:

    training    a step: gradient, activations of a batch, temporaries of the optimiser's update
    exchange    to the next round: what its chunks hold twice
    evaluation  a visit home: home blocks of input and output layers, the full network's activations
    checkpoint  the same with the slots' home blocks; statistics are computed for a checkpoint, too

    Activations are an estimate; everything else is counted as the code allocates it.
    """
    here, there, at_home = job.placement(0), job.placement(1), home(job.ranks)
    weights, slots = held_bytes(job.weights, here), _slot_bytes(job)
    shared, frozen = (n * ELEMENT_BYTES for n in (job.shared_elements, job.frozen_elements))
    next_round = plan_exchange(job.exchanged, here, there, 0, job.buffer_bytes)
    moves = [(job.exchanged, there), (job.weights, at_home), (job.exchanged, at_home)]
    kept = {
        "weights": weights + shared,
        "buffers": max(
            exchange_buffers(specs, here, target, job.buffer_bytes) for specs, target in moves
        ),
        **_rows_kept(job),
    }
    widths = full_activations(job)
    weight_copies = visit_bytes(job.weights, here)
    slot_copies = visit_bytes(job.slots, here) if job.carry else 0
    phases = {
        "training": {
            "slots": slots,
            **_kept_round(job, weights + shared + (slots if job.carry else 0)),
            "gradient": _gradient_bytes(job, job.ranks) + shared - frozen,
            "update": _update_scratch(job, job.ranks),
            **_casts(job, job.ranks),
            "activations": step_activations(job, job.ranks),
        },
        "exchange": {"slots": slots if job.carry else 0, "doubled": next_round.doubled_bytes},
        "evaluation": {
            "slots": slots,
            "home_copies": weight_copies,
            "activations": widths,
        },
        "checkpoint": {
            "slots": slots,
            "home_copies": weight_copies + slot_copies,
            "activations": widths,
        },
    }
    return Memory({name: kept | items for name, items in phases.items()})


def replica_memory(job: Job, averages_gradient: bool) -> Memory:
    """Memory of a rank that holds the whole model, in a step: data parallel and local SGD.

    Data parallel training averages the gradient, for which it is a whole tensor even under sparse
    rows. Without Horovod's fusion buffer, and without an evaluation, which adds activations.
    """
    shared, frozen = (n * ELEMENT_BYTES for n in (job.shared_elements, job.frozen_elements))
    whole = job.weight_elements * ELEMENT_BYTES
    alone = _gradient_bytes(job, ranks=1) + shared
    slots = (job.replica_slot_elements + job.shared_slot_elements) * ELEMENT_BYTES
    step = {
        "weights": whole,
        **_rows_kept(job),
        "slots": slots,
        **_kept_round(job, whole + (slots if job.carry else 0)),
        "gradient": (whole if averages_gradient else alone) - frozen,
        "update": _update_scratch(job, ranks=1),
        **_casts(job, ranks=1),
        "activations": step_activations(job, ranks=1),
    }
    return Memory({"training": step})


def _kept_round(job: Job, changing_bytes: int) -> dict[str, int]:
    return {"kept_round": changing_bytes} if job.keeps_rounds else {}


def _casts(job: Job, ranks: int) -> dict[str, int]:
    """The copies of weights that autocast keeps through a step; labels in blocks have none."""
    if job.product_bytes == ELEMENT_BYTES:
        return {}
    cast = [spec for spec in job.dense_weights if len(spec.shape) > 1]
    if job.label_block is not None:
        cast.pop()
    elements = sum(math.prod(spec.subnet_shape(0, ranks)) for spec in cast)
    return {"casts": (elements + job.shared_elements - job.untrained_elements) * job.product_bytes}


def _gradient_bytes(job: Job, ranks: int) -> int:
    """Of a step: whole tensors, and of the first matrix under sparse rows what occurs."""
    dense = subnet_bytes(job.dense_weights, ranks)
    if job.row_entries is None:
        return dense
    units = job.layers[0].own_outputs(ranks)
    return dense + job.occurring(job.batch_size) * units * ELEMENT_BYTES


def step_activations(job: Job, ranks: int) -> int:
    """Estimated bytes of the activations of one step of rank 0 (`ranks` 1: of the whole model).

    The batch; two of every layer's width (outputs at all positions), before and after its norm, and
    one more of the output for its softmax; two of the widest layer while gradients pass through it.
    With labels in blocks, of the output two blocks, and the sums of every block. Of a layer that is
    not trained nothing stays: before and after its norm, and what came in, one layer at a time.
    Under bf16 they take half, and dense rows and the outputs are there in both types.
    """
    share = job.product_bytes / ELEMENT_BYTES
    widths = [
        layer.own_outputs(ranks) * layer.positions
        for layer in job.layers
        if layer.trained
        for _ in range(layer.own_copies(ranks))
    ]
    passing = [
        layer.own_outputs(ranks) * layer.positions * 2
        + layer.own_inputs(ranks) * layer.positions_in
        for layer in job.layers
        if not layer.trained
    ]
    if not widths:
        return 0
    entering: float = _row_words(job)
    if job.row_entries is not None:
        entering = _SPARSE_WORDS * job.row_entries
    outputs = widths.pop() if job.label_block is not None else 0
    across = entering + share * (2 * sum(widths) + 2 * max(widths, default=0))
    if share < 1 and job.row_entries is None:
        across += share * entering
    if job.label_block is None:
        across += widths[-1] * (1 if share == 1 else 2)
    else:
        across += 2 * min(job.label_block, outputs) + 5 * -(-outputs // job.label_block)
    across = max(across, entering + max(passing, default=0))
    return round(job.batch_size * across * ELEMENT_BYTES)


def full_activations(job: Job) -> int:
    """Estimated bytes of the activations of the full network on one rank.

    Layer by layer: what came in, and either this rank's outputs before and after their norm or
    its outputs and those of all ranks, with the rows that are being gathered. The larger of the
    calibration (whose input is counted as kept rows) and of a batch of the evaluation. Of labels in
    blocks, some blocks of logits; of convolutions, some rows at a time, but for the calibration of
    those that are dealt out. Through layers that are dealt out as a whole all rows go from rank to
    rank: every rank has them before and after.
    """
    layers = job.layers
    peak = 0
    for index, layer in enumerate(layers):
        # Of sets of labels only the best logits are kept; those of classes are gathered whole.
        sets = job.label_block is not None and job.row_entries is not None
        blocked = sets and index == len(layers) - 1
        for all_rows, kept in ((job.calibration_rows, True), (job.evaluation_rows, False)):
            rows = all_rows
            came_in = 0 if kept else _rows_bytes(job, rows)
            whole = kept and (layer.calibrated or not layer.shared)
            if layer.positions > 1 and not whole:
                of_rank = -(-rows // job.ranks) if layer.shared and layer.copies is None else rows
                rows = min(of_rank, IMAGES_AT_ONCE)
            if index:
                came_in += rows * layer.inputs * layer.positions_in * ELEMENT_BYTES
            if layer.copies is not None:
                # What arrives; in an evaluation also what is sent, and with one rank put together.
                times = 1 if kept else 3 if job.ranks == 1 else 2
                came_in += times * all_rows * layer.outputs * layer.positions * ELEMENT_BYTES
            if blocked and job.label_block is not None:
                own = int(block_bounds(layer.outputs, job.ranks)[1])
                at_once = min(job.label_block, own)
                here = 0 if kept else _BLOCKS_OF_TOP * rows * at_once * ELEMENT_BYTES
            else:
                here = _layer_bytes(layer, rows, job.ranks)
            if index == 0 and job.row_entries is not None:
                own = int(block_bounds(layer.outputs, job.ranks)[1])
                columns = min(job.occurring(rows), HOME_ENTRIES_AT_ONCE)
                here += 2 * columns * own * ELEMENT_BYTES
            peak = max(peak, came_in + here)
    return peak


def _row_words(job: Job) -> int:
    """Numbers of a dense row."""
    return job.layers[0].inputs * job.layers[0].positions_in


def _rows_bytes(job: Job, rows: int) -> int:
    """Bytes of so many rows as a network takes them."""
    words = _row_words(job) if job.row_entries is None else 3 * job.row_entries
    return round(rows * words * ELEMENT_BYTES)


def _layer_bytes(layer: Layer, rows: int, ranks: int) -> int:
    """Bytes of so many rows through one layer of the full network, beside what came in."""
    whole = layer.outputs * layer.positions
    if layer.shared:  # every rank computes all of it, for rows of its own
        return rows * layer.beside * whole * ELEMENT_BYTES
    own = int(block_bounds(layer.outputs, ranks)[1]) * layer.positions
    norming = rows * 2 * own * ELEMENT_BYTES
    gathering = rows * (own + whole) * ELEMENT_BYTES
    gathering += min(rows * whole * ELEMENT_BYTES, _GATHER_BYTES)
    return max(norming, gathering if ranks > 1 else 0)


def _slot_bytes(job: Job) -> int:
    held = held_bytes(job.slots, job.placement(0))
    own = held if job.carry else subnet_bytes(job.slots, job.ranks)
    return own + job.shared_slot_elements * ELEMENT_BYTES


def _update_scratch(job: Job, ranks: int) -> int:
    """Temporaries of the largest update, made slab by slab; of sparse rows all that occur at once.

    There the rows of the weight and of its slots are gathered, too.
    """
    one, two = job.scratch
    most = 0
    for spec in job.dense_weights:
        shape = spec.subnet_shape(0, ranks)
        slab = min(math.prod(shape), max(UPDATE_SLAB_ELEMENTS, math.prod(shape[1:])))
        most = max(most, slab * (two if spec.has_two_axes and ranks > 1 else one))
    if job.row_entries is not None:
        first = matrices(job.weights)[0]
        slots = sum(1 for slot in job.slots if slot.shape == first.shape)
        units = job.layers[0].own_outputs(ranks)
        gathered = (1 + slots) * ELEMENT_BYTES + one
        most = max(most, job.occurring(job.batch_size) * units * gathered)
    return most


def _rows_kept(job: Job) -> dict[str, int]:
    """Rows that stay in memory: those for calibration, from the first visit on, and the window."""
    calibration = _rows_bytes(job, job.calibration_rows) if job.layers else 0
    return {"calibration": calibration, "window": job.window_bytes}

"""What `counts` and `memory` predict is what the exchange plans, moves and holds."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ist_hpc.common.sizes import allreduce_bytes
from ist_hpc.config.keys import OptimizerConfig
from ist_hpc.cost import counts
from ist_hpc.cost import memory as cost_memory
from ist_hpc.exchange import landing
from ist_hpc.exchange.exchanger import Exchanger
from ist_hpc.exchange.placement import home
from ist_hpc.exchange.plan import pair_counts, plan_exchange
from ist_hpc.exchange.tensors import state_bytes, zeros_at
from ist_hpc.models import layers, optimizer
from ist_hpc.models.local_step import LocalStep
from ist_hpc.models.perceptrons.mlp import MultiLayerPerceptron
from tests.helpers.alone import Alone

ODD = (7, (13, 11), 5)
DEEP = (9, (17, 12, 23), 6)
ONE = (31, (40,), 3)


def make_job(widths=ODD, ranks=3, kind="sgd", momentum=0.9, bias=False, **options):
    inputs, hidden, outputs = widths
    model = MultiLayerPerceptron(inputs, hidden, outputs, not bias, bias)
    rule = optimizer.build(OptimizerConfig(kind=kind, momentum=momentum if kind == "sgd" else 0.0))
    return counts.Job(model=model, rule=rule, ranks=ranks, **options)


# Bytes.


@pytest.mark.parametrize("widths", [ODD, DEEP, ONE])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_exact_bytes_are_those_of_every_ranks_plan(widths, ranks, kind):
    job = make_job(widths, ranks, kind, seed=ranks)
    source = home(ranks)
    for predicted in counts.exact_bytes(job, rounds=3):
        target = job.placement(predicted.round_index)
        plans = [plan_exchange(job.exchanged, source, target, r, 1 << 12) for r in range(ranks)]
        assert [plan.bytes_sent for plan in plans] == predicted.sent.tolist()
        assert [plan.bytes_received for plan in plans] == predicted.received.tolist()
        assert predicted.total == predicted.sent.sum()
        source = target


def test_one_rank_exchanges_nothing():
    job = make_job(ranks=1)
    assert [e.total for e in counts.exact_bytes(job, 2)] == [0, 0, 0]
    assert counts.expected_bytes(job.exchanged, 1) == 0
    assert counts.local_sgd_bytes(job) == counts.data_parallel_bytes(job) == 0


@pytest.mark.parametrize("ranks", [2, 3, 4, 5])
def test_the_formulas_are_the_average_over_many_rounds(ranks):
    one, middle = (64, (120,), 10), (8, (60, 60, 60), 4)
    for widths in (one, middle):
        job = make_job(widths, ranks, "adam", seed=7)
        rounds = counts.exact_bytes(job, rounds=60)[1:]
        mean = np.mean([exchange.received for exchange in rounds])
        assert mean == pytest.approx(counts.expected_bytes(job.exchanged, ranks), rel=0.02)


def test_the_formulas_of_one_layer():
    first, *_, middle = [spec for spec in make_job(ranks=4).weights if len(spec.shape) > 1][:2]
    assert counts.expected_received(first, 4) == 7 * 13 / 4 * (3 / 4)
    assert counts.expected_received(middle, 4) == 13 * 11 / 16 * (3 / 4) * (2 - 1 / 4)
    assert counts.expected_received_at_home(first, 4) == 7 * 13 / 4 * (3 / 4)
    assert counts.expected_received_at_home(middle, 4) == 13 * 11 / 16 * (3 / 4)


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_the_formula_of_a_visit_home_is_the_average(ranks):
    job = make_job((16, (60, 60), 30), ranks)
    received = [
        plan_exchange(job.weights, job.placement(r), home(ranks), rank, 1 << 20).bytes_received
        for r in range(20)
        for rank in range(ranks)
    ]
    assert np.mean(received) == pytest.approx(
        counts.expected_bytes(job.weights, ranks, at_home=True), rel=0.03
    )


def test_slots_travel_only_if_they_are_carried():
    carry = make_job(kind="adam")
    reset = replace(carry, carry=False)
    assert reset.exchanged == reset.weights
    assert counts.exact_bytes(reset, 1)[1].total < counts.exact_bytes(carry, 1)[1].total / 2


def test_a_run_moves_what_is_predicted(trained):
    lines = (trained.folder / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["kind"] in ("round", "evaluation")]
    assert [row["round"] for row in rows] == [1, 2, 3, 4, 4]
    job = make_job((64, (24, 17), 10), ranks=2)
    rounds = [exchange.total for exchange in counts.exact_bytes(job, rounds=3)]
    saving = 4 * int(pair_counts(job.exchanged, job.placement(3), home(2)).sum())
    for measured in ("bytes_received", "bytes_sent"):
        assert [row[measured] for row in rows] == [*rounds, saving]


def test_baselines_send_the_whole_model():
    job = make_job(ONE, ranks=4, local_steps=20)
    count = 31 * 40 + 2 * 40 + 3 * 40
    assert job.weight_elements == count
    alone = replace(job, carry=False)
    assert counts.local_sgd_bytes(alone) == 2 * 3 / 4 * count * 4
    assert counts.local_sgd_bytes(job) == 2 * counts.local_sgd_bytes(alone)  # momentum, too
    assert counts.data_parallel_bytes(job) == 20 * counts.local_sgd_bytes(alone)


def test_shared_weights_are_averaged():
    job = make_job(ONE, ranks=4, bias=True)
    assert job.shared_slot_elements == 3
    assert counts.averaging_bytes(job) == allreduce_bytes(6, 4)
    assert counts.averaging_bytes(replace(job, carry=False)) == allreduce_bytes(3, 4)


# Operations.


def test_a_step_of_the_whole_model_by_hand():
    inputs, (a, b), outputs = ODD
    expected = 32 * (4 * inputs * a + 6 * a * b + 6 * b * outputs)
    assert counts.step_flops(make_job().layers, 32, ranks=1) == expected


def test_operations_are_those_that_torch_counts():
    model, batch = MultiLayerPerceptron(64, [32, 48], 12), 16
    weights = {spec.key: torch.ones(spec.subnet_shape(0, 4)) for spec in model.specs}
    with FlopCounterMode(display=False) as counter:
        model.loss_and_gradients(
            weights, torch.rand(batch, 64), torch.zeros(batch).long(), LocalStep()
        )
    assert counts.step_flops(model.layers, batch, 4) == counter.get_total_flops()


# Memory.


@pytest.mark.parametrize("widths", [ODD, DEEP, ONE])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_weights_slots_and_home_copies_are_what_is_held(widths, ranks):
    job = make_job(widths, ranks, "adam")
    memory = cost_memory.subnet_memory(job).phases
    weights = state_bytes(zeros_at(job.weights, job.placement(0), 0))
    slots = state_bytes(zeros_at(job.slots, job.placement(0), 0))
    assert memory["training"]["weights"] == weights
    assert memory["training"]["slots"] == slots
    for phase, specs in (("evaluation", job.weights), ("checkpoint", job.exchanged)):
        state = zeros_at(job.exchanged, job.placement(0), 0)
        exchanger = Exchanger(Alone(), 1.0)
        exchanger.exchange(specs, job.placement(0), home(ranks), state, keep_source=True)
        assert state_bytes(state) == weights + slots + memory[phase]["home_copies"]


@pytest.mark.parametrize("buffer_bytes", [600, 2000, 8000, 1 << 20])
@pytest.mark.parametrize("widths", [ODD, DEEP, ONE])
def test_an_exchange_holds_twice_what_is_predicted(monkeypatch, widths, buffer_bytes):
    job = make_job(widths, 3, "adam", buffer_bytes=buffer_bytes)
    held = []
    finish_chunk = landing.Landing.finish_chunk

    def watched(landing, index):
        held.append(sum(tensor.numel() * 4 for tensor in landing.new.values()))
        finish_chunk(landing, index)

    monkeypatch.setattr(landing.Landing, "finish_chunk", watched)
    exchanger = Exchanger(Alone(), buffer_bytes / 2**20)
    state = zeros_at(job.exchanged, job.placement(0), 0)
    exchanger.exchange(job.exchanged, job.placement(0), job.placement(1), state)
    predicted = cost_memory.subnet_memory(job).phases["exchange"]
    assert predicted["doubled"] == max(held)
    buffers = 4 * sum(buffer.numel() for buffer in exchanger.staging.buffers.values())
    assert buffers <= predicted["buffers"] <= buffer_bytes * 1.02 + 4 * 4 * 3


def test_smaller_buffers_hold_less_twice():
    jobs = [make_job((64, (48, 48), 32), 4, buffer_bytes=size) for size in (1 << 11, 1 << 20)]
    small, large = (cost_memory.subnet_memory(job).phases["exchange"] for job in jobs)
    assert small["doubled"] < large["doubled"]
    assert small["buffers"] < large["buffers"]


def test_a_state_begun_anew_each_round_is_not_there_in_the_exchange():
    job = make_job(kind="adam", carry=False)
    phases = cost_memory.subnet_memory(job).phases
    assert phases["exchange"]["slots"] == 0
    assert phases["training"]["slots"] == phases["evaluation"]["slots"] > 0
    assert phases["checkpoint"]["home_copies"] == phases["evaluation"]["home_copies"]


def test_memory_is_the_phase_that_holds_most():
    memory = cost_memory.Memory({"a": {"x": 1, "y": 2}, "b": {"x": 4}})
    assert (memory.peak_phase, memory.peak, memory.total("a")) == ("b", 4, 3)


@pytest.mark.parametrize("averages", [False, True])
def test_whole_models_have_gradient_and_slots_of_what_is_shared(averages):
    """All weights have: those with axes and those without; what is frozen has no gradient."""
    job = make_job(ONE, bias=True)
    step = cost_memory.replica_memory(job, averages).phases["training"]
    assert step["slots"] == step["gradient"] == step["weights"] == 4 * job.weight_elements
    job.model.shared = (replace(job.model.shared[0], trained=False, changes=False),)
    step = cost_memory.replica_memory(job, averages).phases["training"]
    assert step["slots"] == step["gradient"] == step["weights"] - 4 * 3


def test_activations_are_no_less_than_what_autograd_keeps():
    model = MultiLayerPerceptron(64, [96, 80], 10)
    weights = {spec.key: torch.rand(spec.subnet_shape(0, 1)) for spec in model.specs}
    own = {weight.untyped_storage().data_ptr() for weight in weights.values()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    features, labels = torch.rand(32, 64), torch.zeros(32, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.loss_and_gradients(weights, features, labels, LocalStep())
    estimate = model.step_activations(32, 1, None)
    assert sum(kept.values()) <= estimate <= 2.5 * sum(kept.values())


@pytest.mark.parametrize("rows", [3, 2000, 9000])
@pytest.mark.parametrize("widths", [(300, (1000, 400), 9), (300, (1000,), 9)])
def test_activations_of_the_full_network_are_what_is_held(monkeypatch, widths, rows):
    """While a layer's outputs are gathered: what came in, its own outputs and those of all."""
    monkeypatch.setattr(layers, "GATHER_BYTES", 1 << 20)
    job = make_job(widths, ranks=4, calibration_rows=rows, evaluation_rows=1)
    gathered = min(4 * rows * 1000, 1 << 20)
    first = 4 * rows * (250 + 1000) + gathered
    later = 4 * rows * (1000 + 100 + 400) + min(4 * rows * 400, 1 << 20)
    assert cost_memory.full_activations(job) == (
        first if len(widths[1]) == 1 else max(first, later)
    )


# Size.


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_a_plan_for_64_ranks_has_a_bounded_number_of_pieces(kind):
    ranks, layers = 64, 2
    job = make_job((4096, (8192, 8192), 35), ranks, kind, momentum=0.0)
    plan = plan_exchange(job.exchanged, job.placement(0), job.placement(1), 31, 256 << 20)
    pieces = sum(len(chunk.send_pieces) + len(chunk.recv_pieces) for chunk in plan.chunks)
    rows = -(-8192 // ranks)
    tensors = len(job.exchanged)
    middle = sum(spec.has_two_axes for spec in job.exchanged)
    # One axis: a piece a peer. Two: one a peer between subnets; what goes home has at most one a
    # row of the subnet, what comes from this home one a row of the block; both ways.
    assert pieces <= 2 * (tensors * ranks + middle * 2 * rows)
    assert middle == (layers - 1) * (1 if kind == "sgd" else 4)
    assert len(plan.chunks) == 1

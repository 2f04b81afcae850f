"""The learning rate's steps. The update rules are checked, to the last bit, by tests/mpi."""

import pytest
import torch

from ist_hpc.config.keys import OptimizerConfig
from ist_hpc.exchange.placement import TensorSpec
from ist_hpc.models.gradients import RowGradient
from ist_hpc.models.optimizer import Optimizer, build, learning_rate
from tests.helpers.live_bytes import LiveBytes


@pytest.mark.parametrize(
    ("epoch", "expected"), [(0, 0.8), (1.99, 0.8), (2, 0.2), (2.5, 0.2), (3, 0.05), (90, 0.05)]
)
def test_the_learning_rate_steps_down_at_the_named_epochs(epoch, expected):
    config = OptimizerConfig(lr=0.8, decay_epochs=[2.0, 3.0], decay_factor=0.25)
    assert learning_rate(config, epoch) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("config", "first_layer", "middle_layer"),
    [
        (OptimizerConfig(), [], []),
        (OptimizerConfig(momentum=0.5), ["momentum/w"], ["momentum/w"]),
        (
            OptimizerConfig(kind="adam"),
            ["exp_avg/w", "exp_avg_sq/w"],
            ["exp_avg/w", "exp_avg_sq/w", "updates/w"],
        ),
    ],
    ids=["sgd", "momentum", "adam"],
)
def test_slots_are_tensors_like_their_weight(config, first_layer, middle_layer):
    rule = build(config)
    for axes, expected in ((("a", None), first_layer), (("b", "a"), middle_layer)):
        slots = rule.slot_specs([TensorSpec("w", (6, 4), axes)])
        assert [slot.key for slot in slots] == expected
        assert all((slot.shape, slot.axes) == ((6, 4), axes) for slot in slots)


def test_one_number_a_dealt_unit():
    rule = build(OptimizerConfig(kind="rowwise_adagrad"))
    specs = [
        TensorSpec("in", (6, 9), ("a", None), transposed=True),
        TensorSpec("middle", (4, 6), ("b", "a")),
        TensorSpec("out", (20, 4), (None, "b"), transposed=True),
        TensorSpec("norm", (4,), ("b",)),
    ]
    found = [(slot.key, slot.shape, slot.axes) for slot in rule.slot_specs(specs)]
    assert found == [
        ("squares/in", (6,), ("a",)),
        ("squares/middle", (4,), ("b",)),
        ("squares/out", (4,), ("b",)),
        ("squares/norm", (4,), ("b",)),
    ]


def test_adagrad_is_that_of_pytorch():
    weight = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    expected = torch.nn.Parameter(weight.clone())
    config = OptimizerConfig(kind="adagrad", lr=0.1, eps=1e-10)
    rule, torch_rule = build(config), torch.optim.Adagrad([expected], lr=0.1)
    slots = {"squares": torch.zeros_like(weight)}
    for step in range(4):
        gradient = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        rule.step(weight, gradient, slots, 0.1, step)
        expected.grad = gradient.clone()
        torch_rule.step()
    assert torch.equal(weight, expected.data)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_rows_that_do_not_occur_keep_their_state_as_in_sparse_adam(kind):
    """Momentum has no sparse form in PyTorch: there, a row at a time by hand."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(6, 3, generator=generator)
    config = OptimizerConfig(kind=kind, lr=0.1, momentum=0.9 if kind == "sgd" else 0.0)
    rule, expected = build(config), torch.nn.Parameter(weight.clone())
    slots = {name: torch.zeros_like(weight) for name in rule.slot_names(False)}
    torch_rule = torch.optim.SparseAdam([expected], lr=0.1)
    momentum = torch.zeros_like(weight)
    for step in range(6):
        rows = torch.randperm(6, generator=generator)[: 1 + step % 3].sort().values
        values = torch.randn(len(rows), 3, generator=generator)
        rule.step(weight, RowGradient(rows, values), slots, 0.1, step)
        if kind == "adam":
            expected.grad = torch.sparse_coo_tensor(
                rows.unsqueeze(0), values, (6, 3), check_invariants=True
            )
            torch_rule.step()
        else:
            for row, value in zip(rows.tolist(), values, strict=True):
                momentum[row] = 0.9 * momentum[row] + value
                expected.data[row] -= 0.1 * momentum[row]
    torch.testing.assert_close(weight, expected.data, rtol=1e-5, atol=1e-6)


def test_a_large_weight_is_updated_slab_by_slab_to_the_same_bits(monkeypatch):
    gradient = torch.randn(7, 5, generator=torch.Generator().manual_seed(3))
    results = []
    for slab in (1, 11, 1 << 20):
        monkeypatch.setattr("ist_hpc.models.optimizer._SLAB_ELEMENTS", slab)
        rule, weight = build(OptimizerConfig(kind="adam")), torch.ones(7, 5)
        slots = {name: torch.zeros_like(weight) for name in rule.slot_names(True)}
        slots["updates"][3:] = 4.0
        rule.step(weight, gradient, slots, 0.1, 0)
        results.append(weight)
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[1], results[2])


KINDS = ["sgd", "adam", "adagrad", "rowwise_adagrad"]


def made_bytes(rule: Optimizer, weight, gradient, slots) -> int:
    """Of temporaries of a step: views of what is held count as what they are views of."""
    given = [weight, *slots.values()]
    parts = [gradient] if isinstance(gradient, torch.Tensor) else [gradient.rows, gradient.values]
    with LiveBytes() as live:
        for tensor in (*given, *parts):
            tensor.detach()
        before = live.most
        rule.step(weight, gradient, slots, 0.1, 3)
    return live.most - before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("slab", [40 * 70, 1 << 20])
def test_an_update_takes_the_memory_that_is_said(monkeypatch, kind, ranks, slab):
    """But for numbers that are one a row, of which rowwise Adagrad has some."""
    monkeypatch.setattr("ist_hpc.models.optimizer._SLAB_ELEMENTS", slab)
    rule, spec = build(OptimizerConfig(kind=kind)), TensorSpec("w", (300, 70), ("b", "a"))
    weight = torch.ones(spec.subnet_shape(0, ranks))
    names = rule.slot_names(has_two_axes=ranks > 1)
    slots = {name: torch.zeros_like(weight) for name in names}
    if kind == "rowwise_adagrad":
        slots = {"squares": torch.zeros(len(weight), 1)}
    if "updates" in slots:
        slots["updates"][::2] = 4.0
    made = made_bytes(rule, weight, torch.ones_like(weight), slots)
    said = rule.update_bytes(spec, ranks)
    assert said <= made + 4 * 2 * 70 * (said > 0)
    assert made <= said + 4 * 4 * len(weight)


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_of_some_rows_takes_the_memory_that_is_said(kind):
    rule = build(OptimizerConfig(kind=kind, momentum=0.9 if kind == "sgd" else 0.0))
    spec = TensorSpec("w", (50, 900), ("a", None), transposed=True)
    weight = torch.ones(spec.subnet_shape(0, 1))
    slots = {name: torch.zeros_like(weight) for name in rule.slot_names(has_two_axes=False)}
    if kind == "rowwise_adagrad":
        slots = {"squares": torch.zeros(1, 50)}
    gradient = RowGradient(torch.arange(0, 900, 3), torch.ones(300, 50))
    made = made_bytes(rule, weight, gradient, slots)
    assert made == pytest.approx(rule.row_update_bytes(spec, 300 * 50), rel=0.02)

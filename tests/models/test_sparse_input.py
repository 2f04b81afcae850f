"""The first layer on sparse rows against the same product with dense rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ist_hpc.config.keys import OptimizerConfig
from ist_hpc.data.sparse_rows import SparseRows
from ist_hpc.models import optimizer
from ist_hpc.models.local_step import LocalStep
from ist_hpc.models.perceptrons import sparse_input
from ist_hpc.models.perceptrons.mlp import MultiLayerPerceptron
from tests.helpers.live_bytes import LiveBytes

INPUTS, UNITS = 11, 3
ROWS = st.lists(
    st.dictionaries(st.integers(0, INPUTS - 1), st.floats(-4, 4, width=32), max_size=6),
    min_size=1,
    max_size=8,
)


def as_rows(rows: list[dict[int, float]]) -> SparseRows:
    entries = [item for row in rows for item in sorted(row.items())]
    offsets = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)
    columns = torch.tensor([column for column, _ in entries], dtype=torch.int64)
    values = torch.tensor([value for _, value in entries], dtype=torch.float32)
    return SparseRows(offsets, columns, values, INPUTS)


def as_dense(rows: list[dict[int, float]]) -> torch.Tensor:
    dense = torch.zeros(len(rows), INPUTS, dtype=torch.float64)
    for index, row in enumerate(rows):
        for column, value in row.items():
            dense[index, column] = value
    return dense


@settings(deadline=None)
@given(rows=ROWS)
def test_product_and_gradient_are_those_of_dense_rows(rows: list[dict[int, float]]) -> None:
    features, dense = as_rows(rows), as_dense(rows)
    generator = torch.Generator().manual_seed(len(rows))
    weight = torch.randn(INPUTS, UNITS, generator=generator, dtype=torch.float64)
    arriving = torch.randn(len(rows), UNITS, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(sparse_input.product(features, weight), dense @ weight)
    found = sparse_input.gradient(features, arriving)
    occurring = sorted({column for row in rows for column in row})
    assert found.rows.tolist() == occurring
    whole = torch.zeros(INPUTS, UNITS, dtype=torch.float64)
    whole[found.rows] = found.values
    torch.testing.assert_close(whole, dense.t() @ arriving)


@settings(deadline=None)
@given(rows=ROWS, most=st.integers(1, 20))
def test_product_from_a_home_block_is_the_same(rows: list[dict[int, float]], most: int) -> None:
    features, dense = as_rows(rows), as_dense(rows)
    weight = torch.randn(UNITS, INPUTS, dtype=torch.float64)
    before = sparse_input.HOME_ENTRIES_AT_ONCE
    sparse_input.HOME_ENTRIES_AT_ONCE = most
    try:
        found = sparse_input.product_at_home(features, weight)
    finally:
        sparse_input.HOME_ENTRIES_AT_ONCE = before
    torch.testing.assert_close(found, dense @ weight.t())


def test_rows_without_values_count_one_each() -> None:
    sets = SparseRows(torch.tensor([0, 2, 2]), torch.tensor([1, 4]), None, INPUTS)
    weight = torch.randn(INPUTS, UNITS)
    expected = torch.stack([weight[1] + weight[4], torch.zeros(UNITS)])
    torch.testing.assert_close(sparse_input.product(sets, weight), expected)


@pytest.mark.parametrize("kind", ["sgd", "adam", "rowwise_adagrad"])
def test_a_step_takes_memory_for_the_features_that_occur(kind: str) -> None:
    """Forward, gradient and update: nothing as long as the input is made."""
    inputs, units, rows, entries = 200_000, 4, 16, 5
    model = MultiLayerPerceptron(inputs, [units], 7, output_norm=False, loss="softmax", sparse=True)
    rule = optimizer.build(OptimizerConfig(kind=kind))
    weights = {spec.key: torch.rand(spec.subnet_shape(0, 1)) for spec in model.specs}
    slots = {
        spec.key: {
            slot: optimizer.as_broadcast(
                torch.zeros(rule.slot_spec(slot, spec).subnet_shape(0, 1)),
                rule.slot_spec(slot, spec),
                spec,
            )
            for slot in rule.slot_names(spec.has_two_axes)
        }
        for spec in model.specs
    }
    before = weights["fc1.weight"].clone()
    columns = torch.randint(inputs, (rows * entries,)).view(rows, entries).sort(1).values
    offsets = torch.arange(0, rows * entries + 1, entries)
    features = SparseRows(offsets, columns.view(-1), torch.ones(rows * entries), inputs)
    with LiveBytes() as live:
        _, gradients = model.loss_and_gradients(
            weights, features, torch.randint(7, (rows,)), LocalStep()
        )
        for key, weight in weights.items():
            rule.step(weight, gradients[key], slots[key], 0.1, 0)
    held = sum(tensor.nbytes for tensor in weights.values())
    held += sum(slot.nbytes for of_weight in slots.values() for slot in of_weight.values())
    assert live.most < held + 100_000  # views of what is held count, too
    changed = (weights["fc1.weight"] != before).any(1).nonzero().view(-1)
    assert set(changed.tolist()) == set(columns.view(-1).tolist())


def some_rows(rows: int, entries: int, inputs: int) -> SparseRows:
    columns = torch.stack([torch.randperm(inputs)[:entries].sort().values for _ in range(rows)])
    offsets = torch.arange(0, rows * entries + 1, entries)
    return SparseRows(offsets, columns.view(-1), torch.ones(rows * entries), inputs)


def test_a_step_takes_the_memory_an_entry_that_is_said() -> None:
    """Of one unit, where nothing but the entries matters. The gradient, counted apart, is in it."""
    features = some_rows(64, 300, 50_000)
    weight = torch.rand(50_000, 1)
    with LiveBytes() as live:
        for tensor in (features.offsets, features.columns, features.values, weight):
            assert tensor is not None
            tensor.detach()
        product = sparse_input.product(features, weight)
        sparse_input.gradient(features, product)
    said = 4 * sparse_input.STEP_NUMBERS * 64 * 300
    assert said < live.most - weight.nbytes < 1.5 * said


@pytest.mark.parametrize("most", [1 << 15, 500])
def test_a_home_block_takes_the_memory_that_is_said(
    monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(sparse_input, "HOME_ENTRIES_AT_ONCE", most)
    features, weight = some_rows(30, 50, 100_000), torch.rand(200, 100_000)
    with LiveBytes() as live:
        weight.detach()
        result = sparse_input.product_at_home(features, weight)
    said = sparse_input.home_bytes(30, 50.0, (200, 100_000))
    assert 0.9 < (live.most - weight.nbytes - result.nbytes) / said < 1.1

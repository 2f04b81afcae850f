"""The output layer in blocks of labels against the plain formula, in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ist_hpc.data.sparse_rows import SparseRows
from ist_hpc.models.gradients import ColumnGradient
from ist_hpc.models.perceptrons.many_labels import LabelLoss, binary, softmax, step_numbers
from tests.helpers.live_bytes import LiveBytes

LABELS = 23


@st.composite
def label_sets(draw: st.DrawFn) -> list[list[int]]:
    """Some rows with labels, some without."""
    one_row = st.lists(st.integers(0, LABELS - 1), max_size=5, unique=True).map(sorted)
    return draw(st.lists(one_row, min_size=1, max_size=9))


def as_rows(sets: list[list[int]]) -> SparseRows:
    counts = torch.tensor([0, *(len(labels) for labels in sets)])
    columns = torch.tensor([label for labels in sets for label in labels], dtype=torch.int64)
    return SparseRows(counts.cumsum(0), columns, None, LABELS)


def dense(labels: SparseRows) -> Tensor:
    targets = torch.zeros(len(labels), LABELS, dtype=torch.float64)
    targets[labels.row_of_entry, labels.columns] = 1.0
    return targets


def plain_softmax(logits: Tensor, targets: Tensor) -> Tensor:
    counts = targets.sum(1, keepdim=True)
    spread = targets / counts.clamp(min=1)
    return -(spread * F.log_softmax(logits, dim=1)).sum() / len(logits)


def plain_binary(logits: Tensor, targets: Tensor) -> Tensor:
    total = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    return total / len(logits)


KINDS = {"softmax": (softmax, plain_softmax), "bce": (binary, plain_binary)}


def network(rows: int, units: int, biased: bool, scale: float) -> list[Tensor]:
    generator = torch.Generator().manual_seed(rows + 100 * units)
    shapes = [(rows, units), (units, LABELS), *([(LABELS,)] if biased else [])]
    return [
        scale * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes
    ]


def in_blocks(kind: str, tensors: list[Tensor], labels: SparseRows, block: int) -> LabelLoss:
    hidden, weight, *rest = tensors
    bias, room = rest[0] if rest else None, torch.full_like(weight, torch.nan).view(-1)
    return KINDS[kind][0](hidden, weight, bias, labels, block, room)


def whole(gradient: ColumnGradient) -> Tensor:
    return torch.cat([values for _, values in gradient.blocks], dim=1)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(
    sets=label_sets(),
    units=st.integers(1, 8),
    block=st.integers(1, LABELS + 3),
    biased=st.booleans(),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
)
def test_loss_and_gradients_are_those_of_the_plain_formula(
    kind: str, sets: list[list[int]], units: int, block: int, biased: bool, scale: float
) -> None:
    labels = as_rows(sets)
    tensors = network(len(sets), units, biased, scale)
    found = in_blocks(kind, tensors, labels, block)
    leaves = [tensor.clone().requires_grad_(True) for tensor in tensors]
    logits = leaves[0] @ leaves[1] + (leaves[2] if biased else 0.0)
    loss = KINDS[kind][1](logits, dense(labels))
    gradients = torch.autograd.grad(loss, leaves)
    close = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(found.loss, loss.detach(), **close)
    torch.testing.assert_close(found.hidden_gradient, gradients[0], **close)
    torch.testing.assert_close(whole(found.weight_gradient), gradients[1], **close)
    assert (found.bias_gradient is None) == (not biased)
    if found.bias_gradient is not None:
        torch.testing.assert_close(found.bias_gradient, gradients[2], **close)


@pytest.mark.parametrize("kind", KINDS)
def test_very_large_logits_do_not_overflow(kind: str) -> None:
    hidden = torch.full((2, 1), 100.0)
    weight = torch.linspace(-20.0, 20.0, LABELS).unsqueeze(0)
    found = in_blocks(kind, [hidden, weight], as_rows([[0], [LABELS - 1]]), 5)
    for tensor in (found.loss, found.hidden_gradient, whole(found.weight_gradient)):
        assert torch.isfinite(tensor).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_holds_one_block_beside_the_weights_and_their_gradient(kind: str) -> None:
    rows, units, labels, block = 32, 16, 50_000, 1_000
    hidden, weight = torch.randn(rows, units), torch.randn(units, labels)
    sets = SparseRows(torch.arange(rows + 1), torch.arange(rows), None, labels)
    with LiveBytes() as live:
        KINDS[kind][0](hidden, weight, None, sets, block, torch.empty(weight.numel()))
    made = live.most - weight.nbytes  # views of it count, too
    gradient, one_block = weight.nbytes, 4 * rows * block
    # Beside them: sums of each block, and softplus makes a block of its own.
    assert gradient + one_block <= made < gradient + 2.5 * one_block
    said = 4 * rows * step_numbers(labels, block)
    assert 0.5 * said < made - gradient < 1.1 * said

"""Sampled softmax against the full one: the same sum on average, and the same gradients."""

import itertools
import math

import numpy as np
import pytest
import torch

from ist_hpc.data.sparse_rows import SparseRows
from ist_hpc.models.perceptrons.sampled_labels import Sampling, sampled_softmax, trained_labels

ROWS = [{0}, {0, 2}, {2, 3}, {1}, {4}]
"""Training rows by their labels, of which a batch's rows are drawn independently."""


def sets_of(rows, labels: int) -> SparseRows:
    offsets = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)
    columns = torch.tensor([label for row in rows for label in sorted(row)], dtype=torch.int64)
    return SparseRows(offsets, columns, None, labels)


def frequencies(labels: int) -> torch.Tensor:
    count = [sum(label in row for row in ROWS) for label in range(labels)]
    return torch.tensor(count, dtype=torch.float64) / len(ROWS)


@pytest.mark.parametrize(("negatives", "batch_rows"), [(1, 1), (1, 2), (2, 3), (3, 2)])
def test_the_expected_sum_over_a_step_is_the_sum_over_all_labels(negatives, batch_rows):
    """Over every draw and every choice of the batch's other rows, in float64."""
    labels, own = 6, {0, 2}
    torch.manual_seed(2)
    logits = torch.randn(labels, dtype=torch.float64)
    sampling = Sampling(labels, negatives, frequencies(labels))
    draws = list(itertools.product(range(labels), repeat=negatives))
    others = list(itertools.product(ROWS, repeat=batch_rows - 1))
    total, log_total = 0.0, 0.0
    for drawn, rest in itertools.product(draws, others):
        trained = trained_labels(sets_of([own, *rest], labels), torch.tensor(drawn))
        chances = sampling.log_chances(trained, batch_rows)
        adjusted = [
            logits[label] if label in own else logits[label] - chance
            for label, chance in zip(trained.tolist(), chances, strict=True)
        ]
        part = float(torch.stack(adjusted).exp().sum())
        total += part / (len(draws) * len(others))
        log_total += math.log(part) / (len(draws) * len(others))
    assert total == pytest.approx(float(logits.exp().sum()), rel=1e-12)
    assert log_total < float(torch.logsumexp(logits, 0))


def test_the_bias_of_the_log_falls_with_the_labels_drawn():
    labels, tries = 2000, 400
    torch.manual_seed(3)
    logits = torch.randn(labels, dtype=torch.float64)
    exact = float(torch.logsumexp(logits, 0))
    biases = []
    for negatives in (20, 80, 320):
        sampling = Sampling(labels, negatives, torch.zeros(labels))
        found = []
        for step in range(tries):
            trained = torch.from_numpy(np.unique(sampling.drawn(1, step)))
            adjusted = logits[trained] - sampling.log_chances(trained, rows=1)
            found.append(float(torch.logsumexp(adjusted, 0)))
        biases.append(exact - np.mean(found))
    # The variance of the sum over its square, by half: e - 1 for normal logits, over 2 K.
    expected = [(math.e - 1) / (2 * negatives) for negatives in (20, 80, 320)]
    assert biases == pytest.approx(expected, rel=0.5, abs=2e-3)
    assert biases[0] > biases[1] > biases[2]


def test_with_every_label_in_the_step_it_is_the_softmax_of_all():
    labels, units = 7, 5
    torch.manual_seed(4)
    rows = [{1, 4}, set(), {6}]
    hidden = torch.randn(len(rows), units, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(labels, units, dtype=torch.float64, requires_grad=True)
    everything = torch.arange(labels)
    found = sampled_softmax(
        *(hidden.detach(), weight.detach(), sets_of(rows, labels)),
        *(everything, everything, torch.zeros(labels)),
    )
    log_softmax = torch.log_softmax(hidden @ weight.t(), 1)
    of_rows = [-log_softmax[i, sorted(row)].mean() for i, row in enumerate(rows) if row]
    loss = torch.stack(of_rows).sum() / len(rows)
    loss.backward()
    torch.testing.assert_close(found.loss, loss.detach())
    torch.testing.assert_close(found.hidden_gradient, hidden.grad)
    torch.testing.assert_close(found.weight_gradient.values, weight.grad)


def test_gradients_are_those_of_the_corrected_loss_and_touch_the_steps_labels_only():
    labels, units = 50, 6
    torch.manual_seed(5)
    rows = [{3, 7}, {7}, {40}]
    own = sets_of(rows, labels)
    sampling = Sampling(labels, 8, torch.rand(labels) / 4)
    trained = trained_labels(own, torch.from_numpy(sampling.drawn(9, 2)))
    chances = sampling.log_chances(trained, len(rows))
    hidden = torch.randn(len(rows), units, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(labels, units, dtype=torch.float64, requires_grad=True)
    found = sampled_softmax(hidden.detach(), weight.detach(), own, trained, trained, chances)
    logits = hidden @ weight[trained].t()
    loss = torch.zeros((), dtype=torch.float64)
    for i, row in enumerate(rows):
        is_own = torch.tensor([label in row for label in trained.tolist()])
        adjusted = torch.where(is_own, logits[i], logits[i] - chances)
        loss -= torch.log_softmax(adjusted, 0)[is_own].mean() / len(rows)
    loss.backward()
    torch.testing.assert_close(found.loss, loss.detach())
    torch.testing.assert_close(found.hidden_gradient, hidden.grad)
    assert torch.equal(found.weight_gradient.rows, trained)
    torch.testing.assert_close(found.weight_gradient.values, weight.grad[trained])
    others = [label for label in range(labels) if label not in trained.tolist()]
    assert not weight.grad[others].any()


def test_a_draw_depends_on_seed_and_step_alone_and_is_even():
    sampling = Sampling(10, 20_000)
    drawn = sampling.drawn(seed=3, step=7)
    assert np.array_equal(drawn, Sampling(10, 20_000).drawn(seed=3, step=7))
    assert not np.array_equal(drawn, sampling.drawn(seed=3, step=8))
    assert not np.array_equal(drawn, sampling.drawn(seed=4, step=7))
    counts = np.bincount(drawn, minlength=10)
    assert counts.sum() == 20_000
    assert abs(counts - 2000).max() < 5 * math.sqrt(2000)


def test_draws_are_the_same_for_ever():
    drawn = Sampling(670_091, 5).drawn(seed=0, step=0)
    assert drawn.tolist() == [
        240416,
        311859,
        488047,
        283229,
        625960,
    ]


@pytest.mark.parametrize("rows", [1, 128])
def test_a_label_of_every_row_is_trained_for_certain_in_a_batch_of_several(rows):
    sampling = Sampling(100, 10, torch.tensor([1.0, 0.0]))
    certain, drawn = sampling.log_chances(torch.tensor([0, 1]), rows).exp().tolist()
    by_draw = 1 - (1 - 1 / 100) ** 10
    assert drawn == pytest.approx(by_draw)
    assert certain == pytest.approx(by_draw if rows == 1 else 1.0)

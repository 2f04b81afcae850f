"""Metrics of classes, added up over batches."""

import math

import pytest
import torch

from ist_hpc.training.evaluation.metrics import ClassificationMetrics


def test_accuracy_and_loss_are_means_over_all_rows():
    """Batches of different sizes; the loss of a row is log(1 + e^-1) or 1 more."""
    metrics = ClassificationMetrics()
    metrics.add(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 1, 1]))
    metrics.add(torch.tensor([[3.0, 2.0]]), torch.tensor([0]))
    result = metrics.result()
    assert result["accuracy"] == 3 / 4
    assert result["loss"] == pytest.approx(math.log1p(math.exp(-1)) + 1 / 4, rel=1e-12)


def test_the_main_metric_is_a_result():
    metrics = ClassificationMetrics()
    metrics.add(torch.zeros(1, 3), torch.tensor([0]))
    assert metrics.main == "accuracy"
    assert metrics.result()[metrics.main] == 1.0

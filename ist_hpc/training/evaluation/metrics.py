"""Metrics of predictions."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class ClassificationMetrics:
    """Accuracy and mean cross-entropy, added up over batches.

    main  the metric that logs show and whose best value is kept
    """

    main: ClassVar[str] = "accuracy"

    rows: int = 0
    correct: int = 0
    loss_sum: float = 0.0

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits float32 [rows, classes], labels int64 [rows]."""
        self.rows += len(labels)
        self.correct += int((logits.argmax(dim=1) == labels).sum())
        losses = F.cross_entropy(logits.to(torch.float64), labels, reduction="sum")
        self.loss_sum += float(losses)

    def result(self) -> dict[str, float]:
        """`accuracy` (as a fraction of 1) and `loss` (nats)."""
        return {"accuracy": self.correct / self.rows, "loss": self.loss_sum / self.rows}

"""The output layer over many labels, of which a step trains few: sampled softmax.

The labels of a step are those of the batch's rows, and some that are drawn. A row's own labels are
always among them; another label is there with a chance that is known, and its part of the softmax's
sum is divided by it, so that the sum is on average that of all labels. (docs/design.md derives it.)
"""

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ist_hpc.common import random_streams
from ist_hpc.data.sparse_rows import SparseRows
from ist_hpc.models.gradients import RowGradient
from ist_hpc.runtime.precision import low_type

_ROW_LABELS = 5  # of data that are not known


@dataclass(frozen=True, eq=False)
class Sampling:
    """How the labels of a step are drawn.

    labels       how many there are: L
    negatives    how many are drawn, uniformly and with replacement: K
    frequencies  the part of the training rows that has each label; float32 [labels]. None where
                 nothing is trained
    """

    labels: int
    negatives: int
    frequencies: Tensor | None = None
    _on: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False)

    def drawn(self, seed: int, step: int) -> npt.NDArray[np.int64]:
        """The labels that a step draws: a function of seed and step alone; int64 [negatives]."""
        words = random_streams.words("negatives", seed, step, self.negatives)
        # The high half of a word times the labels, over 2^32: even to within L / 2^32.
        return ((words >> np.uint64(32)) * np.uint64(self.labels) >> np.uint64(32)).astype(np.int64)

    def log_chances(self, labels: Tensor, rows: int) -> Tensor:
        """The log of each label's chance to be trained in a step, by a row that does not have it.

        1 - (1 - 1/L)^K (1 - f)^(B - 1): it is drawn, or one of the other rows of the batch has it,
        whose labels are as frequent as those of all training rows.

        labels  int64 [n]
        rows    of a batch: B
        Returns float64 [n].
        """
        frequency = self._frequencies_on(labels.device)[labels].double()
        others = torch.full_like(frequency, rows - 1)
        not_drawn = self.negatives * torch.log1p(torch.full_like(frequency, -1 / self.labels))
        absent = not_drawn + torch.special.xlog1py(others, -frequency)
        return torch.log(-torch.expm1(absent))

    def _frequencies_on(self, device: torch.device) -> Tensor:
        """The frequencies on a device, where they are copied once."""
        assert self.frequencies is not None, "made to be trained"
        if device not in self._on:
            self._on[device] = self.frequencies.to(device)
        return self._on[device]

    def expected_labels(self, rows: int, steps: int) -> float:
        """How many labels so many steps train together, on average, each with a batch of `rows`.

        Without frequencies as if rows had 5 labels, and all were equally frequent: then it is more.
        """
        if self.labels == 1:
            return 1.0
        frequency = self.frequencies
        if frequency is None:
            frequency = torch.tensor([min(1.0, _ROW_LABELS / self.labels)])
        not_drawn = self.negatives * steps * math.log1p(-1 / self.labels)
        absent = not_drawn + torch.special.xlog1py(float(rows * steps), -frequency.double())
        return float(-torch.expm1(absent).mean()) * self.labels


def step_numbers(labels: float, rows: int, units: int) -> float:
    """About the numbers that the loss holds: logits, one more of them, and the labels' weights."""
    return labels * (2 * rows + units)


@dataclass(frozen=True, eq=False)
class SampledLoss:
    """Mean loss of a batch and its gradients.

    loss             scalar
    hidden_gradient  [rows, units]
    weight_gradient  of the labels that the step trains
    """

    loss: Tensor
    hidden_gradient: Tensor
    weight_gradient: RowGradient


def trained_labels(labels: SparseRows, drawn: Tensor) -> Tensor:
    """The labels of a step: of the batch's rows, and drawn; ascending, each once; int64."""
    return torch.unique(torch.cat([labels.columns, drawn]))


def sampled_softmax(
    hidden: Tensor,
    weight: Tensor,
    labels: SparseRows,
    trained: Tensor,
    places: Tensor,
    log_chances: Tensor,
) -> SampledLoss:
    """Cross-entropy over a step's labels, the mass spread over a row's own; mean over rows.

    hidden       [rows, units]
    weight       [labels that are held, units]
    labels       the rows' own; a row with none has no loss and no gradient
    trained      of `trained_labels`; int64 [n]
    places       their rows in `weight`; int64 [n]
    log_chances  of `Sampling.log_chances`; [n]
    """
    rows, low = len(hidden), low_type(hidden.device)
    held = weight.index_select(0, places)
    entering = hidden
    if low is not None:
        entering, held = hidden.to(low), held.to(low)
    logits = (entering @ held.t()).to(hidden.dtype)
    own_rows, own_places = labels.row_of_entry, torch.searchsorted(trained, labels.columns)
    own = logits[own_rows, own_places]
    logits -= log_chances.to(logits.dtype)
    logits[own_rows, own_places] = own  # its own labels are trained for certain
    log_sums = torch.logsumexp(logits, 1)
    # A row's label mass is one, or nothing: without labels it has no loss.
    mass = (labels.counts > 0).to(hidden.dtype)
    share = (mass / labels.counts.clamp(min=1))[own_rows]
    loss = ((mass * log_sums).sum() - (share * own).sum()) / rows
    residual = logits.sub_(log_sums.unsqueeze(1)).exp_().mul_((mass / rows).unsqueeze(1))
    residual[own_rows, own_places] -= share / rows
    if low is not None:
        residual = residual.to(low)
    hidden_gradient = (residual @ held).to(hidden.dtype)
    weight_gradient = (residual.t() @ entering).to(hidden.dtype)
    return SampledLoss(loss, hidden_gradient, RowGradient(places, weight_gradient))

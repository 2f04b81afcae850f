"""The output layer over many labels with its loss and gradient, computed in blocks of labels.

The logits of all labels are never held: a step has the weight [units, labels], its gradient and
one block [rows, block]. The softmax needs the sum over all labels before the first gradient. So its
first pass leaves the exponentials of a block where the gradient of the block will be written. That
memory has room for as many rows as the rank has units; the logits of further rows are computed
twice. The gradient of a block is written after its exponentials have been used.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ist_hpc.common.sizes import ELEMENT_BYTES
from ist_hpc.data.sparse_rows import SparseRows
from ist_hpc.models.gradients import ColumnGradient
from ist_hpc.runtime.precision import low_type

_BLOCKS_OF_RANKED = 4


@dataclass(frozen=True, eq=False)
class LabelLoss:
    """Mean loss of a batch and its gradients.

    loss             scalar
    hidden_gradient  [rows, units]
    weight_gradient  [units, labels], in blocks of labels
    bias_gradient    [labels], or None without a bias
    """

    loss: Tensor
    hidden_gradient: Tensor
    weight_gradient: ColumnGradient
    bias_gradient: Tensor | None


def softmax(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: SparseRows,
    block: int,
    room: Tensor,
) -> LabelLoss:
    """Cross-entropy with the label mass spread evenly over a row's labels; mean over rows.

    hidden    [rows, units]
    weight    [units, labels]
    labels    sets of labels; a row without labels has no loss and no gradient
    block     labels computed at a time
    room      flat, as large as the weight; the gradient of the weight will lie there
    """
    return _Softmax(hidden, weight, bias, labels, block, room).compute()


def binary(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: SparseRows,
    block: int,
    room: Tensor,
) -> LabelLoss:
    """Binary cross-entropy, summed over all labels, mean over rows; arguments as for `softmax`."""
    rows = len(hidden)
    hidden_gradient = torch.zeros_like(hidden)
    bias_gradient = None if bias is None else torch.empty_like(bias)
    total = hidden.new_zeros(())
    buffer = hidden.new_empty(rows, min(block, weight.shape[1]))
    products = _Products(hidden, weight, bias)
    parts = list(_parts(labels, weight.shape[1], block))
    blocks = _blocks(parts, room, weight)
    for part, (_, gradient) in zip(parts, blocks, strict=True):
        logits = products.logits(slice(None), part.columns, buffer[:, : part.width])
        total += F.softplus(logits).sum() - logits[part.rows, part.places].sum()
        residual = logits.sigmoid_()
        residual[part.rows, part.places] -= 1.0
        residual.div_(rows)
        products.accumulate(residual, part.columns, hidden_gradient, gradient)
        if bias_gradient is not None:
            torch.sum(residual, 0, out=bias_gradient[part.columns])
    return LabelLoss(total / rows, hidden_gradient, ColumnGradient(blocks), bias_gradient)


def step_numbers(labels: int, block: int) -> int:
    """Approximate numbers per row that each loss holds: two blocks, and sums of every block."""
    return 2 * min(block, labels) + 5 * -(-labels // block)


def ranked_bytes(rows: int, labels: int, block: int) -> int:
    """Approximate bytes to find the best of a rank's labels, a block of logits at a time.

    The block, and the temporaries of finding the largest in it.
    """
    return _BLOCKS_OF_RANKED * rows * min(block, labels) * ELEMENT_BYTES


@dataclass(frozen=True, eq=False)
class _Part:
    """One block of labels, and the labels of the batch in it.

    rows, places, entries  of each: its row, its column in the block, its place in the batch's sets
    """

    columns: slice
    rows: Tensor
    places: Tensor
    entries: Tensor

    @property
    def width(self) -> int:
        return int(self.columns.stop - self.columns.start)


def _parts(labels: SparseRows, count: int, block: int) -> Iterator[_Part]:
    order = torch.argsort(labels.columns, stable=True)
    columns, rows = labels.columns[order], labels.row_of_entry[order]
    starts = torch.arange(0, count + block, block)
    bounds = torch.searchsorted(columns, starts.to(columns.device)).tolist()
    for index, start in enumerate(range(0, count, block)):
        stop = min(start + block, count)
        chosen = slice(bounds[index], bounds[index + 1])
        places = columns[chosen] - start
        yield _Part(slice(start, stop), rows[chosen], places, order[chosen])


def _blocks(
    parts: Sequence[_Part], room: Tensor, weight: Tensor
) -> tuple[tuple[slice, Tensor], ...]:
    """The gradient's blocks in `room`, one after the other."""
    units = len(weight)
    return tuple(
        (
            part.columns,
            room[units * part.columns.start : units * part.columns.stop].view(units, part.width),
        )
        for part in parts
    )


class _Softmax:
    """The two passes of `softmax`, with its arguments."""

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: SparseRows,
        block: int,
        room: Tensor,
    ) -> None:
        self.hidden, self.weight, self.bias, self.labels = hidden, weight, bias, labels
        self.products = _Products(hidden, weight, bias)
        self.parts = list(_parts(labels, weight.shape[1], block))
        rows, units = hidden.shape
        self.kept = min(rows, units)
        self.blocks = _blocks(self.parts, room, weight)
        self.buffer = hidden.new_empty(rows, min(block, weight.shape[1]))

    def compute(self) -> LabelLoss:
        """Both passes."""
        hidden, labels, rows = self.hidden, self.labels, len(self.hidden)
        counts = labels.counts
        largest, sums = self._first_pass()
        log_sums = torch.logsumexp(largest + sums.log(), 0)
        # A row's label mass is one, or zero: without labels it has no loss.
        mass = (counts > 0).to(hidden.dtype)
        share = mass / counts.clamp(min=1)
        of_labels = share[labels.row_of_entry]
        loss = (mass * log_sums).sum() - (of_labels * self._logits_of_labels()).sum()
        factors = (largest - log_sums).exp_().mul_(mass / rows)
        hidden_gradient, bias_gradient = self._second_pass(factors, log_sums, mass, of_labels)
        gradient = ColumnGradient(self.blocks)
        return LabelLoss(loss / rows, hidden_gradient, gradient, bias_gradient)

    def _logits_of_labels(self) -> Tensor:
        """The logit of each label of the batch's sets; [entries]."""
        rows, columns = self.labels.row_of_entry, self.labels.columns
        logits = (self.hidden[rows] * self.weight[:, columns].t()).sum(1)
        return logits if self.bias is None else logits + self.bias[columns]

    def _first_pass(self) -> tuple[Tensor, Tensor]:
        """(largest logit, sum of exponentials relative to it) of each block and row.

        Leaves the exponentials of the first `kept` rows in the memory of the gradient.
        """
        hidden, kept = self.hidden, self.kept
        largest = hidden.new_empty(len(self.parts), len(hidden))
        sums = torch.empty_like(largest)
        for index, part in enumerate(self.parts):
            held = self.blocks[index][1][:kept]
            again = self.buffer[kept:, : part.width]
            for rows, logits in ((slice(0, kept), held), (slice(kept, None), again)):
                if len(logits):
                    self.products.logits(rows, part.columns, logits)
                    torch.amax(logits, 1, out=largest[index, rows])
                    logits.sub_(largest[index, rows].unsqueeze(1)).exp_()
                    torch.sum(logits, 1, out=sums[index, rows])
        return largest, sums

    def _second_pass(
        self, factors: Tensor, log_sums: Tensor, mass: Tensor, of_labels: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Fill the gradient of the weight; return those of the hidden units and the bias."""
        hidden, kept, rows = self.hidden, self.kept, len(self.hidden)
        hidden_gradient = torch.zeros_like(hidden)
        bias_gradient = None if self.bias is None else torch.empty_like(self.bias)
        scale = (mass[kept:] / rows).unsqueeze(1)
        for index, part in enumerate(self.parts):
            residual = self.buffer[:, : part.width]
            columns, gradient = self.blocks[index]
            torch.mul(gradient[:kept], factors[index, :kept].unsqueeze(1), out=residual[:kept])
            if kept < rows:
                again = residual[kept:]
                self.products.logits(slice(kept, None), part.columns, again)
                again.sub_(log_sums[kept:].unsqueeze(1)).exp_().mul_(scale)
            residual[part.rows, part.places] -= of_labels[part.entries] / rows
            self.products.accumulate(residual, columns, hidden_gradient, gradient)
            if bias_gradient is not None:
                torch.sum(residual, 0, out=bias_gradient[columns])
        return hidden_gradient, bias_gradient


class _Products:
    """The products of the layer, block by block; under autocast with numbers of its type.

    A block of the weight is cast as it is used: the copy stays in the cache, and no copy of the
    whole weight exists. Results are float32.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        self._low = low_type(hidden.device)
        self._hidden = hidden if self._low is None else hidden.to(self._low)
        self._weight, self._bias = weight, bias

    def logits(self, rows: slice, columns: slice, out: Tensor) -> Tensor:
        """Logits of some rows and a block of labels, in `out`."""
        if self._low is None:
            torch.mm(self._hidden[rows], self._weight[:, columns], out=out)
        else:
            out.copy_(self._hidden[rows] @ self._weight[:, columns].to(self._low))
        return out if self._bias is None else out.add_(self._bias[columns])

    def accumulate(
        self, residual: Tensor, columns: slice, hidden_gradient: Tensor, weight_gradient: Tensor
    ) -> None:
        """Add a block to the gradient of the hidden units; write the gradient of its weights."""
        weight = self._weight[:, columns]
        if self._low is None:
            hidden_gradient.addmm_(residual, weight.t())
            torch.mm(self._hidden.t(), residual, out=weight_gradient)
        else:
            low = residual.to(self._low)
            hidden_gradient.add_(low @ weight.to(self._low).t())
            weight_gradient.copy_(self._hidden.t() @ low)

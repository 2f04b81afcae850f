"""Optimisers whose state is dealt out with the weights.

The arithmetic is PyTorch's, operation by operation, so that one rank produces the bits of a plain
PyTorch loop. In addition the state travels: a slot is a partitioned tensor like its weight.
Adam needs to know how often an element was updated. Elements of an input or output layer are
trained in every round, so one number serves a whole tensor; an element of a middle layer is trained
only in the rounds that deal its row and its column to one rank, so there the count is a slot.

If a step uses few rows of a weight (sparse input), it touches only these and their slots, as in
`torch.optim.SparseAdam`: a row that does not occur keeps its momentum and its moments, and the step
count is still that of the weight.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ist_hpc.common.sizes import ELEMENT_BYTES
from ist_hpc.config.keys import OptimizerConfig
from ist_hpc.exchange.placement import TensorSpec
from ist_hpc.models.gradients import ColumnGradient, RowGradient
from ist_hpc.models.shapes import SharedSpec

_SLAB_ELEMENTS = 1 << 20  # elements of a weight updated at a time, but at least one row

Slots = dict[str, Tensor]
"""A weight's slots on this rank, by slot name, in a shape that broadcasts to the weight."""


class Optimizer(ABC):
    """Updates the weights of a thin network in place.

    A step count `trained` is the number of earlier steps of the run (of the round under
    `optimizer.state: reset`): the count of every element except those of middle layers.
    """

    scratch_bytes: tuple[int, int]
    """Temporaries of `update` in bytes per element: if one count of updates serves the tensor, and
    if every element has its own."""

    def __init__(self, config: OptimizerConfig) -> None:
        self.config = config

    @abstractmethod
    def slot_names(self, has_two_axes: bool) -> tuple[str, ...]:
        """Names of the slots of a weight."""

    def slot_spec(self, slot: str, spec: TensorSpec) -> TensorSpec:
        """A slot of a weight as a partitioned tensor, keyed `slot/weight`."""
        return replace(spec, key=slot_key(slot, spec.key))

    @abstractmethod
    def update(
        self, weight: Tensor, gradient: Tensor, slots: Slots, lr: float, trained: int
    ) -> None:
        """One step of a weight, or of part of its rows, in place."""

    def step(
        self,
        weight: Tensor,
        gradient: Tensor | RowGradient | ColumnGradient,
        slots: Slots,
        lr: float,
        trained: int,
    ) -> None:
        """One step of a weight, in place; slab by slab, so that temporaries stay small."""
        if isinstance(gradient, RowGradient):
            self._step_rows(weight, gradient, slots, lr, trained)
            return
        if isinstance(gradient, ColumnGradient):
            self._step_columns(weight, gradient, slots, lr, trained)
            return
        for rows in _slabs(weight):
            of_rows = {name: slot[rows] for name, slot in slots.items()}
            self.update(weight[rows], gradient[rows], of_rows, lr, trained)

    def _step_rows(
        self, weight: Tensor, gradient: RowGradient, slots: Slots, lr: float, trained: int
    ) -> None:
        rows = gradient.rows
        by_row = {name: slot for name, slot in slots.items() if len(slot) == len(weight)}
        gathered = {name: slot.index_select(0, rows) for name, slot in by_row.items()}
        updated = weight.index_select(0, rows)
        self.update(updated, gradient.values, slots | gathered, lr, trained)
        weight.index_copy_(0, rows, updated)
        for name, slot in by_row.items():
            slot.index_copy_(0, rows, gathered[name])

    def _step_columns(
        self, weight: Tensor, gradient: ColumnGradient, slots: Slots, lr: float, trained: int
    ) -> None:
        for columns, values in gradient.blocks:
            of_columns = {name: slot[:, columns] for name, slot in slots.items()}
            self.update(weight[:, columns], values, of_columns, lr, trained)

    def update_bytes(self, spec: TensorSpec, ranks: int) -> int:
        """Bytes of temporaries of `step` on rank 0 of `ranks`, with a weight's whole gradient.

        A single rank, like one that has the whole model, needs no count for each element.
        """
        shape = spec.subnet_shape(0, ranks)
        slab = min(math.prod(shape), max(_SLAB_ELEMENTS, math.prod(shape[1:])))
        return slab * self.scratch_bytes[spec.has_two_axes and ranks > 1]

    def row_update_bytes(self, spec: TensorSpec, elements: int) -> int:
        """Bytes of temporaries of `step` with a `RowGradient` of `elements`, all at once.

        They include the gathered rows of the weight and of its slots.
        """
        slots = [self.slot_spec(slot, spec) for slot in self.slot_names(spec.has_two_axes)]
        gathered = 1 + sum(slot.shape == spec.shape for slot in slots)
        return elements * (gathered * ELEMENT_BYTES + self.scratch_bytes[0])

    def slot_specs(self, specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        """The slots of all weights as partitioned tensors."""
        return tuple(
            self.slot_spec(slot, spec)
            for spec in specs
            for slot in self.slot_names(spec.has_two_axes)
        )

    def shared_slot_specs(self, specs: Sequence[SharedSpec]) -> tuple[SharedSpec, ...]:
        """The slots of the shared weights."""
        return tuple(
            SharedSpec(slot_key(slot, spec.key), spec.shape)
            for spec in specs
            if spec.trained
            for slot in self.slot_names(has_two_axes=False)
        )


def slot_key(slot: str, weight_key: str) -> str:
    """The key of a slot of a weight."""
    return f"{slot}/{weight_key}"


def as_broadcast(slot: Tensor, slot_spec: TensorSpec, spec: TensorSpec) -> Tensor:
    """A slot as stored, viewed so that it broadcasts to its weight as stored.

    A slot with one value per unit has one dimension, which becomes the dimension of the units.
    """
    if len(slot_spec.shape) == len(spec.shape):
        return slot
    axes = list(spec.axes)
    if spec.transposed:
        axes[0], axes[1] = axes[1], axes[0]
    return slot.view([-1 if axis == slot_spec.axes[0] else 1 for axis in axes])


def _slabs(weight: Tensor) -> Iterator[slice]:
    """Rows of a weight in runs of about `_SLAB_ELEMENTS`, at least one row."""
    rows = max(1, _SLAB_ELEMENTS * len(weight) // max(1, weight.numel()))
    if rows >= len(weight):
        yield slice(None)
        return
    for start in range(0, len(weight), rows):
        yield slice(start, start + rows)


class SGD(Optimizer):
    """Stochastic gradient descent, plain or with momentum, as in `torch.optim.SGD`."""

    scratch_bytes = (0, 0)

    def slot_names(self, has_two_axes: bool) -> tuple[str, ...]:
        """One slot, `momentum`, if there is momentum."""
        return ("momentum",) if self.config.momentum else ()

    def update(
        self, weight: Tensor, gradient: Tensor, slots: Slots, lr: float, trained: int
    ) -> None:
        """`weight -= lr * (gradient + decay * weight)`, or the momentum of these."""
        direction = gradient
        if self.config.weight_decay:
            direction = gradient.add(weight, alpha=self.config.weight_decay)
        if self.config.momentum:
            direction = slots["momentum"].mul_(self.config.momentum).add_(direction)
        weight.add_(direction, alpha=-lr)


class Adam(Optimizer):
    """Adam as in `torch.optim.Adam`, with a bias correction by each element's own count."""

    # A root and a quotient; with own counts also an index (int64), and the factor it selects.
    scratch_bytes = (8, 20)

    def slot_names(self, has_two_axes: bool) -> tuple[str, ...]:
        """First and second moments; for middle layers also the count of updates."""
        names = ("exp_avg", "exp_avg_sq")
        return (*names, "updates") if has_two_axes else names

    def update(
        self, weight: Tensor, gradient: Tensor, slots: Slots, lr: float, trained: int
    ) -> None:
        """One step of Adam, counted in `slots["updates"]` if that exists.

        Counts are float32: exact to 2^24 updates, where they stop growing. Both corrections are one
        long before.
        """
        beta1, beta2 = self.config.betas
        first = slots["exp_avg"].lerp_(gradient, 1 - beta1)
        second = slots["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        updates = slots.get("updates")
        if updates is None:
            step_size, root = _corrections(trained + 1, lr, beta1, beta2)
            denominator = (second.sqrt() / root).add_(self.config.eps)
            weight.addcdiv_(first, denominator, value=-step_size)
            return
        updates.add_(1)
        lowest, highest = (int(bound) for bound in torch.aminmax(updates))
        if lowest == highest:
            step_size, root = _corrections(lowest, lr, beta1, beta2)
            denominator = (second.sqrt() / root).add_(self.config.eps)
            weight.addcdiv_(first, denominator, value=-step_size)
            return
        # The two factors depend only on the count: compute them once for each count that occurs.
        table = [_corrections(count, lr, beta1, beta2) for count in range(lowest, highest + 1)]
        index = (updates - lowest).to(torch.int64)
        step_sizes = weight.new_tensor([-entry[0] for entry in table])
        roots = weight.new_tensor([entry[1] for entry in table])
        denominator = (second.sqrt() / roots[index]).add_(self.config.eps)
        weight.add_(step_sizes[index].mul_(first).div_(denominator))


class Adagrad(Optimizer):
    """Adagrad as in `torch.optim.Adagrad`: one sum of squares per element."""

    scratch_bytes = (4, 4)

    def slot_names(self, has_two_axes: bool) -> tuple[str, ...]:
        """One slot, `squares`."""
        return ("squares",)

    def update(
        self, weight: Tensor, gradient: Tensor, slots: Slots, lr: float, trained: int
    ) -> None:
        """`weight -= lr * gradient / (sqrt(squares) + eps)`."""
        squares = slots["squares"].addcmul_(gradient, gradient, value=1.0)
        weight.addcdiv_(gradient, squares.sqrt().add_(self.config.eps), value=-lr)


class RowwiseAdagrad(Optimizer):
    """Adagrad with one number per dealt unit of a matrix: the sum of its gradient's mean squares.

    The mean is over the elements that a step updates: with sparse input, the features that occur.
    Of a middle layer the unit is the row. Of demanded rows, such as labels that are sampled, it is
    one number a row. Vectors have a number an element, as in Adagrad.
    """

    scratch_bytes = (0, 0)  # for a matrix; vectors are small

    def slot_names(self, has_two_axes: bool) -> tuple[str, ...]:
        """One slot, `squares`."""
        return ("squares",)

    def slot_spec(self, slot: str, spec: TensorSpec) -> TensorSpec:
        """Of a matrix: a vector over its dealt axis, or over its demanded rows."""
        key = slot_key(slot, spec.key)
        if spec.demanded is not None:
            rows = (spec.rows,), (None,)
            return TensorSpec(key, *rows, demanded=spec.demanded, mean_over=spec.column_axis)
        dealt = 0 if spec.row_axis is not None else 1
        return TensorSpec(key, (spec.shape[dealt],), (spec.axes[dealt],), least=spec.least)

    def update(
        self, weight: Tensor, gradient: Tensor, slots: Slots, lr: float, trained: int
    ) -> None:
        """`weight -= lr * gradient / (sqrt(squares of the unit) + eps)`."""
        squares = slots["squares"]
        if squares.shape == gradient.shape:
            squares.addcmul_(gradient, gradient, value=1.0)
        else:
            across = [d for d in range(gradient.dim()) if squares.shape[d] == 1]
            count = max(1, gradient.numel() // squares.numel())
            squares.add_(_sums_of_squares(gradient, across).div_(count))
        weight.addcmul_(gradient, self._factor(squares), value=-lr)

    def row_update_bytes(self, spec: TensorSpec, elements: int) -> int:
        """With the squares of a slab of rows, which are added up; see the base class."""
        squares = 0 if spec.demanded is not None else min(elements, _SLAB_ELEMENTS)
        return super().row_update_bytes(spec, elements) + squares * ELEMENT_BYTES

    def _step_columns(
        self, weight: Tensor, gradient: ColumnGradient, slots: Slots, lr: float, trained: int
    ) -> None:
        # A unit is a row here, so its number needs all blocks before the first is applied.
        squares = slots["squares"]
        total = torch.zeros_like(squares)
        for _, values in gradient.blocks:
            total += _sums_of_squares(values, [1])
        squares.add_(total.div_(weight.shape[1]))
        factor = self._factor(squares)
        for columns, values in gradient.blocks:
            weight[:, columns].addcmul_(values, factor, value=-lr)

    def _factor(self, squares: Tensor) -> Tensor:
        return squares.sqrt().add_(self.config.eps).reciprocal_()


def _sums_of_squares(gradient: Tensor, across: list[int]) -> Tensor:
    if across != [0]:
        return torch.linalg.vector_norm(gradient, dim=across, keepdim=True).square_()
    # Down the columns the norm takes four times as long.
    total = torch.zeros_like(gradient[:1])
    for rows in _slabs(gradient):
        total += gradient[rows].square().sum(0, keepdim=True)
    return total


def _corrections(count: int, lr: float, beta1: float, beta2: float) -> tuple[float, float]:
    """(step size, square root of the second correction) of the `count`-th update."""
    return lr / (1 - beta1**count), (1 - beta2**count) ** 0.5


_KINDS: Mapping[str, Callable[[OptimizerConfig], Optimizer]] = {
    "sgd": SGD,
    "adam": Adam,
    "adagrad": Adagrad,
    "rowwise_adagrad": RowwiseAdagrad,
}


def build(config: OptimizerConfig) -> Optimizer:
    """The optimiser that a configuration names."""
    return _KINDS[config.kind](config)


def learning_rate(config: OptimizerConfig, epoch: float) -> float:
    """The learning rate after `epoch` epochs: `lr` times `decay_factor` for each step passed."""
    passed = sum(epoch >= boundary for boundary in config.decay_epochs)
    return config.lr * config.decay_factor**passed

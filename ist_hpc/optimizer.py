"""Optimisers whose state is dealt out with the weights.

The arithmetic is PyTorch's, operation by operation, so that one rank gives the bits of a plain
PyTorch loop. What is added is state that travels: a slot is a partitioned tensor like its weight.
Adam needs to know how often an element was updated. Elements of an input or output layer are
trained in every round, so one number serves a whole tensor; an element of a middle layer is trained
only in the rounds that deal its row and its column to one rank, so there the count is a slot.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ist_hpc.config import OptimizerConfig
from ist_hpc.models.base import SharedSpec
from ist_hpc.placement import TensorSpec

Slots = dict[str, Tensor]
"""The slots of one weight on this rank, by slot name, in the shape of the weight."""


class Optimizer(ABC):
    """Updates the weights of a thin network in place.

    A step count `trained` is the number of steps of the run before this one (of the round under
    `optimizer.state: reset`): the count of every element but those of middle layers.
    """

    def __init__(self, config: OptimizerConfig) -> None:
        self.config = config

    @abstractmethod
    def slot_names(self, has_two_axes: bool) -> tuple[str, ...]:
        """Names of the slots of a weight."""

    @abstractmethod
    def update(
        self, weight: Tensor, gradient: Tensor, slots: Slots, lr: float, trained: int
    ) -> None:
        """One step of one weight, in place."""

    def slot_specs(self, specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        """The slots of all weights as partitioned tensors, keyed `slot/weight`."""
        return tuple(
            replace(spec, key=slot_key(slot, spec.key))
            for spec in specs
            for slot in self.slot_names(spec.has_two_axes)
        )

    def shared_slot_specs(self, specs: Sequence[SharedSpec]) -> tuple[SharedSpec, ...]:
        """The slots of the shared weights."""
        return tuple(
            SharedSpec(slot_key(slot, spec.key), spec.shape)
            for spec in specs
            for slot in self.slot_names(has_two_axes=False)
        )


def slot_key(slot: str, weight_key: str) -> str:
    """The key of a slot of a weight."""
    return f"{slot}/{weight_key}"


class SGD(Optimizer):
    """Stochastic gradient descent, plain or with momentum, as `torch.optim.SGD` has it."""

    def slot_names(self, has_two_axes: bool) -> tuple[str, ...]:
        """One slot, `momentum`, if there is momentum."""
        return ("momentum",) if self.config.momentum else ()

    def update(
        self, weight: Tensor, gradient: Tensor, slots: Slots, lr: float, trained: int
    ) -> None:
        """`weight -= lr * gradient`, or the momentum of the gradients."""
        direction = gradient
        if self.config.momentum:
            direction = slots["momentum"].mul_(self.config.momentum).add_(gradient)
        weight.add_(direction, alpha=-lr)


class Adam(Optimizer):
    """Adam as `torch.optim.Adam` has it, with the bias correction of each element's own count."""

    def slot_names(self, has_two_axes: bool) -> tuple[str, ...]:
        """First and second moments; for middle layers the count of updates, too."""
        names = ("exp_avg", "exp_avg_sq")
        return (*names, "updates") if has_two_axes else names

    def update(
        self, weight: Tensor, gradient: Tensor, slots: Slots, lr: float, trained: int
    ) -> None:
        """One step of Adam; `slots["updates"]`, where there is one, counts it.

        Counts are float32: exact to 2^24 updates, where they stop growing and both corrections
        have long been one.
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
        # The two factors depend on the count alone: compute them once for each count that occurs.
        table = [_corrections(count, lr, beta1, beta2) for count in range(lowest, highest + 1)]
        index = (updates - lowest).to(torch.int64)
        step_sizes = torch.tensor([-entry[0] for entry in table], dtype=weight.dtype)
        roots = torch.tensor([entry[1] for entry in table], dtype=weight.dtype)
        denominator = (second.sqrt() / roots[index]).add_(self.config.eps)
        weight.add_(step_sizes[index].mul_(first).div_(denominator))


def _corrections(count: int, lr: float, beta1: float, beta2: float) -> tuple[float, float]:
    """(step size, square root of the second correction) of the `count`-th update."""
    return lr / (1 - beta1**count), (1 - beta2**count) ** 0.5


_KINDS: Mapping[str, Callable[[OptimizerConfig], Optimizer]] = {"sgd": SGD, "adam": Adam}


def build(config: OptimizerConfig) -> Optimizer:
    """The optimiser that a configuration names."""
    return _KINDS[config.kind](config)


def learning_rate(config: OptimizerConfig, epoch: float) -> float:
    """The learning rate after `epoch` epochs: `lr`, times `decay_factor` for each step passed."""
    passed = sum(epoch >= boundary for boundary in config.decay_epochs)
    return config.lr * config.decay_factor**passed

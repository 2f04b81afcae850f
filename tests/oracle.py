"""One process that holds the whole model and trains the N subnets one after the other.

Written apart from the package: full tensors, plain indexing, its own update rules. It shares with
the package only what the method makes common knowledge: deals and initial values.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ist_hpc.config import OptimizerConfig
from ist_hpc.models.mlp import MultiLayerPerceptron
from ist_hpc.placement import deal


@dataclass
class Whole:
    """A full tensor with its optimiser state; `counts` are each element's updates."""

    values: Tensor
    axes: tuple[str | None, ...]
    momentum: Tensor = field(init=False)
    first: Tensor = field(init=False)
    second: Tensor = field(init=False)
    counts: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.momentum, self.first, self.second, self.counts = (
            torch.zeros_like(self.values) for _ in range(4)
        )

    def parts(self) -> tuple[Tensor, ...]:
        return (self.values, self.momentum, self.first, self.second, self.counts)


class Oracle:
    def __init__(
        self, model: MultiLayerPerceptron, ranks: int, seed: int, rule: OptimizerConfig
    ) -> None:
        self.model, self.ranks, self.seed, self.rule = model, ranks, seed, rule
        self.whole = {
            spec.key: Whole(
                torch.from_numpy(model.initial_rows(spec, seed, (0, spec.rows))), spec.axes
            )
            for spec in model.specs
        }
        # A bias that all ranks share: one copy a rank, all alike between rounds.
        self.shared = {
            spec.key: [Whole(torch.zeros(spec.shape), (None,)) for _ in range(ranks)]
            for spec in model.shared
        }

    def round(self, index: int, batches: list[list[tuple[Tensor, Tensor]]], lr: float) -> None:
        """Train the subnets of one round; `batches[r]` are the batches of rank r."""
        if self.rule.state == "reset":
            for whole in (
                *self.whole.values(),
                *(w for copies in self.shared.values() for w in copies),
            ):
                whole.clear()
        deals = {
            axis: deal(axis, size, self.ranks, self.seed, index)
            for axis, size in self.model.axes.items()
        }
        for rank in range(self.ranks):
            units = {axis: torch.from_numpy(deals[axis].units(rank)) for axis in deals}
            thin = {key: self._cut(key, whole, units) for key, whole in self.whole.items()}
            for key, copies in self.shared.items():
                thin[key] = list(copies[rank].parts())
            for features, labels in batches[rank]:
                self._step(thin, features, labels, lr)
            for key, whole in self.whole.items():
                self._paste(key, whole, units, thin[key])

    def _cut(self, key: str, whole: Whole, units: dict[str, Tensor]) -> list[Tensor]:
        parts = []
        for part in whole.parts():
            for dimension, axis in enumerate(whole.axes):
                if axis is not None:
                    part = part.index_select(dimension, units[axis])
            parts.append(part.t().contiguous() if key == "out.weight" else part.clone())
        return parts

    def _paste(self, key: str, whole: Whole, units: dict[str, Tensor], thin: list[Tensor]) -> None:
        for part, new in zip(whole.parts(), thin, strict=True):
            new = new.t() if key == "out.weight" else new
            index = [
                units[axis] if axis is not None else torch.arange(size)
                for axis, size in zip(whole.axes, part.shape, strict=True)
            ]
            part[torch.meshgrid(*index, indexing="ij")] = new

    def _step(
        self, thin: dict[str, list[Tensor]], features: Tensor, labels: Tensor, lr: float
    ) -> None:
        weights = {key: parts[0].clone().requires_grad_(True) for key, parts in thin.items()}
        hidden, depth = features, len(self.model.axes)
        for i in range(1, depth + 1):
            hidden = F.linear(hidden, weights[f"fc{i}.weight"])
            scale, shift = weights[f"bn{i}.weight"], weights[f"bn{i}.bias"]
            hidden = F.relu(F.batch_norm(hidden, None, None, scale, shift, True))
        logits = hidden @ weights["out.weight"]
        if "out.bias" in weights:
            logits = logits + weights["out.bias"]
        else:
            logits = F.batch_norm(logits, None, None, None, None, True)
        F.cross_entropy(logits, labels).backward()
        with torch.no_grad():
            for key, weight in weights.items():
                assert weight.grad is not None
                self._update(thin[key], weight.grad, lr)

    def _update(self, parts: list[Tensor], gradient: Tensor, lr: float) -> None:
        values, momentum, first, second, counts = parts
        counts += 1
        if self.rule.kind == "sgd":
            momentum.copy_(momentum * self.rule.momentum + gradient)
            values.add_(momentum, alpha=-lr)
            return
        beta1, beta2 = self.rule.betas
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        steps = torch.zeros_like(values)
        roots = torch.ones_like(values)
        for count in counts.unique().tolist():
            steps[counts == count] = -lr / (1 - beta1**count)
            roots[counts == count] = (1 - beta2**count) ** 0.5
        values += steps * first / (second.sqrt() / roots + self.rule.eps)

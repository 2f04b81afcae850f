"""One process that holds the whole model and trains the N subnets one after the other.

Written apart from the package: full tensors, plain indexing, its own update rules. It shares with
the package only what the method makes common knowledge, deals and initial values, and the loss of
many labels, which test_many_labels.py checks.
"""

import itertools
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ist_hpc.config.keys import OptimizerConfig
from ist_hpc.data.sparse_rows import Rows, SparseRows
from ist_hpc.exchange.placement import Deal, deal
from ist_hpc.models.base import Model
from ist_hpc.models.local_step import LocalStep
from ist_hpc.models.perceptrons.many_labels import softmax
from ist_hpc.models.perceptrons.sampled_labels import Sampling, sampled_softmax

Gradient = Tensor | tuple[Tensor, Tensor]
"""Of a whole weight, or (rows, values) of the rows that a sparse batch uses."""


@dataclass
class Whole:
    """A full tensor with its optimiser state; `counts` are each element's updates.

    `units` is Adagrad's sum for each unit of the dealt dimension, `squares` for each element.
    """

    values: Tensor
    axes: tuple[str | None, ...]
    momentum: Tensor = field(init=False)
    first: Tensor = field(init=False)
    second: Tensor = field(init=False)
    counts: Tensor = field(init=False)
    squares: Tensor = field(init=False)
    units: Tensor = field(init=False)
    by_row: bool = False

    def __post_init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.momentum, self.first, self.second, self.counts, self.squares = (
            torch.zeros_like(self.values) for _ in range(5)
        )
        self.units = torch.zeros(self.values.shape[self.dealt])

    @property
    def dealt(self) -> int:
        return 0 if self.by_row or self.axes[0] is not None or len(self.axes) == 1 else 1

    def parts(self) -> tuple[Tensor, ...]:
        own = (self.values, self.momentum, self.first, self.second, self.counts, self.squares)
        return (*own, self.units)

    def axes_of(self, part: Tensor) -> tuple[str | None, ...]:
        return (self.axes[self.dealt],) if part is self.units else self.axes


class Oracle:
    def __init__(self, model: Model, ranks: int, seed: int, rule: OptimizerConfig) -> None:
        self.model, self.ranks, self.seed, self.rule = model, ranks, seed, rule
        self.whole = {
            spec.key: Whole(
                torch.from_numpy(model.initial_rows(spec, seed, (0, spec.rows))), spec.axes
            )
            for spec in model.specs
        }
        self.transposed = {spec.key for spec in model.specs if spec.transposed}
        self.sampled = {spec.key for spec in model.specs if spec.demanded}
        for key in self.sampled:  # of its rows, labels, each has a number
            self.whole[key].by_row = True
            self.whole[key].clear()
        # What all ranks share: one copy a rank, all alike between rounds.
        self.shared = {
            spec.key: [
                Whole(
                    torch.from_numpy(model.initial_shared(spec, seed)).clone(),
                    (None,) * len(spec.shape),
                )
                for _ in range(ranks)
            ]
            for spec in model.shared
        }

    def round(
        self, index: int, batches: list[list[tuple[Rows, Rows]]], lr: float, trained: int = 0
    ) -> None:
        """Train the subnets of one round; `batches[r]` are the batches of rank r.

        trained  steps before it
        """
        if self.rule.state == "reset":
            for whole in (
                *self.whole.values(),
                *(w for copies in self.shared.values() for w in copies),
            ):
                whole.clear()
        deals = {
            name: deal(name, axis, self.ranks, self.seed, index)
            for name, axis in self.model.axes.items()
        }
        others: list[tuple[int, dict[str, list[Tensor]]]] = []
        before = {key: self.whole[key].units.clone() for key in self.sampled}
        for rank in range(self.ranks):
            units = {axis: torch.from_numpy(deals[axis].units(rank)) for axis in deals}
            thin = {key: self._cut(key, whole, units) for key, whole in self.whole.items()}
            for key, copies in self.shared.items():
                thin[key] = list(copies[rank].parts())
            for number, (features, labels) in enumerate(batches[rank], trained):
                self._step(thin, features, labels, lr, LocalStep(self.seed, rank, number))
            others.append((rank, thin))
        # After all have trained: who shares a unit begins from the same weights.
        for rank, thin in others:
            units = {axis: torch.from_numpy(deals[axis].units(rank)) for axis in deals}
            for key, whole in self.whole.items():
                if not self._shares(whole, deals):
                    self._paste(key, whole, units, thin[key])
        for key in self.sampled:
            trained_by_rank = [thin[key] for _, thin in others]
            _add_changes(self.whole[key].units, before[key], trained_by_rank)
        for key, whole in self.whole.items():
            if self._shares(whole, deals):
                trained = [(rank, thin[key]) for rank, thin in others]
                _bring_together(whole, deals[whole.axes[0] or ""], trained)

    def numbers(self) -> Tensor:
        """All that rounds change, in one float32 tensor."""
        return torch.cat([part.flatten() for part in self._parts()])

    def take_over(self, numbers: Tensor) -> None:
        """Be as the oracle with these numbers is."""
        parts = self._parts()
        for part, new in zip(parts, numbers.split([part.numel() for part in parts]), strict=True):
            part.copy_(new.view(part.shape))

    def _parts(self) -> list[Tensor]:
        copies = itertools.chain(self.whole.values(), *self.shared.values())
        return [part for whole in copies for part in whole.parts()]

    @staticmethod
    def _shares(whole: Whole, deals: dict[str, Deal]) -> bool:
        return whole.axes[0] is not None and len(deals[whole.axes[0]].copies[0]) > 0

    def _cut(self, key: str, whole: Whole, units: dict[str, Tensor]) -> list[Tensor]:
        parts = []
        for full in whole.parts():
            part = full
            for dimension, axis in enumerate(whole.axes_of(full)):
                if axis is not None:
                    part = part.index_select(dimension, units[axis])
            turned = key in self.transposed and part.dim() == 2
            parts.append(part.t().contiguous() if turned else part.clone())
        return parts

    def _paste(self, key: str, whole: Whole, units: dict[str, Tensor], thin: list[Tensor]) -> None:
        for part, new in zip(whole.parts(), thin, strict=True):
            new = new.t() if key in self.transposed and part.dim() == 2 else new
            at = torch.tensor(0)  # of each element of `new` in the flat part
            for axis, size in zip(whole.axes_of(part), part.shape, strict=True):
                own = units[axis] if axis is not None else torch.arange(size)
                at = at.unsqueeze(-1) * size + own
            part.view(-1)[at] = new

    def _step(
        self,
        thin: dict[str, list[Tensor]],
        features: Rows,
        labels: Rows,
        lr: float,
        step: LocalStep,
    ) -> None:
        running = {key: parts[0] for key, parts in thin.items() if ".running_" in key}
        weights = {
            key: parts[0].clone().requires_grad_(True)
            for key, parts in thin.items()
            if key not in running
        }
        gradients: dict[str, Gradient] = {}
        hidden = features
        if "conv1.weight" in weights:
            hidden = _convolved(weights, running, features)
        elif "stem.weight" in weights:
            hidden = _residual(weights, running, features)
        depth = sum(key.startswith("fc") for key in weights)
        for i in range(1, depth + 1):
            if isinstance(hidden, SparseRows):
                with torch.no_grad():
                    entering = _bags(hidden, weights["fc1.weight"])
                hidden = entering.requires_grad_(True)
            else:
                hidden = F.linear(hidden, weights[f"fc{i}.weight"])
            scale, shift = weights[f"bn{i}.weight"], weights[f"bn{i}.bias"]
            hidden = F.relu(F.batch_norm(hidden, None, None, scale, shift, True))
            if self.dropout:
                shape = (len(hidden), hidden.shape[1])
                hidden = hidden * step.kept(f"dropout/bn{i}", shape, self.dropout)
        if isinstance(labels, SparseRows) and self.sampling is not None:
            gradients["out.weight"] = self._sampled(weights["out.weight"], hidden, labels, step)
        elif isinstance(labels, SparseRows):
            # The loss of many labels is checked against the plain formula in test_many_labels.py.
            weight = weights["out.weight"].detach()
            room = torch.empty(weight.numel())
            loss = softmax(hidden.detach(), weight, None, labels, self.BLOCK, room)
            blocks = [values for _, values in loss.weight_gradient.blocks]
            gradients["out.weight"] = torch.cat(blocks, dim=1)
            hidden.backward(loss.hidden_gradient)
        else:
            turned = "out.weight" in self.transposed
            logits = hidden @ (weights["out.weight"] if turned else weights["out.weight"].t())
            if "out.bias" in weights:
                logits = logits + weights["out.bias"]
            else:
                logits = F.batch_norm(logits, None, None, None, None, True)
            F.cross_entropy(logits, labels).backward()
        if isinstance(features, SparseRows):
            assert entering.grad is not None
            gradients["fc1.weight"] = _by_feature(features, entering.grad)
        with torch.no_grad():
            for key, weight in weights.items():
                gradient = gradients.get(key, weight.grad)
                assert gradient is not None
                in_blocks = key == "out.weight" and isinstance(labels, SparseRows)
                if key in self.sampled:
                    self._update_labels(thin[key], gradient, lr)
                else:
                    self._update(thin[key], gradient, lr, self.BLOCK if in_blocks else None)

    BLOCK = 3
    sampling: Sampling | None = None
    dropout = 0.0

    def _sampled(
        self, weight: Tensor, hidden: Tensor, labels: SparseRows, step: LocalStep
    ) -> tuple[Tensor, Tensor]:
        """(labels, the gradient of each), and that of `hidden`.

        The loss is checked against the plain formula in test_sampled_labels.py.
        """
        assert self.sampling is not None
        drawn = torch.from_numpy(self.sampling.drawn(step.seed, step.index))
        trained = torch.tensor(sorted({*drawn.tolist(), *labels.columns.tolist()}))
        chances = self.sampling.log_chances(trained, len(hidden))
        loss = sampled_softmax(hidden.detach(), weight.detach(), labels, trained, trained, chances)
        hidden.backward(loss.hidden_gradient)
        return loss.weight_gradient.rows, loss.weight_gradient.values

    def _update(
        self, parts: list[Tensor], gradient: Gradient, lr: float, block: int | None
    ) -> None:
        """Only the rows that a sparse batch uses change, but the step counts for all.

        The squares of a unit are summed `block` by block of columns.
        """
        parts[4] += 1
        if isinstance(gradient, Tensor):
            self._apply(parts, gradient, lr, 0, block or gradient.shape[-1])
            return
        rows, values = gradient
        *rowwise, units = parts
        chosen = [part[rows] for part in rowwise]
        self._apply([*chosen, units], values, lr, 1, len(values))
        for part, new in zip(rowwise, chosen, strict=True):
            part[rows] = new

    def _update_labels(self, parts: list[Tensor], gradient: Gradient, lr: float) -> None:
        """Only the labels of the step change, and the number that each has, but all are counted."""
        assert isinstance(gradient, tuple)
        rows, values = gradient
        parts[4] += 1
        chosen = [part[rows] for part in parts]
        self._apply(chosen, values, lr, 0, values.shape[1])
        for part, new in zip(parts, chosen, strict=True):
            part[rows] = new

    def _apply(
        self, parts: list[Tensor], gradient: Tensor, lr: float, unit_dimension: int, block: int
    ) -> None:
        values, momentum, first, second, counts, squares, units = parts
        if self.rule.kind == "sgd":
            gradient = gradient.add(values, alpha=self.rule.weight_decay)
            momentum.copy_(momentum * self.rule.momentum + gradient)
            values.add_(momentum, alpha=-lr)
            return
        if self.rule.kind == "adagrad":
            squares.addcmul_(gradient, gradient)
            values.addcdiv_(gradient, squares.sqrt() + self.rule.eps, value=-lr)
            return
        if self.rule.kind == "rowwise_adagrad":
            if gradient.dim() == 1:
                sums = squares.addcmul_(gradient, gradient)
            else:
                across = 1 - unit_dimension
                total = torch.zeros_like(units)
                for part in gradient.split(max(1, block), dim=across):
                    squares_of = (part**2).sum(0), torch.linalg.vector_norm(part, dim=across) ** 2
                    total += squares_of[across]
                mean = total / gradient.shape[across]
                sums = units.add_(mean).unsqueeze(across)
            values.addcmul_(gradient, 1 / (sums.sqrt() + self.rule.eps), value=-lr)
            return
        beta1, beta2 = self.rule.betas
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        updates = counts.long()  # at least 1
        known = range(1, int(updates.max()) + 1) if updates.numel() else ()
        steps = torch.tensor([0.0, *(-lr / (1 - beta1**count) for count in known)])[updates]
        roots = torch.tensor([1.0, *((1 - beta2**count) ** 0.5 for count in known)])[updates]
        values += steps * first / (second.sqrt() / roots + self.rule.eps)


def _convolved(weights: dict[str, Tensor], running: dict[str, Tensor], rows: Rows) -> Tensor:
    """VGG11 up to its first linear map, on images of 32 x 32; `running` is brought up to date."""
    assert isinstance(rows, Tensor)
    values = rows.view(-1, 3, 32, 32)
    for i in range(1, 9):
        values = F.conv2d(values, weights[f"conv{i}.weight"], padding=1)
        norm = f"conv{i}_norm"
        mean, variance = running.get(f"{norm}.running_mean"), running.get(f"{norm}.running_var")
        scale, shift = weights[f"{norm}.weight"], weights[f"{norm}.bias"]
        values = F.relu(F.batch_norm(values, mean, variance, scale, shift, True))
        if i in (1, 2, 4, 6, 8):
            values = F.max_pool2d(values, 2)
    return values.flatten(1)


def _residual(weights: dict[str, Tensor], running: dict[str, Tensor], rows: Rows) -> Tensor:
    """A residual network up to its linear map; `running` is brought up to date."""
    assert isinstance(rows, Tensor)

    def normed(name: str, values: Tensor, at: int | None = None) -> Tensor:
        scale, shift = weights[f"{name}.weight"], weights[f"{name}.bias"]
        if at is not None:
            scale, shift = scale[at], shift[at]
        mean, variance = running.get(f"{name}.running_mean"), running.get(f"{name}.running_var")
        return F.relu(F.batch_norm(values, mean, variance, scale, shift, True))

    def block(name: str, values: Tensor, at: int | None = None) -> Tensor:
        first, second = weights[f"{name}.conv1.weight"], weights[f"{name}.conv2.weight"]
        if at is not None:
            first, second = first[at], second[at]
        entering = normed(f"{name}.norm1", values, at)
        shortcut = weights.get(f"{name}.shortcut.weight")
        section, _, number = name.removeprefix("section").partition(".")
        stride = 2 if number == "0" and section != "1" else 1
        branch = F.conv2d(entering, first, stride=stride, padding=1)
        branch = F.conv2d(normed(f"{name}.norm2", branch, at), second, padding=1)
        if shortcut is not None:
            values = F.conv2d(entering, shortcut, stride=stride)
        return values + branch

    values = F.conv2d(rows.view(-1, 3, 32, 32), weights["stem.weight"], padding=1)
    names = sorted({key.split(".conv1")[0] for key in weights if key.endswith("conv1.weight")})
    for section in ("section1", "section2", "section3", "blocks", "section4"):
        for name in names:
            if name == "blocks" == section:
                for at in range(len(weights["blocks.conv1.weight"])):
                    values = block(name, values, at)
            elif name.startswith(f"{section}."):
                values = block(name, values)
    return normed("norm", values).mean(dim=(2, 3))


def _bring_together(whole: Whole, dealt: Deal, trained: list[tuple[int, list[Tensor]]]) -> None:
    """Of units that several ranks trained the mean: the holder's first, then by rank."""
    trainers: dict[int, list[int]] = {
        unit: [int(rank)] for unit, rank in enumerate(dealt.holder.tolist())
    }
    for unit, rank in zip(*(part.tolist() for part in dealt.copies), strict=True):
        trainers[unit].append(rank)
    of_rank = dict(trained)
    for unit, ranks in trainers.items():
        for part, full in enumerate(whole.parts()):
            copies = [of_rank[rank][part][dealt.units(rank).tolist().index(unit)] for rank in ranks]
            total = copies[0].clone()
            for copy in copies[1:]:
                total += copy
            full[unit] = total / len(copies) if len(copies) > 1 else total


def _add_changes(numbers: Tensor, before: Tensor, trained: list[list[Tensor]]) -> None:
    """A number a label: what each rank changed of it, by the part of the units that it has."""
    if len(trained) == 1:
        return
    widths = [parts[0].shape[1] for parts in trained]
    numbers.copy_(before)
    for parts, width in zip(trained, widths, strict=True):
        numbers += (parts[-1] - before) * (width / sum(widths))


def _bags(rows: SparseRows, table: Tensor) -> Tensor:
    options = {"mode": "sum", "include_last_offset": True, "per_sample_weights": rows.values}
    return F.embedding_bag(rows.columns, table, rows.offsets, **options)


def _by_feature(rows: SparseRows, arriving: Tensor) -> tuple[Tensor, Tensor]:
    """(features that occur, the gradient of each): the sum over samples, times their values."""
    samples: dict[int, list[tuple[int, float]]] = {}
    for index in range(len(rows)):
        for entry in range(int(rows.offsets[index]), int(rows.offsets[index + 1])):
            at = samples.setdefault(int(rows.columns[entry]), [])
            at.append((index, float(rows.values[entry])))
    features = sorted(samples)
    flat = [item for feature in features for item in samples[feature]]
    turned = SparseRows(
        torch.tensor([0, *(len(samples[feature]) for feature in features)]).cumsum(0),
        torch.tensor([index for index, _ in flat]),
        torch.tensor([value for _, value in flat]),
        len(rows),
    )
    return torch.tensor(features), _bags(turned, arriving)

"""Data parallel training: every step on the mean of the ranks' gradients."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ist_hpc.data.sparse_rows import Rows
from ist_hpc.models.base import Model
from ist_hpc.models.gradients import ColumnGradient, GradientBuffers, Gradients, RowGradient
from ist_hpc.models.optimizer import Optimizer
from ist_hpc.training.algorithms.replicas import Replicas, gradients_of
from ist_hpc.training.averaging import Averages, HorovodAverages, rows_of_all

if TYPE_CHECKING:
    from mpi4py import MPI

_HALF_BYTES = 2  # per element under fp16


class DataParallel(Replicas):
    """Horovod's DistributedOptimizer around this package's optimisers.

    If the model has a loss for autograd, gradients are averaged during the backward pass; `average`
    counts the seconds that a rank waits after it. Other models (sparse rows, labels
    in blocks) compute all gradients first, each a whole tensor: with several ranks the lazy updates
    of sparse rows become those of PyTorch's dense optimisers, but where labels are sampled: then
    the rows that some rank used are averaged and updated. Without Horovod, and on a GPU, gradients
    are averaged after the backward pass.

    averages     averages over the same ranks
    compression  none, or fp16 (Horovod only): gradients are summed as half precision numbers
    """

    def __init__(
        self,
        comm: "MPI.Comm",
        model: Model,
        optimizer: Optimizer,
        device: torch.device,
        seed: int,
        carry: bool,
        averages: Averages,
        compression: str = "none",
    ) -> None:
        super().__init__(comm, model, optimizer, device, seed, carry)
        self._averages, self.averaged_by = averages, averages.by
        self._hvd = averages.hvd if isinstance(averages, HorovodAverages) else None
        assert self._hvd is not None or compression == "none"
        self._compression = getattr(self._hvd.Compression, compression) if self._hvd else None
        self._element_bytes = _HALF_BYTES if compression == "fp16" else 4
        self._wraps = True
        self._distributed: Any = None
        self._dense_room: GradientBuffers = {}

    def _wrap(self) -> None:
        """Give rank 0's shared weights to all ranks, and the weights to Horovod. Collective."""
        self._averages.broadcast(self.shared | self.shared_slots)
        if self._wraps and self._hvd is not None and self.device.type == "cpu":
            whole = [key for key in self._slots if key not in self.model.averaged_by_row]
            parameters = [(key, self._weights[key].requires_grad_()) for key in whole]
            plain = _Update([{"params": [weight for _, weight in parameters]}])
            self._distributed = self._hvd.DistributedOptimizer(
                plain, named_parameters=parameters, compression=self._compression
            )

    def _step(self, features: Rows, labels: Rows, lr: float, trained: int) -> Tensor:
        """A step on the mean of the ranks' gradients. Collective."""
        weights = {
            key: self._weights[key] for key in self._slots if key not in self.model.averaged_by_row
        }
        gradients: Gradients = {}
        if self._distributed is not None and self.model.differentiable:
            assert isinstance(features, Tensor)
            assert isinstance(labels, Tensor)
            loss = self.model.loss(self._weights, features, labels, self._local_step(trained))
            loss.backward()
        else:
            loss, gradients = self._own_gradients(features, labels, trained)
            for key, weight in weights.items():
                weight.grad = self._dense(key, gradients.pop(key))
        with self.meter.timing("average"):
            for key, gradient in gradients.items():
                assert isinstance(gradient, RowGradient)
                gradients[key] = self._mean_of_rows(key, gradient)
            if self._distributed is not None:
                self._distributed.synchronize()
            else:
                self._average_gradients(weights)
        elements = sum(weight.numel() for weight in weights.values())
        self.meter.count_average(elements, self.ranks, self._element_bytes)
        self._step_on_means(weights, gradients, lr, trained)
        return loss.detach()

    def _step_on_means(
        self, weights: dict[str, Tensor], of_rows: Gradients, lr: float, trained: int
    ) -> None:
        """The optimiser's step; frees the gradients. Local."""
        means = gradients_of(weights) | of_rows
        if self._distributed is not None:
            (group,) = self._distributed.param_groups
            group["update"] = lambda: self._update(means, lr, trained)
            with self._distributed.skip_synchronize():
                self._distributed.step()
        else:
            self._update(means, lr, trained)
        for weight in weights.values():
            weight.grad = None

    def _dense(self, key: str, gradient: Tensor | RowGradient | ColumnGradient) -> Tensor:
        """A gradient as one tensor; its memory is kept for the next step of the round."""
        if isinstance(gradient, Tensor):
            return gradient.contiguous()
        if key not in self._dense_room:
            self._dense_room[key] = torch.empty_like(self._weights[key], requires_grad=False)
        whole = self._dense_room[key]
        if isinstance(gradient, RowGradient):
            whole.zero_().index_copy_(0, gradient.rows, gradient.values)
        else:
            for columns, values in gradient.blocks:
                whole[:, columns] = values
        return whole

    def _mean_of_rows(self, key: str, gradient: RowGradient) -> RowGradient:
        """The mean of the ranks' gradients, of the rows that any of them uses. Collective."""
        rows = self._rows_of_all(gradient.rows)
        values = gradient.values.new_zeros(len(rows), *gradient.values.shape[1:])
        values.index_copy_(0, torch.searchsorted(rows, gradient.rows), gradient.values)
        packed, kind = values, None
        if self._compression is not None:
            packed, kind = self._compression.compress(values)
        self._averages.average([packed], f"rows/{key}")
        self.meter.count_average(values.numel(), self.ranks, self._element_bytes)
        if self._compression is not None:
            packed = self._compression.decompress(packed, kind)
        return RowGradient(rows, packed)

    def _rows_of_all(self, rows: Tensor) -> Tensor:
        """The rows that any rank uses, of which this rank uses `rows`. Collective."""
        together = rows_of_all(self.comm, rows)
        # Each rank gets the numbers of the others, of which an allreduce would send each twice.
        self.meter.count_average(len(rows) * self.ranks, self.ranks, element_bytes=2)
        return together

    def _average_gradients(self, weights: dict[str, Tensor]) -> None:
        """Average gradients after all are computed. Collective."""
        found = gradients_of(weights).values()
        gradients = [gradient for gradient in found if isinstance(gradient, Tensor)]  # all are
        if self._compression is None:
            self._averages.average(gradients, "gradients")
            return
        packed = [self._compression.compress(gradient) for gradient in gradients]
        self._averages.average([values for values, _ in packed], "gradients")
        for weight, (values, kind) in zip(weights.values(), packed, strict=True):
            weight.grad = self._compression.decompress(values, kind)

    def end_round(self) -> None:
        """Average running statistics, if the model has any. Collective."""
        self._dense_room = {}
        super().end_round()

    def _average(self) -> None:
        """Average running statistics; nothing else differs. Collective."""
        self._average_tensors(self._running_statistics(), "statistics")

    def _average_tensors(self, tensors: list[Tensor], name: str) -> None:
        self._averages.average(tensors, name)
        self.meter.count_average(sum(tensor.numel() for tensor in tensors), self.ranks)


class _Update(torch.optim.Optimizer):
    """The optimiser that Horovod wraps: a step calls the group's `update` with its gradients."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, defaults={})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the weights. Local."""
        for group in self.param_groups:
            group["update"]()

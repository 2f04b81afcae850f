"""Weights without an axis: Horovod broadcasts them at the start and averages them each round."""

from collections.abc import Iterable
from types import ModuleType

from torch import Tensor


class SharedWeights:
    """Horovod's part of the model. `hvd` is an initialised `horovod.torch`.

    Tensors on a GPU pass through the CPU: they are small (a bias), a Horovod without GPU operations
    does not take them, and one that has NCCL's refuses several ranks on a GPU.
    """

    def __init__(self, hvd: ModuleType) -> None:
        self._hvd = hvd

    def broadcast(self, tensors: dict[str, Tensor]) -> None:
        """Give rank 0's values to all, in place. Collective."""
        if tensors:
            on_cpu = {key: tensor.cpu() for key, tensor in tensors.items()}
            self._hvd.broadcast_parameters(on_cpu, root_rank=0)
            _copy_back(tensors.values(), on_cpu.values())

    def average(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its mean over the ranks, in one grouped call. Collective.

        With four or more ranks an allreduce sums in an order of its own, so means are equal on all
        ranks but, to the last bit, not those of another summation.
        """
        on_cpu = [tensor.cpu() for tensor in tensors]
        self._hvd.grouped_allreduce_(on_cpu, name="shared", op=self._hvd.Average)
        _copy_back(tensors, on_cpu)


def _copy_back(tensors: Iterable[Tensor], on_cpu: Iterable[Tensor]) -> None:
    """Bring what was changed to where it belongs; tensors on the CPU are themselves."""
    for tensor, changed in zip(tensors, on_cpu, strict=True):
        if changed is not tensor:
            tensor.copy_(changed)

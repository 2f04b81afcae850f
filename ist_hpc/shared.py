"""What ranks have in common: Horovod broadcasts it at the start and averages it each round.

These are weights without an axis, and under local SGD all weights.
"""

import os
from collections.abc import Iterable
from types import ModuleType

import torch
from torch import Tensor

from ist_hpc.decimals import whole_from

_FUSION_BYTES = 128 << 20  # Horovod's default
_MOST_ELEMENTS = 1 << 30  # of a group; MPI counts to 2^31 - 1


def fusion_bytes() -> int:
    """Size of the buffer in which Horovod puts small tensors together before it averages them."""
    given = os.environ.get("HOROVOD_FUSION_THRESHOLD", "")
    try:
        return whole_from(0, given)
    except ValueError:
        return _FUSION_BYTES


class SharedWeights:
    """Horovod's part of the model. `hvd` is an initialised `horovod.torch`.

    Tensors on a GPU pass through the CPU: a Horovod without GPU operations does not take them, and
    one that has NCCL's refuses several ranks on a GPU.
    """

    def __init__(self, hvd: ModuleType) -> None:
        self._hvd = hvd

    def broadcast(self, tensors: dict[str, Tensor]) -> None:
        """Give rank 0's values to all, in place. Collective."""
        if tensors:
            on_cpu = {key: tensor.cpu() for key, tensor in tensors.items()}
            self._hvd.broadcast_parameters(on_cpu, root_rank=0)
            _copy_back(tensors.values(), on_cpu.values())

    def average(self, tensors: list[Tensor], name: str = "shared") -> None:
        """Replace each tensor by its mean over the ranks, in one grouped call. Collective.

        With four or more ranks an allreduce sums in an order of its own, so means are equal on all
        ranks but, to the last bit, not those of another summation. More than 2^30 elements go in
        several calls. Tensors are contiguous; `name` tells apart calls with other tensors.
        """
        on_cpu = [tensor.detach().cpu() for tensor in tensors]
        for index, group in enumerate(_groups(on_cpu)):
            self._hvd.grouped_allreduce_(group, name=f"{name}.{index}", op=self._hvd.Average)
        _copy_back(tensors, on_cpu)


def _groups(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Flat views of all elements, in groups of at most `_MOST_ELEMENTS`."""
    groups: list[list[Tensor]] = []
    room = 0
    for tensor in tensors:
        rest = tensor.view(-1)
        while rest.numel():
            if not room:
                groups.append([])
                room = _MOST_ELEMENTS
            groups[-1].append(rest[:room])
            rest, room = rest[room:], room - min(room, rest.numel())
    return groups


@torch.no_grad()
def _copy_back(tensors: Iterable[Tensor], on_cpu: Iterable[Tensor]) -> None:
    """Bring what was changed to where it belongs; tensors on the CPU are themselves."""
    for tensor, changed in zip(tensors, on_cpu, strict=True):
        if changed.device != tensor.device:
            tensor.copy_(changed)

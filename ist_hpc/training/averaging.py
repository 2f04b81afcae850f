"""Weights that ranks share are broadcast at the start and averaged each round.

These are weights without an axis, and under local SGD all weights. Horovod does both; if it is not
installed, MPI does.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ist_hpc.cost.memory import fusion_bytes
from ist_hpc.runtime.horovod_start import is_installed, start_horovod
from ist_hpc.runtime.launch import AgreedInputError

if TYPE_CHECKING:
    from mpi4py import MPI

log = logging.getLogger("ist_hpc")

_MOST_ELEMENTS = 1 << 30  # in a group; MPI counts to 2^31 - 1


class Averages(ABC):
    """Broadcasts and averages over all ranks.

    Tensors on a GPU pass through the CPU: a Horovod or an MPI without GPU operations does not
    accept them, and a Horovod with NCCL's refuses several ranks on one GPU.

    by  the library that averages, for run.json
    """

    by: str

    def broadcast(self, tensors: dict[str, Tensor]) -> None:
        """Give rank 0's values to all, in place. Collective."""
        if tensors:
            on_cpu = {key: tensor.cpu() for key, tensor in tensors.items()}
            self._broadcast(on_cpu)
            _copy_back(tensors.values(), on_cpu.values())

    def average(self, tensors: list[Tensor], name: str = "shared") -> None:
        """Replace each tensor by its mean over the ranks, in one grouped call. Collective.

        With four or more ranks an allreduce chooses its own order of summation. So means are equal
        on all ranks, but differ in the last bit from another order. More than 2^30 elements need
        several calls. Tensors are contiguous; `name` distinguishes calls with other tensors.
        """
        on_cpu = [tensor.detach().cpu() for tensor in tensors]
        for index, group in enumerate(_groups(on_cpu, _MOST_ELEMENTS)):
            self._average(group, f"{name}.{index}")
        _copy_back(tensors, on_cpu)

    @abstractmethod
    def _broadcast(self, tensors: dict[str, Tensor]) -> None:
        """Give rank 0's values to all, in place, on the CPU. Collective."""

    @abstractmethod
    def _average(self, group: list[Tensor], name: str) -> None:
        """Average flat tensors in place, on the CPU. Collective."""


class HorovodAverages(Averages):
    """Averages by Horovod. `hvd` is an initialised `horovod.torch`."""

    by = "Horovod"

    def __init__(self, hvd: ModuleType) -> None:
        self.hvd = hvd

    def _broadcast(self, tensors: dict[str, Tensor]) -> None:
        self.hvd.broadcast_parameters(tensors, root_rank=0)

    def _average(self, group: list[Tensor], name: str) -> None:
        self.hvd.grouped_allreduce_(group, name=name, op=self.hvd.Average)


class MpiAverages(Averages):
    """Averages by `MPI.Allreduce`, for tensors of NumPy types (so not bfloat16)."""

    by = "MPI.Allreduce"

    def __init__(self, comm: "MPI.Comm") -> None:
        self._comm = comm

    def _broadcast(self, tensors: dict[str, Tensor]) -> None:
        for tensor in tensors.values():
            for (piece,) in _groups([tensor], _MOST_ELEMENTS):
                self._comm.Bcast(piece.numpy(), root=0)

    def _average(self, group: list[Tensor], name: str) -> None:
        for dtype in dict.fromkeys(tensor.dtype for tensor in group):
            alike = [tensor for tensor in group if tensor.dtype == dtype]
            for together in _groups(alike, max(1, fusion_bytes() // dtype.itemsize)):
                self._average_alike(together)

    def _average_alike(self, tensors: list[Tensor]) -> None:
        """Average tensors of one type in a single call; a single tensor needs no buffer."""
        from mpi4py import MPI

        buffer = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        self._comm.Allreduce(MPI.IN_PLACE, buffer.numpy())
        buffer /= self._comm.Get_size()
        if len(tensors) > 1:
            for tensor, mean in zip(
                tensors, buffer.split([t.numel() for t in tensors]), strict=True
            ):
                tensor.copy_(mean)


def start(comm: "MPI.Comm", silence_s: float) -> Averages:
    """Start Horovod over the ranks, or use MPI if Horovod is not installed. Collective.

    An installed Horovod that does not work, or that only some ranks have, is an error of
    `start_horovod`: nobody should train for days with another library than intended.
    """
    missing = comm.allgather(not is_installed())
    if not any(missing):
        return HorovodAverages(start_horovod(comm, silence_s))
    if not all(missing):
        raise AgreedInputError(
            f"Horovod is installed for some ranks, and not for rank {missing.index(True)}; start "
            "all ranks with the same python"
        )
    log.info("Horovod is not installed: what ranks share is averaged by MPI.Allreduce")
    return MpiAverages(comm)


def rows_of_all(comm: "MPI.Comm", rows: Tensor) -> Tensor:
    """The rows that some rank names, ascending, each once; int64, where `rows` are. Collective.

    rows  of this rank: fewer than 2^31; int64
    """
    own = rows.cpu().numpy().astype(np.int32)
    counts = np.array(comm.allgather(len(own)))
    gathered = np.empty(int(counts.sum()), dtype=np.int32)
    comm.Allgatherv(own, [gathered, counts])
    return torch.from_numpy(np.unique(gathered).astype(np.int64)).to(rows.device)


def _groups(tensors: Iterable[Tensor], most_elements: int) -> list[list[Tensor]]:
    """Flat views of all elements, in groups of at most the given size."""
    groups: list[list[Tensor]] = []
    room = 0
    for tensor in tensors:
        rest = tensor.view(-1)
        while rest.numel():
            if not room:
                groups.append([])
                room = most_elements
            groups[-1].append(rest[:room])
            rest, room = rest[room:], room - min(room, rest.numel())
    return groups


@torch.no_grad()
def _copy_back(tensors: Iterable[Tensor], on_cpu: Iterable[Tensor]) -> None:
    """Copy changed values back to where they belong; tensors on the CPU need no copy."""
    for tensor, changed in zip(tensors, on_cpu, strict=True):
        if changed.device != tensor.device:
            tensor.copy_(changed)

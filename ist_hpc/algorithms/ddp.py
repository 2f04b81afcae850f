"""PyTorch's DistributedDataParallel over gloo: a baseline that is not Horovod's, nor ours."""

import atexit
import fcntl
import os
import socket
import struct
from contextlib import ExitStack, suppress
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ist_hpc.algorithms.replicas import Replicas, gradients_of
from ist_hpc.errors import InputError
from ist_hpc.models.base import Model
from ist_hpc.optimizer import Optimizer
from ist_hpc.runtime import on_root, together
from ist_hpc.sparse import Rows

if TYPE_CHECKING:
    from mpi4py import MPI

_SIOCGIFADDR = 0x8915  # Linux: the address of an interface
_LOOPBACK = "127.0.0.1"
_ANY_PORT = 9  # nothing is sent to it


class Ddp(Replicas):
    """DistributedDataParallel around the model's loss, with this package's optimisers.

    Gradients are averaged while the backward pass goes on. Seconds `average` are those from the
    moment when the last gradient of this rank is there to the end of the pass: copying it into its
    bucket and waiting for the averages. What the averaging takes of the processor before is in
    `train`.

    silence_s  after which a rank that waits for another raises
    """

    def __init__(
        self,
        comm: "MPI.Comm",
        model: Model,
        optimizer: Optimizer,
        carry: bool,
        silence_s: float,
    ) -> None:
        assert model.differentiable
        super().__init__(comm, model, optimizer, torch.device("cpu"), carry)
        if self.ranks > 1:
            join(comm, silence_s)
        self._ddp: DistributedDataParallel | None = None
        self._missing = 0
        self._after_last_gradient = ExitStack()

    def _wrap(self) -> None:
        """Make the weights parameters of DDP, which gives those of rank 0 to all. Collective."""
        if self.ranks == 1:
            return
        for key in self._slots:
            parameter = nn.Parameter(self._weights[key])  # the same memory
            parameter.register_hook(self._on_gradient)
            self._weights[key] = parameter
        loss = _Loss(self.model, self._weights, list(self._slots))
        self._ddp = DistributedDataParallel(loss, gradient_as_bucket_view=True)

    def _on_gradient(self, gradient: Tensor) -> None:
        """Called as a gradient is there, before DDP sees it."""
        self._missing -= 1
        if not self._missing:
            self._after_last_gradient.enter_context(self.meter.timing("average"))

    def _step(self, features: Rows, labels: Rows, lr: float, trained: int) -> Tensor:
        """A step on the mean of the ranks' gradients. Collective."""
        assert self._ddp is not None
        loss: Tensor = self._ddp(features, labels)
        self._missing = len(self._slots)
        with self._after_last_gradient:
            loss.backward()
        weights = {key: self._weights[key] for key in self._slots}
        self.meter.count_average(sum(weight.numel() for weight in weights.values()), self.ranks)
        self._update(gradients_of(weights), lr, trained)
        self._ddp.zero_grad(set_to_none=True)
        return loss.detach()

    def _average(self) -> None:
        """Average running statistics, the only things that differ. Collective."""
        for tensor in self._running_statistics():
            dist.all_reduce(tensor)
            tensor /= self.ranks
            self.meter.count_average(tensor.numel(), self.ranks)


class _Loss(nn.Module):
    """The loss of a batch as a module, which is what DDP wraps; `trained` are its parameters."""

    def __init__(self, model: Model, weights: dict[str, Tensor], trained: list[str]) -> None:
        super().__init__()
        self._model, self._weights = model, weights
        self.trained = nn.ParameterList(weights[key] for key in trained)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of a batch, with autograd's graph."""
        return self._model.loss(self._weights, features, labels)


def join(comm: "MPI.Comm", silence_s: float) -> None:
    """Make the ranks a process group of gloo's, once, which lasts to the end. Collective.

    Rank 0 waits for the others at a free port of MASTER_ADDR, or of the address that leads to
    another host, and gloo uses GLOO_SOCKET_IFNAME, or the interface of that address. Raises
    `AgreedInputError` if the ranks cannot find each other.
    """
    if dist.is_initialized():
        return
    rank, ranks, timeout = comm.Get_rank(), comm.Get_size(), timedelta(seconds=silence_s)
    names = comm.allgather(socket.gethostname())
    address = on_root(comm, lambda: _address_for_others(names))
    store = None
    if rank == 0:
        store = dist.TCPStore(address, 0, ranks, True, timeout, wait_for_workers=False)
    port = comm.bcast(store.port if store is not None else 0)
    made = store
    store = together(comm, lambda: made or _connected(address, port, ranks, timeout))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", together(comm, lambda: _interface_to(address)))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timeout)
    atexit.register(dist.destroy_process_group)


def _address_for_others(names: list[str]) -> str:
    """Where other hosts reach this one, that of the first of `names`; if there are none, here."""
    given = os.environ.get("MASTER_ADDR")
    if given:
        return given
    others = [name for name in names if name != names[0]]
    return _own_address_towards(others[0]) if others else _LOOPBACK


def _own_address_towards(host: str) -> str:
    """The address of this host from which the way to another one starts; nothing is sent."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, _ANY_PORT))
            return str(probe.getsockname()[0])
    except OSError as error:
        raise InputError(
            f"ddp: {socket.gethostname()} finds no way to {host} ({error}); set MASTER_ADDR to an "
            "address of rank 0's host that all others reach"
        ) from None


def _interface_to(host: str) -> str:
    """The name of the interface from which the way to a host starts."""
    own = _own_address_towards(host)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # one without an address
                request = struct.pack("256s", name.encode()[:15])
                found = fcntl.ioctl(asking.fileno(), _SIOCGIFADDR, request)[20:24]
                if socket.inet_ntoa(found) == own:
                    return name
    raise InputError(
        f"ddp: no interface of {socket.gethostname()} has the address {own}; set "
        "GLOO_SOCKET_IFNAME to the one that leads to the other hosts"
    )


def _connected(address: str, port: int, ranks: int, timeout: timedelta) -> dist.TCPStore:
    try:
        return dist.TCPStore(address, port, ranks, False, timeout)
    except RuntimeError as error:
        raise InputError(
            f"ddp: {socket.gethostname()} cannot reach rank 0 at {address}, port {port} "
            f"({str(error).splitlines()[0]}); set MASTER_ADDR to an address of its host that all "
            "others reach"
        ) from None

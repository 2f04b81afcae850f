"""PyTorch's DistributedDataParallel over gloo: a baseline from neither Horovod nor us."""

import atexit
import os
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ist_hpc.common.errors import InputError
from ist_hpc.data.sparse_rows import Rows
from ist_hpc.models.base import Model
from ist_hpc.models.local_step import LocalStep
from ist_hpc.models.optimizer import Optimizer
from ist_hpc.runtime.launch import check_on_all, on_root
from ist_hpc.runtime.sockets import (
    Target,
    failures_to,
    family_of,
    interfaces,
    inventory,
    listening,
    reason_of,
    resolved,
    stays_here,
)
from ist_hpc.training.algorithms.replicas import Replicas, gradients_of

if TYPE_CHECKING:
    from mpi4py import MPI

Result = TypeVar("Result")
_OF_DEVICES = ("GLOO_DEVICE_TRANSPORT", "TORCH_GLOO_LAZY_INIT")
_LOOPBACK = "127.0.0.1"
_ANY_PORT = 9  # nothing is sent to it
_LOOKS = 4  # resolve a name and try connections, twice each: together within the silence
_LONGEST_LOOK_S = 10.0


class Ddp(Replicas):
    """DistributedDataParallel around the model's loss, with this package's optimisers.

    Gradients are averaged during the backward pass. `average` counts the seconds from this rank's
    last gradient to the end of the pass: copying it into its bucket and waiting for the averages.
    Processor time that the averaging uses before is in `train`.

    silence_s  seconds after which a rank that waits for another raises
    """

    def __init__(
        self,
        comm: "MPI.Comm",
        model: Model,
        optimizer: Optimizer,
        seed: int,
        carry: bool,
        silence_s: float,
    ) -> None:
        assert model.differentiable
        super().__init__(comm, model, optimizer, torch.device("cpu"), seed, carry)
        if self.ranks > 1:
            join(comm, silence_s)
        self._ddp: DistributedDataParallel | None = None
        self._missing = 0
        self._after_last_gradient = ExitStack()

    def _wrap(self) -> None:
        """Make the weights parameters of DDP, which gives rank 0's to all ranks. Collective."""
        if self.ranks == 1:
            return
        for key in self._slots:
            parameter = nn.Parameter(self._weights[key])  # the same memory
            parameter.register_hook(self._on_gradient)
            self._weights[key] = parameter
        loss = _Loss(self.model, self._weights, list(self._slots))
        self._ddp = DistributedDataParallel(loss, gradient_as_bucket_view=True)

    def _on_gradient(self, gradient: Tensor) -> None:
        """Called when a gradient is computed, before DDP sees it."""
        self._missing -= 1
        if not self._missing:
            self._after_last_gradient.enter_context(self.meter.timing("average"))

    def _step(self, features: Rows, labels: Rows, lr: float, trained: int) -> Tensor:
        """A step on the mean of the ranks' gradients. Collective."""
        assert self._ddp is not None
        loss: Tensor = self._ddp(features, labels, self._local_step(trained))
        self._missing = len(self._slots)
        with self._after_last_gradient:
            loss.backward()
        weights = {key: self._weights[key] for key in self._slots}
        self.meter.count_average(sum(weight.numel() for weight in weights.values()), self.ranks)
        self._update(gradients_of(weights), lr, trained)
        self._ddp.zero_grad(set_to_none=True)
        return loss.detach()

    def _average(self) -> None:
        """Average running statistics; nothing else differs. Collective."""
        for tensor in self._running_statistics():
            dist.all_reduce(tensor)
            tensor /= self.ranks
            self.meter.count_average(tensor.numel(), self.ranks)


class _Loss(nn.Module):
    """The loss of a batch as a module for DDP to wrap; `trained` are its parameters."""

    def __init__(self, model: Model, weights: dict[str, Tensor], trained: list[str]) -> None:
        super().__init__()
        self._model, self._weights = model, weights
        self.trained = nn.ParameterList(weights[key] for key in trained)

    def forward(self, features: Tensor, labels: Tensor, step: LocalStep) -> Tensor:
        """Mean loss of a batch, with autograd's graph."""
        return self._model.loss(self._weights, features, labels, step)


def join(comm: "MPI.Comm", silence_s: float) -> None:
    """Make the ranks a gloo process group, once, until the end of the process. Collective.

    Rank 0 waits for the others at a free port of MASTER_ADDR, or of the address that leads to
    another host, and gloo uses GLOO_SOCKET_IFNAME, or the interface of that address. This function
    tries all of these first, because torch would report errors late and as frames of C++. Raises
    `AgreedInputError` if the ranks cannot find each other.
    """
    if dist.is_initialized():
        return
    rank, ranks, timeout = comm.Get_rank(), comm.Get_size(), timedelta(seconds=silence_s)
    address = _checked_way(comm, min(silence_s / _LOOKS, _LONGEST_LOOK_S))

    def store_at(port: int) -> dist.TCPStore:
        return _said(
            lambda: dist.TCPStore(address, port, ranks, rank == 0, timeout, wait_for_workers=False)
        )

    made = check_on_all(comm, lambda: store_at(0) if rank == 0 else None)
    port = comm.bcast(made.port if made is not None else 0)
    store = check_on_all(comm, lambda: made or store_at(port))
    check_on_all(
        comm,
        lambda: _said(
            lambda: dist.init_process_group(
                "gloo", store=store, rank=rank, world_size=ranks, timeout=timeout
            )
        ),
    )
    atexit.register(_leave)


def _leave() -> None:
    with suppress(RuntimeError):  # another rank has ended first
        dist.destroy_process_group()


def _said(action: Callable[[], Result]) -> Result:
    """Call torch; turn its error into an `InputError`, without frames of C++."""
    try:
        return action()
    except (RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"ddp: torch cannot bring the ranks together on {socket.gethostname()} ({reason}); "
            "see which of MASTER_ADDR, GLOO_... and TORCH_... the environment has, and unset them"
        ) from None


def _checked_way(comm: "MPI.Comm", within_s: float) -> str:
    """Where this rank reaches rank 0; sets GLOO_SOCKET_IFNAME for gloo. Collective.

    Tries what the environment says: it looks up names and interfaces, and connects from every host
    to rank 0's and to every interface that gloo will use. A rank waits at most four times
    `within_s`. Raises `AgreedInputError`.
    """
    check_on_all(comm, _refuse_debugging)
    hosts = comm.allgather(socket.gethostname())
    given, own = on_root(comm, lambda: _address_of_rank_0(hosts, within_s))
    with check_on_all(comm, _listener) as listener:
        ports = comm.allgather(listener.getsockname()[1])
        address = check_on_all(comm, lambda: _reached(given, own, ports[0], hosts, within_s))
        used = check_on_all(comm, lambda: _interfaces_for_gloo(address, hosts, within_s))
        places = comm.allgather([(name, of_it) for name, of_it in used])
        check_on_all(comm, lambda: _refuse_unlike(places, hosts))
        check_on_all(comm, lambda: _refuse_unreached(places, ports, hosts, within_s))
    os.environ["GLOO_SOCKET_IFNAME"] = ",".join(name for name, _ in used)
    return address


def _listener() -> socket.socket:
    try:
        return listening()
    except OSError as error:
        raise InputError(
            f"ddp: {socket.gethostname()} lets no port be listened at ({reason_of(error)})"
        ) from None


def _refuse_debugging() -> None:
    if dist.get_debug_level() == dist.DebugLevel.DETAIL:
        raise InputError(
            "ddp: TORCH_DISTRIBUTED_DEBUG is DETAIL, with which torch's own checks of gloo end in "
            "a segmentation fault; set it to INFO or OFF, or unset it"
        )


def _address_of_rank_0(hosts: list[str], within_s: float) -> tuple[str, str]:
    """On rank 0: the address where other hosts look for it, and its address to itself."""
    given = os.environ.get("MASTER_ADDR", "").strip()
    others = [name for name in hosts if name != hosts[0]]
    if not given:
        own = _own_address_towards(others[0], within_s) if others else _LOOPBACK
        return own, own
    said = f"ddp: MASTER_ADDR is {given}, which"
    advice = "unset it, or set it to an address of that host that all others reach"
    try:
        addresses = resolved(given, within_s)
    except OSError as error:
        raise InputError(
            f"{said} {hosts[0]}, where rank 0 is, cannot resolve ({reason_of(error)}); {advice}"
        ) from None
    for address in addresses:
        with suppress(OSError), socket.socket(family_of(address), socket.SOCK_STREAM) as trying:
            trying.bind((address, 0))
            return given, address
    found = f" ({addresses[0]})" if addresses[0] != given else ""
    raise InputError(
        f"{said}{found} is no address of {hosts[0]}, where rank 0 is; it has {inventory()}; "
        f"{advice}"
    )


def _reached(given: str, own: str, port: int, hosts: list[str], within_s: float) -> str:
    """The first address at which this rank reaches rank 0's port."""
    here = socket.gethostname()
    set_by = f"which MASTER_ADDR ({given}) gives" if os.environ.get("MASTER_ADDR") else "its own"
    advice = f"set MASTER_ADDR to an address of {hosts[0]} that all others reach"
    try:
        addresses = [own] if here == hosts[0] else resolved(given, within_s)
    except OSError as error:
        raise InputError(
            f"ddp: MASTER_ADDR is {given}, which {here} cannot resolve ({reason_of(error)}); "
            f"{advice}"
        ) from None
    failures = failures_to({(address, port) for address in addresses}, within_s)
    for address in addresses:
        if (address, port) not in failures:
            return address
    raise InputError(
        f"ddp: {here} cannot reach rank 0 on {hosts[0]} at {addresses[0]}, {set_by}, port {port} "
        f"({failures[addresses[0], port]}); {advice}"
    )


def _interfaces_for_gloo(address: str, hosts: list[str], within_s: float) -> list[tuple[str, str]]:
    """Name and address of the interfaces in GLOO_SOCKET_IFNAME, or of the one that leads there."""
    for key in _OF_DEVICES:
        if not os.environ.get(key, "unset").strip():
            del os.environ[key]
    here, found_here = socket.gethostname(), interfaces()
    given = os.environ.get("GLOO_SOCKET_IFNAME", "")
    names = [name.strip() for name in given.split(",") if name.strip()]
    if not names:
        others = [name for name in hosts if name != here]
        leads_out = not (others and stays_here(address))
        own = _own_address_towards(address if leads_out else others[0], within_s)
        names = [name for name, found in found_here.items() if own in found.addresses][:1]
        if not names:
            raise InputError(
                f"ddp: no interface of {here} has the address {own}; it has {inventory()}; set "
                "GLOO_SOCKET_IFNAME to the one that leads to the other hosts"
            )
    advice = "unset it, or name an interface that leads to the other hosts"
    chosen = []
    for name in names:
        found = found_here.get(name)
        wrong = (
            "there is none of that name"
            if found is None
            else f"{name} is down"
            if not found.up
            else f"{name} has no address"
            if not found.addresses
            else "it leads to no other host"
            if stays_here(found.addresses[0]) and len(set(hosts)) > 1
            else ""
        )
        if wrong or found is None:
            raise InputError(
                f"ddp: GLOO_SOCKET_IFNAME is {given} on {here}, but {wrong}; {here} has "
                f"{inventory()}; {advice}"
            )
        try:
            dist.ProcessGroupGloo.create_device(interface=name)
        except RuntimeError as error:
            set_to = [f"{key} is {os.environ[key]}" for key in _OF_DEVICES if key in os.environ]
            said = f"{' and '.join(set_to)}, and " if set_to else ""
            raise InputError(
                f"ddp: {said}gloo cannot use {name} of {here} ({str(error).splitlines()[0]}); "
                + (f"unset {' and '.join(_OF_DEVICES)}" if set_to else advice)
            ) from None
        chosen.append((name, found.addresses[0]))
    return chosen


def _refuse_unlike(places: list[list[tuple[str, str]]], hosts: list[str]) -> None:
    """Gloo makes one connection per interface, between addresses of one family."""
    kinds = [[family_of(address).name for _, address in used] for used in places]
    for rank, kind in enumerate(kinds):
        if kind != kinds[0]:
            first, other = (
                f"{', '.join(f'{name} ({address})' for name, address in places[which])} on "
                f"{hosts[which]}"
                for which in (0, rank)
            )
            raise InputError(
                f"ddp: GLOO_SOCKET_IFNAME gives {first}, but {other}: as many interfaces, with "
                "addresses of the same family, are wanted on every host"
            )


def _refuse_unreached(
    places: list[list[tuple[str, str]]], ports: list[int], hosts: list[str], within_s: float
) -> None:
    """Connect to one rank of every other host, and to one of this host, at each interface."""
    here = socket.gethostname()
    targets: dict[Target, tuple[str, str]] = {}
    seen = set()
    for used, port, host in zip(places, ports, hosts, strict=True):
        for name, address in used:
            if (host, address) not in seen:
                seen.add((host, address))
                targets[address, port] = (host, name)
    for (address, port), reason in failures_to(targets, within_s).items():
        host, name = targets[address, port]
        raise InputError(
            f"ddp: {here} cannot reach {host} at {address}, port {port}, on {name}, which gloo "
            f"would use ({reason}); set GLOO_SOCKET_IFNAME to interfaces between which all hosts "
            "reach each other"
        )


def _own_address_towards(host: str, within_s: float) -> str:
    """This host's address on the route to another host; sends nothing."""
    reason = "no address"
    try:
        for address in resolved(host, within_s):
            try:
                with socket.socket(family_of(address), socket.SOCK_DGRAM) as probe:
                    probe.connect((address, _ANY_PORT))
                    return str(probe.getsockname()[0])
            except OSError as error:
                reason = reason_of(error)
    except OSError as error:
        reason = reason_of(error)
    raise InputError(
        f"ddp: {socket.gethostname()} finds no way to {host} ({reason}); it has {inventory()}; "
        "set MASTER_ADDR to an address of rank 0's host that all others reach, and "
        "GLOO_SOCKET_IFNAME to the interface that leads to the other hosts"
    )

"""PyTorch's DistributedDataParallel over gloo: a baseline that is not Horovod's, nor ours."""

import atexit
import ctypes
import fcntl
import ipaddress
import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

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

Result = TypeVar("Result")
_Target = tuple[str, int]  # address and port

_SIOCGIFCONF = 0x8912  # Linux: the IPv4 addresses of all interfaces
_SIOCGIFFLAGS = 0x8913
_IFF_UP = 1
_IFREQ = "16s16x8x"  # struct ifreq: a name, and here an address
_OF_DEVICES = ("GLOO_DEVICE_TRANSPORT", "TORCH_GLOO_LAZY_INIT")
_IPV6_ADDRESSES = Path("/proc/net/if_inet6")
_LINK_LOCAL_SCOPE = 0x20
_LOOPBACK = "127.0.0.1"
_ANY_PORT = 9  # nothing is sent to it
_LOOKS = 4  # resolving a name and trying connections, twice each: together within the silence
_LONGEST_LOOK_S = 10.0


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
    another host, and gloo uses GLOO_SOCKET_IFNAME, or the interface of that address. All of it is
    tried before torch is asked, which would tell by frames of C++, and late. Raises
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

    made = together(comm, lambda: store_at(0) if rank == 0 else None)
    port = comm.bcast(made.port if made is not None else 0)
    store = together(comm, lambda: made or store_at(port))
    together(
        comm,
        lambda: _said(
            lambda: dist.init_process_group(
                "gloo", store=store, rank=rank, world_size=ranks, timeout=timeout
            )
        ),
    )
    atexit.register(_leave)


def _leave() -> None:
    with suppress(RuntimeError):  # another rank has gone first
        dist.destroy_process_group()


def _said(action: Callable[[], Result]) -> Result:
    """Do something of torch's; what is wrong with it is an `InputError`, without frames of C++."""
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

    Whatever the environment says is tried: names and interfaces are looked up, and from every host
    a connection is made to rank 0's and to every interface that gloo will use. A rank waits four
    times `within_s` at most. Raises `AgreedInputError`.
    """
    together(comm, _refuse_debugging)
    hosts = comm.allgather(socket.gethostname())
    given, own = on_root(comm, lambda: _address_of_rank_0(hosts, within_s))
    with together(comm, _listening) as listener:
        ports = comm.allgather(listener.getsockname()[1])
        address = together(comm, lambda: _reached(given, own, ports[0], hosts, within_s))
        used = together(comm, lambda: _interfaces_for_gloo(address, hosts, within_s))
        places = comm.allgather([(name, of_it) for name, of_it in used])
        together(comm, lambda: _refuse_unlike(places, hosts))
        together(comm, lambda: _refuse_unreached(places, ports, hosts, within_s))
    os.environ["GLOO_SOCKET_IFNAME"] = ",".join(name for name, _ in used)
    return address


def _refuse_debugging() -> None:
    if dist.get_debug_level() == dist.DebugLevel.DETAIL:
        raise InputError(
            "ddp: TORCH_DISTRIBUTED_DEBUG is DETAIL, with which torch's own checks of gloo end in "
            "a segmentation fault; set it to INFO or OFF, or unset it"
        )


def _address_of_rank_0(hosts: list[str], within_s: float) -> tuple[str, str]:
    """Where other hosts look for rank 0, which this is, and its address to itself."""
    given = os.environ.get("MASTER_ADDR", "").strip()
    others = [name for name in hosts if name != hosts[0]]
    if not given:
        own = _own_address_towards(others[0], within_s) if others else _LOOPBACK
        return own, own
    said = f"ddp: MASTER_ADDR is {given}, which"
    advice = "unset it, or set it to an address of that host that all others reach"
    try:
        addresses = _resolved(given, within_s)
    except OSError as error:
        raise InputError(
            f"{said} {hosts[0]}, where rank 0 is, cannot resolve ({_reason(error)}); {advice}"
        ) from None
    for address in addresses:
        with suppress(OSError), socket.socket(_family(address), socket.SOCK_STREAM) as trying:
            trying.bind((address, 0))
            return given, address
    found = f" ({addresses[0]})" if addresses[0] != given else ""
    raise InputError(
        f"{said}{found} is no address of {hosts[0]}, where rank 0 is; it has {_inventory()}; "
        f"{advice}"
    )


def _reached(given: str, own: str, port: int, hosts: list[str], within_s: float) -> str:
    """The first address at which this rank reaches rank 0's port."""
    here = socket.gethostname()
    set_by = f"which MASTER_ADDR ({given}) gives" if os.environ.get("MASTER_ADDR") else "its own"
    advice = f"set MASTER_ADDR to an address of {hosts[0]} that all others reach"
    try:
        addresses = [own] if here == hosts[0] else _resolved(given, within_s)
    except OSError as error:
        raise InputError(
            f"ddp: MASTER_ADDR is {given}, which {here} cannot resolve ({_reason(error)}); {advice}"
        ) from None
    failures = _failures({(address, port) for address in addresses}, within_s)
    for address in addresses:
        if (address, port) not in failures:
            return address
    raise InputError(
        f"ddp: {here} cannot reach rank 0 on {hosts[0]} at {addresses[0]}, {set_by}, port {port} "
        f"({failures[addresses[0], port]}); {advice}"
    )


def _interfaces_for_gloo(address: str, hosts: list[str], within_s: float) -> list[tuple[str, str]]:
    """Name and address of those that GLOO_SOCKET_IFNAME names, or of the one that leads there."""
    for key in _OF_DEVICES:
        if not os.environ.get(key, "unset").strip():
            del os.environ[key]
    here, interfaces = socket.gethostname(), _interfaces()
    given = os.environ.get("GLOO_SOCKET_IFNAME", "")
    names = [name.strip() for name in given.split(",") if name.strip()]
    if not names:
        others = [name for name in hosts if name != here]
        leads_out = not (others and _stays_here(address))
        own = _own_address_towards(address if leads_out else others[0], within_s)
        names = [name for name, found in interfaces.items() if own in found.addresses][:1]
        if not names:
            raise InputError(
                f"ddp: no interface of {here} has the address {own}; it has {_inventory()}; set "
                "GLOO_SOCKET_IFNAME to the one that leads to the other hosts"
            )
    advice = "unset it, or name an interface that leads to the other hosts"
    chosen = []
    for name in names:
        found = interfaces.get(name)
        wrong = (
            "there is none of that name"
            if found is None
            else f"{name} is down"
            if not found.up
            else f"{name} has no address"
            if not found.addresses
            else "it leads to no other host"
            if _stays_here(found.addresses[0]) and len(set(hosts)) > 1
            else ""
        )
        if wrong or found is None:
            raise InputError(
                f"ddp: GLOO_SOCKET_IFNAME is {given} on {here}, but {wrong}; {here} has "
                f"{_inventory()}; {advice}"
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
    """Gloo's connections are one for each interface, between addresses of one family."""
    kinds = [[_family(address).name for _, address in used] for used in places]
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
    """Try a connection to one rank of every other host, and to one of this, at each interface."""
    here = socket.gethostname()
    targets: dict[_Target, tuple[str, str]] = {}
    seen = set()
    for used, port, host in zip(places, ports, hosts, strict=True):
        for name, address in used:
            if (host, address) not in seen:
                seen.add((host, address))
                targets[address, port] = (host, name)
    for (address, port), reason in _failures(targets, within_s).items():
        host, name = targets[address, port]
        raise InputError(
            f"ddp: {here} cannot reach {host} at {address}, port {port}, on {name}, which gloo "
            f"would use ({reason}); set GLOO_SOCKET_IFNAME to interfaces between which all hosts "
            "reach each other"
        )


def _failures(targets: Collection[_Target], within_s: float) -> dict[_Target, str]:
    """Why connections to some addresses cannot be made; those left out can. Local."""
    failures = {}
    with ExitStack() as opened, selectors.DefaultSelector() as waiting:
        for target in targets:
            try:
                trying = socket.socket(_family(target[0]), socket.SOCK_STREAM)
                opened.enter_context(trying).setblocking(False)
                trying.connect(target)
            except BlockingIOError:
                waiting.register(trying, selectors.EVENT_WRITE, (trying, target))
            except OSError as error:
                failures[target] = _reason(error)
        end_s = time.monotonic() + within_s
        while waiting.get_map() and (left_s := end_s - time.monotonic()) > 0:
            for key, _ in waiting.select(left_s):
                trying, target = key.data
                waiting.unregister(trying)
                if code := trying.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    failures[target] = os.strerror(code)
        for key in waiting.get_map().values():
            failures[key.data[1]] = f"no answer within {within_s:g} s"
    return failures


def _listening() -> socket.socket:
    """A socket at a free port of all addresses; connections to it are made without being taken."""
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(
                ("::", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=socket.SOMAXCONN
            )
        return socket.create_server(("", 0), backlog=socket.SOMAXCONN)
    except OSError as error:
        raise InputError(
            f"ddp: {socket.gethostname()} lets no port be listened at ({_reason(error)})"
        ) from None


def _own_address_towards(host: str, within_s: float) -> str:
    """The address of this host from which the way to another one starts; nothing is sent."""
    reason = "no address"
    try:
        for address in _resolved(host, within_s):
            try:
                with socket.socket(_family(address), socket.SOCK_DGRAM) as probe:
                    probe.connect((address, _ANY_PORT))
                    return str(probe.getsockname()[0])
            except OSError as error:
                reason = _reason(error)
    except OSError as error:
        reason = _reason(error)
    raise InputError(
        f"ddp: {socket.gethostname()} finds no way to {host} ({reason}); it has {_inventory()}; "
        "set MASTER_ADDR to an address of rank 0's host that all others reach, and "
        "GLOO_SOCKET_IFNAME to the interface that leads to the other hosts"
    )


def _resolved(host: str, within_s: float) -> list[str]:
    """The addresses of a host, IPv4 first; `OSError` if there are none or no answer comes."""
    found: list[str] = []
    failure: list[OSError] = []

    def resolve() -> None:
        try:
            answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except UnicodeError:
            failure.append(OSError("no name of a host"))
        except OSError as error:
            failure.append(error)
        else:
            answers.sort(key=lambda answer: answer[0] != socket.AF_INET)
            found.extend(dict.fromkeys(str(answer[4][0]) for answer in answers))

    # A name server that does not answer is asked again and again, and nothing interrupts that.
    thread = threading.Thread(target=resolve, name="resolver", daemon=True)
    thread.start()
    thread.join(within_s)
    if failure:
        raise failure[0]
    if not found:
        raise OSError(f"no answer within {within_s:g} s")
    return list(found)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _stays_here(address: str) -> bool:
    """Whether it is an address by which a host reaches itself alone."""
    parsed = ipaddress.ip_address(address)
    return parsed.is_loopback or parsed.is_unspecified


@dataclass
class _Interface:
    """addresses: those that lead further than one link, IPv4 first; gloo uses the first."""

    up: bool
    addresses: list[str]


def _interfaces() -> dict[str, _Interface]:
    """The interfaces of this host by name, a label of a further address too. Linux."""
    found = {name: _Interface(False, []) for _, name in socket.if_nameindex()}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        size = 256 * struct.calcsize(_IFREQ)
        room = bytearray(size)
        place = (ctypes.c_char * size).from_buffer(room)
        asked = bytearray(struct.pack("iL", size, ctypes.addressof(place)))
        fcntl.ioctl(asking.fileno(), _SIOCGIFCONF, asked)
        (filled,) = struct.unpack_from("i", asked)
        for at in range(0, filled, struct.calcsize(_IFREQ)):
            name = os.fsdecode(bytes(room[at : at + 16]).partition(b"\0")[0])
            address = socket.inet_ntoa(bytes(room[at + 20 : at + 24]))
            found.setdefault(name, _Interface(False, [])).addresses.append(address)
        with suppress(OSError):  # a kernel without IPv6
            for line in _IPV6_ADDRESSES.read_text().splitlines():
                digits, _, _, scope, _, name = line.split()
                if int(scope, 16) != _LINK_LOCAL_SCOPE and name in found:
                    address = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))
                    found[name].addresses.append(address)
        for name, interface in found.items():
            with suppress(OSError):  # it has just gone
                request = struct.pack("40s", os.fsencode(name)[:15])
                answer = fcntl.ioctl(asking.fileno(), _SIOCGIFFLAGS, request)
                interface.up = bool(struct.unpack_from("H", answer, 16)[0] & _IFF_UP)
    return found


def _inventory() -> str:
    """The interfaces of this host for a message."""
    return ", ".join(
        f"{name} ({interface.addresses[0] if interface.addresses else 'no address'}"
        f"{'' if interface.up else ', down'})"
        for name, interface in _interfaces().items()
    )

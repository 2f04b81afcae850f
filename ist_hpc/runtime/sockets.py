"""The network of this host: its interfaces, resolved names, and who can be reached. Local."""

import ipaddress
import os
import selectors
import socket
import threading
import time
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass

import psutil

Target = tuple[str, int]
"""Address and port."""


@dataclass(frozen=True)
class Interface:
    """addresses: those that reach beyond one link, IPv4 first."""

    up: bool
    addresses: tuple[str, ...]


def interfaces() -> dict[str, Interface]:
    """The interfaces of this host by name, also by the label of a further address."""
    states = psutil.net_if_stats()
    found = {name: Interface("up" in state.flags.split(","), ()) for name, state in states.items()}
    for name, entries in psutil.net_if_addrs().items():
        of = [
            entry.address
            for family in (socket.AF_INET, socket.AF_INET6)
            for entry in entries
            if entry.family == family and "%" not in entry.address  # on one link only
        ]
        device = found.get(name.partition(":")[0])
        found[name] = Interface(device is not None and device.up, tuple(of))
    return found


def inventory() -> str:
    """The interfaces of this host for a message."""
    return ", ".join(
        f"{name} ({interface.addresses[0] if interface.addresses else 'no address'}"
        f"{'' if interface.up else ', down'})"
        for name, interface in interfaces().items()
    )


def failures_to(targets: Collection[Target], within_s: float) -> dict[Target, str]:
    """Why connections to some addresses fail; the others succeed. Local."""
    failures = {}
    with ExitStack() as opened, selectors.DefaultSelector() as waiting:
        for target in targets:
            try:
                trying = socket.socket(family_of(target[0]), socket.SOCK_STREAM)
                opened.enter_context(trying).setblocking(False)
                trying.connect(target)
            except BlockingIOError:
                waiting.register(trying, selectors.EVENT_WRITE, (trying, target))
            except OSError as error:
                failures[target] = reason_of(error)
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


def listening() -> socket.socket:
    """A socket at a free port of all addresses; raises OSError.

    Connections to it succeed without being accepted.
    """
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("::", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=socket.SOMAXCONN
        )
    return socket.create_server(("", 0), backlog=socket.SOMAXCONN)


def resolved(host: str, within_s: float) -> list[str]:
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

    # The library asks a name server that does not answer again and again, without interruption.
    thread = threading.Thread(target=resolve, name="resolver", daemon=True)
    thread.start()
    thread.join(within_s)
    if failure:
        raise failure[0]
    if not found:
        raise OSError(f"no answer within {within_s:g} s")
    return list(found)


def reason_of(error: OSError) -> str:
    """The system's message."""
    return error.strerror or str(error)


def family_of(address: str) -> socket.AddressFamily:
    """IPv4 or IPv6."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def stays_here(address: str) -> bool:
    """Whether a host reaches only itself by this address."""
    parsed = ipaddress.ip_address(address)
    return parsed.is_loopback or parsed.is_unspecified

"""The buffers of an exchange: where weights are packed, and what MPI is given of it.

On the CPU they are the same memory; so they are on a GPU whose memory MPI can read
(`exchange.cuda_aware`). Else what was packed on the GPU is copied to pinned memory, which MPI sends
from and receives into.
"""

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ist_hpc.exchange.plan import with_slack
from ist_hpc.runtime.devices import synchronise

MpiBuffer = npt.NDArray[np.float32] | Tensor
"""What mpi4py takes, flat float32: an array, or a tensor on a GPU (`__cuda_array_interface__`)."""


class Staging(ABC):
    """Buffers that are kept from exchange to exchange, since fresh pages cost as much as a copy.

    A chunk is packed while the one before it is on its way, so what MPI holds is there twice: its
    slot is 0 or 1, by turns. The order is that of the exchange: `packing` and `outgoing` of a slot,
    then `receiving`; when MPI is done with it, `arrived`, which comes before the slot's next turn.
    `held_bytes.exchange_buffers` says beforehand how large all of them will be.

    device    where weights are packed and unpacked
    buffers   those that are kept, by name
    overlaps  whether MPI can be given the buffers in a call that does not block
    """

    overlaps = True

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.buffers: dict[str, Tensor] = {}

    @abstractmethod
    def packing(self, slot: int, elements: int) -> Tensor:
        """Where to pack so many float32; flat, on the device."""

    @abstractmethod
    def outgoing(self, slot: int, packed: Tensor) -> MpiBuffer:
        """What MPI is to send when `packed`, of `packing`, has been filled."""

    @abstractmethod
    def receiving(self, slot: int, elements: int) -> MpiBuffer:
        """What MPI is to receive into."""

    @abstractmethod
    def arrived(self, slot: int, elements: int) -> Tensor:
        """What was received; flat, on the device, until the next `packing` or `arrived`."""

    def _kept(self, name: str, elements: int, at: torch.device, pinned: bool = False) -> Tensor:
        """The buffer of a name, flat float32.

        It grows a little beyond what is asked for: counts differ from round to round, and a buffer
        that grew by a few bytes each time would be fresh each time.
        """
        buffer = self.buffers.get(name)
        if buffer is None or buffer.numel() < elements:
            self.buffers.pop(name, None)
            del buffer  # the old one goes before the new one is there
            buffer = torch.empty(with_slack(elements), device=at, pin_memory=pinned)
            self.buffers[name] = buffer
        return buffer[:elements]


class InPlace(Staging):
    """MPI sends what was packed and receives what is unpacked.

    On a GPU the call has to block: Open MPI takes device memory in sends, receives and blocking
    collectives, not in the others (open-mpi.org/faq/?category=runcuda).
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.overlaps = device.type == "cpu"

    def packing(self, slot: int, elements: int) -> Tensor:
        """The send buffer of the slot."""
        return self._kept(f"send{slot}", elements, self.device)

    def outgoing(self, slot: int, packed: Tensor) -> MpiBuffer:
        """The same."""
        return self._as_mpi_takes_it(packed)

    def receiving(self, slot: int, elements: int) -> MpiBuffer:
        """The receive buffer of the slot."""
        return self._as_mpi_takes_it(self.arrived(slot, elements))

    def arrived(self, slot: int, elements: int) -> Tensor:
        """The same."""
        return self._kept(f"receive{slot}", elements, self.device)

    def _as_mpi_takes_it(self, buffer: Tensor) -> MpiBuffer:
        if self.device.type == "cpu":
            return buffer.numpy()
        synchronise(self.device)  # MPI knows nothing of the order of the GPU's work
        return buffer


class ThroughHost(Staging):
    """Packed on the device, copied to the host for MPI, and back; the device has one buffer.

    One is enough: what was packed has left it before anything that arrived is copied in, and the
    device does what it is given in that order. The host's buffers of a slot are free when its turn
    comes again, since each `outgoing` waits for all that the device was given before.
    """

    def packing(self, slot: int, elements: int) -> Tensor:
        """The buffer on the device."""
        return self._kept("device", elements, self.device)

    def outgoing(self, slot: int, packed: Tensor) -> MpiBuffer:
        """A copy on the host, complete."""
        host = self._on_host(f"send{slot}", packed.numel())
        host.copy_(packed, non_blocking=True)
        synchronise(self.device)
        return host.numpy()

    def receiving(self, slot: int, elements: int) -> MpiBuffer:
        """The slot's memory on the host."""
        return self._on_host(f"receive{slot}", elements).numpy()

    def arrived(self, slot: int, elements: int) -> Tensor:
        """A copy on the device."""
        landed = self._kept("device", elements, self.device)
        landed.copy_(self._on_host(f"receive{slot}", elements), non_blocking=True)
        return landed

    def _on_host(self, name: str, elements: int) -> Tensor:
        # Only pinned memory is copied at the bus's speed and beside other work. The CPU, for which
        # tests use this class, has no use for it.
        pinned = self.device.type == "cuda"
        return self._kept(name, elements, torch.device("cpu"), pinned)


def staging_of(device: torch.device, cuda_aware: bool) -> Staging:
    """The way for a device; `cuda_aware` says that MPI can read a GPU's memory."""
    return InPlace(device) if device.type == "cpu" or cuda_aware else ThroughHost(device)

"""The buffers of an exchange: where weights are packed, and which memory MPI gets.

On the CPU both are the same memory, and also on a GPU whose memory MPI can read
(`exchange.cuda_aware`). Otherwise data packed on the GPU are copied to pinned memory, which MPI
sends from and receives into.
"""

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ist_hpc.exchange.plan import with_slack
from ist_hpc.runtime.devices import synchronise

MpiBuffer = npt.NDArray[np.float32] | Tensor
"""A buffer for mpi4py, flat float32: an array or a GPU tensor (`__cuda_array_interface__`)."""


class Staging(ABC):
    """Buffers that are kept from exchange to exchange, since fresh pages cost as much as a copy.

    A chunk is packed while the previous one is on its way, so MPI's buffers exist twice: in slots 0
    and 1, used by turns. Calls follow the order of the exchange: `packing` and `outgoing` of a
    slot, then `receiving`; when MPI is done, `arrived`, before the slot is used again.
    `held_bytes.exchange_buffers` computes beforehand how large all of them will be.

    device    where weights are packed and unpacked
    buffers   the buffers kept, by name
    overlaps  whether MPI can use the buffers in a call that does not block
    """

    overlaps = True

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.buffers: dict[str, Tensor] = {}

    @abstractmethod
    def packing(self, slot: int, elements: int) -> Tensor:
        """Where to pack `elements` float32; flat, on the device."""

    @abstractmethod
    def outgoing(self, slot: int, packed: Tensor) -> MpiBuffer:
        """What MPI has to send once `packed`, returned by `packing`, is filled."""

    @abstractmethod
    def receiving(self, slot: int, elements: int) -> MpiBuffer:
        """The memory that MPI receives into."""

    @abstractmethod
    def arrived(self, slot: int, elements: int) -> Tensor:
        """The received data; flat, on the device, valid until the next `packing` or `arrived`."""

    def _kept(self, name: str, elements: int, at: torch.device, pinned: bool = False) -> Tensor:
        """The buffer of this name, flat float32.

        A buffer grows a little beyond `elements`: counts differ from round to round, and a buffer
        that grew by a few bytes each time would have fresh pages each time.
        """
        buffer = self.buffers.get(name)
        if buffer is None or buffer.numel() < elements:
            self.buffers.pop(name, None)
            del buffer  # free the old one before allocating the new one
            buffer = torch.empty(with_slack(elements), device=at, pin_memory=pinned)
            self.buffers[name] = buffer
        return buffer[:elements]


class InPlace(Staging):
    """MPI sends from and receives into the buffers that are packed and unpacked.

    On a GPU the call has to block: Open MPI accepts device memory in sends, receives and blocking
    collectives, not in non-blocking ones (open-mpi.org/faq/?category=runcuda).
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.overlaps = device.type == "cpu"

    def packing(self, slot: int, elements: int) -> Tensor:
        """The send buffer of the slot."""
        return self._kept(f"send{slot}", elements, self.device)

    def outgoing(self, slot: int, packed: Tensor) -> MpiBuffer:
        """The same memory."""
        return self._as_mpi_takes_it(packed)

    def receiving(self, slot: int, elements: int) -> MpiBuffer:
        """The receive buffer of the slot."""
        return self._as_mpi_takes_it(self.arrived(slot, elements))

    def arrived(self, slot: int, elements: int) -> Tensor:
        """The same memory."""
        return self._kept(f"receive{slot}", elements, self.device)

    def _as_mpi_takes_it(self, buffer: Tensor) -> MpiBuffer:
        if self.device.type == "cpu":
            return buffer.numpy()
        synchronise(self.device)  # MPI does not wait for work queued on the GPU
        return buffer


class ThroughHost(Staging):
    """Weights are packed on the device and copied to the host for MPI, and back.

    One buffer on the device is enough: packed data have left it before arrived data are copied in,
    and the device works in that order. The host buffers of a slot are free when its turn comes
    again, since each `outgoing` waits for all earlier work of the device.
    """

    def packing(self, slot: int, elements: int) -> Tensor:
        """The buffer on the device."""
        return self._kept("device", elements, self.device)

    def outgoing(self, slot: int, packed: Tensor) -> MpiBuffer:
        """A complete copy on the host."""
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
        # Only pinned memory is copied at full bus speed and concurrently with other work. The CPU,
        # for which tests use this class, does not need it.
        pinned = self.device.type == "cuda"
        return self._kept(name, elements, torch.device("cpu"), pinned)


def staging_of(device: torch.device, cuda_aware: bool) -> Staging:
    """The staging for a device; `cuda_aware` says that MPI can read a GPU's memory."""
    return InPlace(device) if device.type == "cpu" or cuda_aware else ThroughHost(device)

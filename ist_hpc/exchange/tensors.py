"""The part of a partitioned tensor that one rank holds; copies rectangles in and out of it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ist_hpc.common.blocks import Units
from ist_hpc.common.sizes import ELEMENT_BYTES
from ist_hpc.exchange.geometry import Place, Selection
from ist_hpc.exchange.placement import Placement, TensorSpec
from ist_hpc.exchange.plan import Piece, parts_of_at_most
from ist_hpc.runtime.devices import CPU

_INDICES_AT_ONCE = 1 << 15
_ELEMENTS_AT_ONCE = 1 << 22  # on a GPU, of a temporary copy
_MOVE_BYTES = 4 << 20  # beside the tensors while a piece moves from one to the other


@dataclass
class Held:
    """What one rank holds of one tensor; float32.

    home    the home block, `spec.home_shape`; elements that another rank holds are stale. None
            while every element is in some subnet.
    subnet  the subnet part, `spec.subnet_shape` (as stored); None at home.
    """

    home: Tensor | None = None
    subnet: Tensor | None = None

    def place(self, place: Place) -> Tensor:
        """The home block or the subnet; it must exist."""
        tensor = self.home if place == "home" else self.subnet
        assert tensor is not None, f"no {place} part on this rank"
        return tensor


State = dict[str, Held]
"""All partitioned tensors of one rank, by key."""


def zeros_at(
    specs: Iterable[TensorSpec], placement: Placement, rank: int, device: torch.device = CPU
) -> State:
    """Zero tensors as `rank` holds them in `placement`: optimiser state before the first step."""
    state = {}
    for spec in specs:
        held = Held()
        if placement.keeps_home_block(spec):
            held.home = torch.zeros(spec.home_shape(rank, placement.ranks), device=device)
        if not placement.is_home:
            held.subnet = torch.zeros(placement.subnet_shape(spec, rank), device=device)
        state[spec.key] = held
    return state


def all_finite(values: Tensor) -> bool:
    """Whether no element is NaN or infinite. Local.

    Only the extremes are checked, which needs no further memory: `isfinite` copies the tensor, and
    takes many times as long.
    """
    if not values.numel():
        return True
    return bool(torch.stack(torch.aminmax(values.detach())).isfinite().all())


def state_bytes(state: State) -> int:
    """Bytes of all tensors of a state."""
    parts = (part for held in state.values() for part in (held.home, held.subnet))
    return sum(part.numel() * part.element_size() for part in parts if part is not None)


class Copies(Protocol):
    """How pieces are copied: the lines `major` of a view, and in each line the places `minor`.

    The view has its major dimension first and need not be contiguous. Dimensions of a kernel follow
    these two.
    """

    def take(self, view: Tensor, major: Selection, minor: Selection, out: Tensor) -> None:
        """Copy to `out`, which is contiguous and has the `piece_shape`."""

    def put(self, view: Tensor, major: Selection, minor: Selection, values: Tensor) -> None:
        """Copy `values`, which are contiguous and have the `piece_shape`, to the view."""


class CpuCopies:
    """The fastest ways that torch and numpy have on a CPU, where numpy holds the indices.

    They are 3 to 8 times as fast as plain advanced indexing; docs/results.md has the figures.
    """

    def take(self, view: Tensor, major: Selection, minor: Selection, out: Tensor) -> None:
        """See `Copies`."""
        if isinstance(major, slice) and isinstance(minor, slice):
            out.copy_(view[major, minor])
        elif isinstance(minor, slice):
            torch.index_select(view[:, minor], 0, torch.from_numpy(major), out=out)
        elif isinstance(major, slice):
            torch.index_select(view[major], 1, torch.from_numpy(minor), out=out)
        elif view.dim() == 2 and view.is_contiguous():
            flat, into = view.view(-1).numpy(), out.numpy()
            for lines, index in _flat_indices(major, minor, view.shape[1]):
                np.take(flat, index, out=into[lines], mode="clip")  # no bounds check: they are ours
        else:
            rows = torch.from_numpy(major).unsqueeze(1)
            out.copy_(view[rows, torch.from_numpy(minor)])

    def put(self, view: Tensor, major: Selection, minor: Selection, values: Tensor) -> None:
        """See `Copies`."""
        if isinstance(major, slice) and isinstance(minor, slice):
            view[major, minor].copy_(values)
        elif isinstance(minor, slice):
            view[:, minor].numpy()[major] = values.numpy()
        elif isinstance(major, slice):
            view[major].index_copy_(1, torch.from_numpy(minor), values)
        elif view.dim() == 2 and view.is_contiguous():
            flat = view.view(-1)
            for lines, index in _flat_indices(major, minor, view.shape[1]):
                flat.scatter_(0, torch.from_numpy(index.reshape(-1)), values[lines].reshape(-1))
        else:
            rows = torch.from_numpy(major).unsqueeze(1)
            view.index_put_((rows, torch.from_numpy(minor).unsqueeze(0)), values)


class DeviceCopies:
    """The same with torch alone, on the view's device; the indices are copied to it."""

    def take(self, view: Tensor, major: Selection, minor: Selection, out: Tensor) -> None:
        """See `Copies`."""
        if isinstance(major, slice) and isinstance(minor, slice):
            out.copy_(view[major, minor])
        elif isinstance(minor, slice):
            torch.index_select(view[:, minor], 0, _beside(view, major), out=out)
        elif isinstance(major, slice):
            torch.index_select(view[major], 1, _beside(view, minor), out=out)
        else:
            rows, columns = _beside(view, major).unsqueeze(1), _beside(view, minor)
            # Advanced indexing allocates a new tensor, so copy some lines at a time.
            lines = max(1, _ELEMENTS_AT_ONCE * len(rows) // max(1, out.numel()))
            for part, into in zip(rows.split(lines), out.split(lines), strict=True):
                into.copy_(view[part, columns])

    def put(self, view: Tensor, major: Selection, minor: Selection, values: Tensor) -> None:
        """See `Copies`."""
        if isinstance(major, slice) and isinstance(minor, slice):
            view[major, minor].copy_(values)
        elif isinstance(minor, slice):
            view[:, minor].index_copy_(0, _beside(view, major), values)
        elif isinstance(major, slice):
            view[major].index_copy_(1, _beside(view, minor), values)
        else:
            rows, columns = _beside(view, major).unsqueeze(1), _beside(view, minor).unsqueeze(0)
            view.index_put_((rows, columns), values)


def copies_of(device: torch.device) -> Copies:
    """The way to copy on a device."""
    return CpuCopies() if device.type == "cpu" else DeviceCopies()


def gather(source: Tensor, piece: Piece, out: Tensor, copies: Copies | None = None) -> None:
    """Copy a piece of a home block or subnet into `out`, flat and contiguous, in storage order.

    `out` must be on the tensor's device; `copies` defaults to the way of that device.
    """
    view, major, minor = _in_storage_order(source, piece)
    target = out.view(piece_shape(view, major, minor))
    (copies or copies_of(source.device)).take(view, major, minor, target)


def scatter(target: Tensor, piece: Piece, values: Tensor, copies: Copies | None = None) -> None:
    """The inverse of `gather`: copy flat `values` in storage order to a piece of `target`."""
    view, major, minor = _in_storage_order(target, piece)
    block = values.view(piece_shape(view, major, minor))
    (copies or copies_of(target.device)).put(view, major, minor, block)


def add(target: Tensor, piece: Piece, values: Tensor) -> None:
    """Add flat `values` in storage order to whole rows of a subnet."""
    assert piece.columns == slice(0, piece.spec.columns), "units are added whole"
    rows = row_numbers(piece.rows).to(target.device)
    target.index_add_(0, rows, values.view(len(rows), *target.shape[1:]))


def divide(target: Tensor, by: npt.NDArray[np.int64]) -> None:
    """Divide the rows of a subnet; `by` is int64 [rows], and 1 leaves a row as it is."""
    for row in np.flatnonzero(by > 1).tolist():  # one at a time: no second copy of them all
        target[row].div_(int(by[row]))


def row_numbers(rows: Selection) -> Tensor:
    """Rows as indices, int64, on the CPU."""
    if isinstance(rows, slice):
        return torch.arange(rows.start, rows.stop)
    return torch.from_numpy(rows)


def move(source: Tensor, piece: Piece, target: Tensor, landing: Piece) -> None:
    """Copy a piece of one tensor to the same rectangle of another, through a small buffer."""
    room = min(piece.size, _MOVE_BYTES // ELEMENT_BYTES)
    buffer = torch.empty(max(room, piece.spec.element_width), device=source.device)
    parts = (parts_of_at_most(whole, room) for whole in (piece, landing))
    for taken, put in zip(*parts, strict=True):
        values = buffer[: taken.size]
        gather(source, taken, values)
        scatter(target, put, values)


def _beside(view: Tensor, index: Selection) -> Tensor:
    """The indices, on the device of the view that they select from."""
    assert not isinstance(index, slice), "slices are not copied"
    return torch.from_numpy(index).to(view.device, non_blocking=True)


def _flat_indices(major: Units, minor: Units, width: int) -> Iterator[tuple[slice, Units]]:
    """Flat indices of major x minor in a matrix of `width`, some lines at a time.

    The lines are so few that the indices, twice as large as the data, stay in the cache.
    """
    step = max(1, _INDICES_AT_ONCE // max(1, len(minor)))
    for first in range(0, len(major), step):
        lines = slice(first, first + step)
        yield lines, major[lines, None] * width + minor


def piece_shape(view: Tensor, major: Selection, minor: Selection) -> tuple[int, ...]:
    """Shape of a piece in storage order."""
    sizes = [s.stop - s.start if isinstance(s, slice) else len(s) for s in (major, minor)]
    return (*sizes, *view.shape[2:])


def _in_storage_order(tensor: Tensor, piece: Piece) -> tuple[Tensor, Selection, Selection]:
    """The tensor with its major dimension first, and the piece's selections in that order."""
    view = tensor if tensor.dim() > 1 else tensor.unsqueeze(1)
    if not piece.spec.transposed:
        return view, piece.rows, piece.columns
    # A subnet of a transposed tensor is stored that way; a home block keeps the logical order.
    view = view.transpose(0, 1) if piece.place == "home" else view
    return view, piece.columns, piece.rows

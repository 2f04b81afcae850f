"""The part of a partitioned tensor that one rank holds, and copying rectangles in and out of it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ist_hpc.geometry import Place, Selection
from ist_hpc.placement import Placement, TensorSpec, Units
from ist_hpc.transfer import ELEMENT_BYTES, Piece, parts_of_at_most

_INDICES_AT_ONCE = 1 << 15
_MOVE_BYTES = 4 << 20  # beside the tensors while a piece moves from one to the other


@dataclass
class Held:
    """What one rank holds of one tensor; float32.

    home    the home block, `spec.home_shape`; elements whose holder is another rank are stale.
            None while every element is in some subnet.
    subnet  the subnet part, `spec.subnet_shape` (as stored); None at home.
    """

    home: Tensor | None = None
    subnet: Tensor | None = None

    def place(self, place: Place) -> Tensor:
        """The home block or the subnet, which must be there."""
        tensor = self.home if place == "home" else self.subnet
        assert tensor is not None, f"no {place} part on this rank"
        return tensor


State = dict[str, Held]
"""All partitioned tensors of one rank, by key."""


def zeros_at(specs: Iterable[TensorSpec], placement: Placement, rank: int) -> State:
    """Zero tensors as `rank` holds them in `placement`: optimiser state before the first step."""
    state = {}
    for spec in specs:
        held = Held()
        if placement.keeps_home_block(spec):
            held.home = torch.zeros(spec.home_shape(rank, placement.ranks))
        if not placement.is_home:
            held.subnet = torch.zeros(spec.subnet_shape(rank, placement.ranks))
        state[spec.key] = held
    return state


def state_bytes(state: State) -> int:
    """Bytes of all tensors of a state."""
    parts = (part for held in state.values() for part in (held.home, held.subnet))
    return sum(part.numel() * part.element_size() for part in parts if part is not None)


# The ways to copy below are the fastest of those that torch and numpy have on a CPU, by a factor of
# 3 to 8 over plain advanced indexing; docs/results.md has the figures.


def gather(source: Tensor, piece: Piece, out: Tensor) -> None:
    """Copy a piece of a home block or subnet into `out`, flat and contiguous, in storage order."""
    view, major, minor = _in_storage_order(source, piece)
    target = out.view(piece_shape(view, major, minor))
    if isinstance(major, slice) and isinstance(minor, slice):
        target.copy_(view[major, minor])
    elif isinstance(minor, slice):
        torch.index_select(view[:, minor], 0, torch.from_numpy(major), out=target)
    elif isinstance(major, slice):
        torch.index_select(view[major], 1, torch.from_numpy(minor), out=target)
    elif view.dim() == 2 and view.is_contiguous():
        flat, into = view.view(-1).numpy(), target.numpy()
        for lines, index in _flat_indices(major, minor, view.shape[1]):
            np.take(flat, index, out=into[lines], mode="clip")  # no bounds check: they are ours
    else:
        rows = torch.from_numpy(major).unsqueeze(1)
        target.copy_(view[rows, torch.from_numpy(minor)])


def scatter(target: Tensor, piece: Piece, values: Tensor) -> None:
    """The inverse of `gather`: copy flat `values` in storage order to a piece of `target`."""
    view, major, minor = _in_storage_order(target, piece)
    block = values.view(piece_shape(view, major, minor))
    if isinstance(major, slice) and isinstance(minor, slice):
        view[major, minor].copy_(block)
    elif isinstance(minor, slice):
        view[:, minor].numpy()[major] = block.numpy()
    elif isinstance(major, slice):
        view[major].index_copy_(1, torch.from_numpy(minor), block)
    elif view.dim() == 2 and view.is_contiguous():
        flat = view.view(-1)
        for lines, index in _flat_indices(major, minor, view.shape[1]):
            flat.scatter_(0, torch.from_numpy(index.reshape(-1)), block[lines].reshape(-1))
    else:
        rows = torch.from_numpy(major).unsqueeze(1)
        view.index_put_((rows, torch.from_numpy(minor).unsqueeze(0)), block)


def move(source: Tensor, piece: Piece, target: Tensor, landing: Piece) -> None:
    """Copy a piece of one tensor to the same rectangle of another, by way of a small buffer."""
    room = min(piece.size, _MOVE_BYTES // ELEMENT_BYTES)
    buffer = torch.empty(max(room, piece.spec.element_width))
    parts = (parts_of_at_most(whole, room) for whole in (piece, landing))
    for taken, put in zip(*parts, strict=True):
        values = buffer[: taken.size]
        gather(source, taken, values)
        scatter(target, put, values)


def _flat_indices(major: Units, minor: Units, width: int) -> Iterator[tuple[slice, Units]]:
    """Flat indices of major x minor in a matrix of `width`, some lines at a time.

    Few enough that the indices, twice as large as the data, stay in the cache.
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

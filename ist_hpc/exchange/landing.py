"""Where what an exchange moves is put: the tensors of a rank, old and new. Local."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ist_hpc.exchange.placement import Placement, TensorSpec
from ist_hpc.exchange.plan import Piece, Plan
from ist_hpc.exchange.tensors import State, move, row_numbers


class Landing:
    """The tensors that receive, and when the old ones can be freed.

    Old and new tensor exist together only from the first chunk that writes the new one to the last
    chunk that touches either, so an exchange in many chunks doubles few tensors at a time
    (`Plan.doubled_bytes`).
    """

    def __init__(self, plan: Plan, state: State, keep_source: bool, device: torch.device) -> None:
        self.plan, self.state, self.keep_source, self.device = plan, state, keep_source, device
        self.new: dict[str, Tensor] = {}
        self.local: dict[str, list[tuple[Piece, Piece]]] = {spec.key: [] for spec in plan.specs}
        for source, target in plan.local_moves:
            self.local[source.spec.key].append((source, target))
        self.specs = {spec.key: spec for spec in plan.specs}
        self.done_at: dict[int, list[str]] = {}
        for key, index in plan.last_chunks.items():
            self.done_at.setdefault(index, []).append(key)

    def tensor(self, piece: Piece) -> Tensor:
        """The tensor that a received piece is written to."""
        self._open(piece.spec)
        if piece.place == "home":
            return self.state[piece.spec.key].place("home")
        return self.new[piece.spec.key]

    def _open(self, spec: TensorSpec) -> None:
        if spec.key in self.new:
            return
        target, held = self.plan.target, self.state[spec.key]
        if target.is_home:
            if held.home is None:
                shape = spec.home_shape(self.plan.rank, target.ranks)
                held.home = torch.empty(shape, device=self.device)
            self.new[spec.key] = held.home
        else:
            shape = target.subnet_shape(spec, self.plan.rank)
            self.new[spec.key] = torch.empty(shape, device=self.device)
        for source, landing in self.local[spec.key]:
            written = held.place("home") if landing.place == "home" else self.new[spec.key]
            move(held.place(source.place), source, written, landing)

    def finish_chunk(self, index: int) -> None:
        """Close the tensors that no later chunk touches."""
        for key in self.done_at.get(index, ()):
            self._close(self.specs.pop(key))

    def finish(self) -> None:
        """The tensors of which nothing came from or went to another rank.

        A rank that asks for no row of a demanded tensor has an empty one.
        """
        demands = self.plan.target.demands
        for spec in self.specs.values():
            if self.local[spec.key] or spec.demanded in demands:
                self._close(spec)

    def _close(self, spec: TensorSpec) -> None:
        self._open(spec)
        held, new = self.state[spec.key], self.new.pop(spec.key)
        if self.plan.target.is_home:
            if not self.keep_source:
                held.subnet = None
        else:
            held.subnet = new
            if not self.keep_source and not self.plan.target.keeps_home_block(spec):
                held.home = None


class HomeLanding:
    """The home blocks that demanded rows go back to, whose other rows stay as they are."""

    def __init__(self, plan: Plan, state: State) -> None:
        self.plan, self.state = plan, state

    def tensor(self, piece: Piece) -> Tensor:
        """The home block that a received piece is written to."""
        return self.state[piece.spec.key].place("home")

    def finish_chunk(self, index: int) -> None:
        """Nothing is to be let go of before the end."""

    def finish(self) -> None:
        """Put back what was at home here, and let go of what was held in the round."""
        for source, target in self.plan.local_moves:
            held = self.state[source.spec.key]
            move(held.place("subnet"), source, held.place("home"), target)
        for spec in self.plan.specs:
            self.state[spec.key].subnet = None


def add_numbers(plan: Plan, placement: Placement, state: State, arrived: Sequence[Tensor]) -> None:
    """Add what the ranks changed of the numbers of rows that are at home here, rank by rank.

    plan     of `plan_numbers`
    arrived  values of its chunk's received pieces; flat, float32
    """
    coming = iter(zip(plan.chunks[0].recv_pieces, arrived, strict=True))
    own = [
        (target, state[source.spec.key].place("subnet")[source.rows])
        for source, target in plan.local_moves
    ]
    of_ranks = [
        own if rank == plan.rank else [next(coming) for _ in plan.specs]
        for rank in range(placement.ranks)
    ]
    for index, spec in enumerate(plan.specs):
        counts = placement.deals[spec.mean_over or ""].counts
        home, before = state[spec.key].place("home"), state[spec.key].place("home").clone()
        for of_rank, count in zip(of_ranks, counts.tolist(), strict=True):
            piece, values = of_rank[index]
            rows = row_numbers(piece.rows).to(home.device)
            home.index_add_(0, rows, (values - before[rows]).mul_(count / int(counts.sum())))
        state[spec.key].subnet = None

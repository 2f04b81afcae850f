"""Independent subnet training of a quadratic: local steps on dealt coordinates, round after round.

x+ = x - step sum P_i (L_i P_i x - b_i), P_i the mask of the coordinates dealt to worker i (Perm-q).
The other forms are this one on another problem; see `problems`. Deals and exchange are the same as
for networks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ist_hpc.exchange.exchanger import Exchanger, allocate_home, drop_home_copies
from ist_hpc.exchange.placement import Axis, Placement, TensorSpec, at_round, home
from ist_hpc.exchange.tensors import State
from ist_hpc.studies.quadratic.problems import Array, Quadratic

if TYPE_CHECKING:
    from mpi4py import MPI

_BUFFER_MIB = 1.0


@dataclass(frozen=True, eq=False)
class Run:
    """A run of independent replicas, which differ in their deals and perhaps in their start.

    start        x at first; float64, shape [replicas, d], d a multiple of the workers
    steps        the step size of each round; float64, shape [rounds]
    local_steps  steps that a worker takes in a round
    seed         seed of the deals; replica r is the axis `x{r}`
    every        rounds from one observation to the next
    """

    start: Array
    steps: Array
    local_steps: int = 1
    seed: int = 0
    every: int = 1

    @property
    def axes(self) -> dict[str, Axis]:
        """The axis of each replica, all of size d."""
        replicas, size = self.start.shape
        return {f"x{replica}": Axis(size) for replica in range(replicas)}

    def observed(self, round_index: int) -> bool:
        """Whether x is observed after this round."""
        return (round_index + 1) % self.every == 0


Descend = Callable[[Quadratic, Run], Array]
"""Runs a `Run`; returns x at the start and at each observation: [1 + observations, replicas, d]."""


def in_process(problem: Quadratic, run: Run) -> Array:
    """A `Descend` in which the workers take turns in this process. Local.

    Raises `InputError` if there are fewer coordinates than workers.
    """
    x = run.start.copy()
    seen = [x.copy()]
    for index, step in enumerate(run.steps):
        dealt = dealt_units(at_round(run.axes, problem.workers, run.seed, index))
        for units, matrix, vector in zip(dealt, problem.matrices, problem.vectors, strict=True):
            own = np.take_along_axis(x, units, 1)
            own = _train(matrix, vector, units, own, step, run.local_steps)
            np.put_along_axis(x, units, own, 1)
        if run.observed(index):
            seen.append(x.copy())
    return np.stack(seen)


def over_ranks(comm: "MPI.Comm", problem: Quadratic, run: Run) -> Array:
    """A `Descend` in which each rank is a worker; the same iterates to the last bit. Collective.

    The rank descends with its own L_i and b_i, and holds the coordinates that it is dealt.
    To be observed they visit home, and every rank receives all of them.
    """
    rank, ranks = comm.Get_rank(), comm.Get_size()
    assert problem.workers == ranks
    matrix, vector = problem.matrices[rank], problem.vectors[rank]
    specs = [TensorSpec(name, (axis.size, 2), (name, None)) for name, axis in run.axes.items()]
    exchanger = Exchanger(comm, _BUFFER_MIB)
    state, placement = allocate_home(specs, rank, ranks), home(ranks)
    for spec, start in zip(specs, run.start, strict=True):
        _doubles(state[spec.key].place("home"))[:] = start[slice(*spec.home_rows(rank, ranks))]
    seen = [run.start]
    for index, step in enumerate(run.steps):
        source, placement = placement, at_round(run.axes, ranks, run.seed, index)
        exchanger.exchange(specs, source, placement, state)
        held = [_doubles(state[spec.key].place("subnet")) for spec in specs]
        units = dealt_units(placement)[rank]
        own = _train(matrix, vector, units, np.stack(held), step, run.local_steps)
        for coordinates, values in zip(held, own, strict=True):
            coordinates[:] = values
        if run.observed(index):
            seen.append(_whole(comm, exchanger, specs, placement, state))
    return np.stack(seen)


def _whole(
    comm: "MPI.Comm",
    exchanger: Exchanger,
    specs: list[TensorSpec],
    placement: Placement,
    state: State,
) -> Array:
    """x of every replica, on every rank, by a visit home; [replicas, d]. Collective."""
    exchanger.exchange(specs, placement, home(placement.ranks), state, keep_source=True)
    blocks = comm.allgather(np.stack([_doubles(state[spec.key].place("home")) for spec in specs]))
    drop_home_copies(specs, placement, state)
    return np.concatenate(blocks, axis=1)


def _doubles(tensor: Tensor) -> Array:
    """The float64 numbers whose halves are the rows [count, 2] of float32: a view, shape [count].

    The exchange moves float32 by copying, which changes no bit, not even in a half that is a NaN.
    """
    return tensor.numpy().view(np.float64)[:, 0]


def dealt_units(placement: Placement) -> npt.NDArray[np.int64]:
    """The units of each worker on each axis, ascending; int64, shape [workers, axes, q].

    All axes have one size, a multiple of the workers.
    """
    holders = np.stack([deal.holder for deal in placement.deals.values()])
    units = np.argsort(holders, axis=1, kind="stable")
    return units.reshape(len(holders), placement.ranks, -1).swapaxes(0, 1)


def _train(
    matrix: Array,
    vector: Array,
    units: npt.NDArray[np.int64],
    own: Array,
    step: float,
    local_steps: int,
) -> Array:
    """A worker's round, of all replicas: gradient steps on its coordinates `own`, [replicas, q]."""
    inner = matrix[units[:, :, None], units[:, None, :]]
    target = vector[units]
    for _ in range(local_steps):
        own = own - step * ((inner @ own[:, :, None])[:, :, 0] - target)
    return own

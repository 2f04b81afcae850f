"""Medians with their spread, and tables."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from mpi4py import MPI


def slowest(comm: "MPI.Comm", seconds: Sequence[float]) -> npt.NDArray[np.float64]:
    """For each repetition the seconds of the slowest rank. Collective."""
    own = np.array(seconds)
    worst = np.empty_like(own)
    from mpi4py import MPI

    comm.Allreduce(own, worst, op=MPI.MAX)
    return worst


def spread(values: npt.NDArray[np.float64], digits: int = 4) -> str:
    """`median (lowest to highest)`."""
    low, middle, high = (float(f(values)) for f in (np.min, np.median, np.max))
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Two aligned columns."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:{width}}  {value}" for name, value in rows)

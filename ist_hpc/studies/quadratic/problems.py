"""Quadratics f_i(x) = x'L_i x / 2 - b_i'x, one per worker, and their sketched forms.

Shulgin and Richtárik (arXiv 2306.16484), sections 3 and 4. All arrays are float64.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ist_hpc.common import random_streams

Array = npt.NDArray[np.float64]
Kind = Literal["dense", "diagonal"]
KINDS: tuple[Kind, ...] = ("dense", "diagonal")


def solve(matrix: Array, vector: Array) -> Array:
    """matrix^(-1) vector; shape [d]."""
    return np.asarray(np.linalg.solve(matrix, vector), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Quadratic:
    """The functions of all workers; f is their mean.

    matrices  L_i, symmetric; shape [workers, d, d]
    vectors   b_i; shape [workers, d]
    """

    matrices: Array
    vectors: Array

    @property
    def workers(self) -> int:
        """n of the paper."""
        return len(self.matrices)

    @property
    def size(self) -> int:
        """d of the paper."""
        return self.matrices.shape[1]

    @property
    def matrix(self) -> Array:
        """L of f, the mean of the L_i; shape [d, d]."""
        return self.matrices.mean(0)

    @property
    def vector(self) -> Array:
        """b of f, the mean of the b_i; shape [d]."""
        return self.vectors.mean(0)

    @property
    def diagonals(self) -> Array:
        """The diagonals of the L_i; shape [workers, d]."""
        return np.diagonal(self.matrices, axis1=1, axis2=2)

    def minimiser(self) -> Array:
        """Where f is least; shape [d]."""
        return solve(self.matrix, self.vector)

    def value(self, points: Array) -> Array:
        """f at points [..., d]; shape [...]."""
        return 0.5 * np.einsum("...i,ij,...j", points, self.matrix, points) - points @ self.vector

    def suboptimality(self, points: Array) -> Array:
        """f minus its minimum, at points [..., d]; shape [...]."""
        away = points - self.minimiser()
        return 0.5 * np.einsum("...i,ij,...j", away, self.matrix, away)

    def interpolated(self) -> "Quadratic":
        """The same with b_i = 0: all workers have one minimiser (the interpolation case)."""
        return Quadratic(self.matrices, np.zeros_like(self.vectors))

    def in_one(self) -> "Quadratic":
        """f as the function of one worker: descent on it is plain gradient descent."""
        return Quadratic(self.matrix[None], self.vector[None])


def drawn(
    kind: Kind, size: int, workers: int, condition: float, heterogeneous: bool, seed: int
) -> Quadratic:
    """Random quadratics with eigenvalues from 1 to `condition`, evenly spaced on a log scale.

    dense: random eigenvectors; diagonal: the eigenvalues in random order. A worker's function
    depends only on (seed, worker); in homogeneous problems all have that of worker 0.
    """
    eigenvalues = condition ** np.linspace(0.0, 1.0, size)

    def matrix(worker: int) -> Array:
        if kind == "diagonal":
            order = random_streams.permutation("quadratic/eigenvalues", seed, worker, size)
            return np.diag(eigenvalues[order])
        vectors = np.linalg.qr(_uniform(f"quadratic/eigenvectors/{worker}", seed, size, size))[0]
        whole = (vectors * eigenvalues) @ vectors.T
        return (whole + whole.T) / 2

    def vector(worker: int) -> Array:
        return _uniform(f"quadratic/vector/{worker}", seed, 1, size)[0]

    drawn_by = range(workers) if heterogeneous else [0] * workers
    return Quadratic(
        np.stack([matrix(worker) for worker in drawn_by]),
        np.stack([vector(worker) for worker in drawn_by]),
    )


def _uniform(purpose: str, seed: int, rows: int, columns: int) -> Array:
    return random_streams.uniform(purpose, seed, (0, rows), columns, 1.0).astype(np.float64)


def counterexample(a: float, b: float, c: float, size: int) -> Quadratic:
    """Homogeneous, with L = [[a, c], [c, b]] in the first two coordinates and b_i = 0.

    As many workers as coordinates (Perm-1). Any further coordinate is separate, with 1.
    """
    matrix = np.eye(size)
    matrix[:2, :2] = [[a, c], [c, b]]
    return Quadratic(np.broadcast_to(matrix, (size, size, size)), np.zeros((size, size)))


def exact(size: int, seed: int) -> Quadratic:
    """The homogeneous quadratic on which preconditioned sketches have no bias, by construction.

    Its D^(-1/2) b is an eigenvector of D^(-1/2) L D^(-1/2), of eigenvalue sqrt(size); the paper's
    remark after theorem 2. As many workers as coordinates (Perm-1).
    """
    unit = np.full((size, size), (np.sqrt(size) - 1) / (size - 1))
    np.fill_diagonal(unit, 1.0)
    root = 1.5 + 0.5 * _uniform("quadratic/exact", seed, 1, size)[0]
    matrix = root[:, None] * unit * root
    shape = (size, size)
    return Quadratic(np.broadcast_to(matrix, (size, *shape)), np.broadcast_to(root, shape))


# The problem under sketches C_i = Diag(c_i) P_i, where P_i masks all but the coordinates dealt to
# worker i. The result has M_i = Diag(c_i) L_i Diag(c_i) / n and v_i = Diag(c_i) b_i / n, so that
#     x+ = x - step (1/n) sum C_i grad f_i(C_i x)  =  x - step sum P_i (M_i P_i x - v_i).
# Worker i needs nothing of another worker for it. The masked form, which the package applies to
# networks, is the right hand side on the problem as it is.


def sketched(problem: Quadratic, diagonals: Array) -> Quadratic:
    """Under C_i = Diag(diagonals[i]) P_i; diagonals [workers, d]."""
    both = diagonals[:, :, None] * diagonals[:, None, :]
    n = problem.workers
    return Quadratic(both * problem.matrices / n, diagonals * problem.vectors / n)


def scaled(problem: Quadratic, scale: float) -> Quadratic:
    """Under C_i = scale P_i. With as many workers as scale, E C_i = I: the paper's Perm-q."""
    return sketched(problem, np.full(problem.vectors.shape, scale))


def preconditioned(problem: Quadratic) -> Quadratic:
    """Under C_i = sqrt(n) D_i^(-1/2) P_i, D_i the diagonal of L_i: the M_i have diagonals of one.

    The paper prints L_i^(-1/2) here; see `preconditioned_as_printed`.
    """
    return sketched(problem, np.sqrt(problem.workers / problem.diagonals))


def preconditioned_as_printed(problem: Quadratic) -> Quadratic:
    """Under C_i = sqrt(n) Diag(L_i^(-1/2)) P_i, the letter of the paper's text."""
    eigenvalues, vectors = np.linalg.eigh(problem.matrices)
    roots = np.einsum("wij,wj,wij->wi", vectors, eigenvalues**-0.5, vectors)
    return sketched(problem, np.sqrt(problem.workers) * roots)


def changed_variables(problem: Quadratic) -> Quadratic:
    """In the variables D^(1/2) x, D the diagonal of L: the diagonal of L becomes one."""
    root = np.sqrt(np.diagonal(problem.matrix))
    return Quadratic(problem.matrices / np.outer(root, root), problem.vectors / root)

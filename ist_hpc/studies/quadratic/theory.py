"""The theory of descent with permutation sketches; with numpy, independently of the iteration.

Numbers of theorems and sections refer to Shulgin and Richtárik (arXiv 2306.16484); "Derived" marks
results derived here. `m` below is a sketched problem (`problems.sketched`) or, in the masked form,
the problem itself. All arrays are float64.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, islice
from math import comb

import numpy as np

from ist_hpc.studies.quadratic.problems import Array, Quadratic, solve

MOST_SUBSETS = 200_000
_SUBSETS_AT_ONCE = 1 << 10


def thinned(matrix: Array, q: int) -> Array:
    """L_q = D + ((q - 1) / (d - 1)) (L - D): the L that workers see in the mean. Derived.

    Times n / d = 1 / q it is the mean over deals of P L P: a coordinate is dealt to a worker with
    probability 1 / n, and one of the other d - 1 is with it with probability (q - 1) / (d - 1).
    """
    size = len(matrix)
    diagonal = np.diag(np.diagonal(matrix))
    return diagonal + (q - 1) / (size - 1) * (matrix - diagonal) if size > 1 else matrix


def mean_fixed_point(m: Quadratic, q: int, step: float = 1.0, local_steps: int = 1) -> Array:
    """The limit of the mean over deals of the iterates; shape [d]. Derived.

    One local step: L_q^(-1) b with the means over workers, whatever the step. Several, J: worker i,
    dealt S, goes from x_S to x_S - Q (M_SS x_S - v_S) with Q = step sum_(j<J) (I - step M_SS)^j,
    and the mean of this over workers and all subsets S is solved. Exact, as deals are independent.
    """
    if local_steps == 1:
        return solve(thinned(m.matrix, q), m.vector)
    size = m.size
    left, right = np.zeros((size, size)), np.zeros(size)
    for subsets in _batches(size, q):
        rows, columns = subsets[:, :, None], subsets[:, None, :]
        for matrix, vector in zip(m.matrices, m.vectors, strict=True):
            part = matrix[rows, columns]
            shrink = np.eye(q) - step * part
            summed = np.eye(q)
            for _ in range(local_steps - 1):
                summed = np.eye(q) + shrink @ summed
            # Sums of sums: in one running sum the rounding would grow to that of 10^6 terms.
            lefts, rights = np.zeros_like(left), np.zeros_like(right)
            np.add.at(lefts, (rows, columns), summed @ part)
            np.add.at(rights, subsets, (summed @ vector[subsets][:, :, None])[:, :, 0])
            left, right = left + lefts, right + rights
    return solve(left, right)


def _batches(size: int, q: int) -> Iterator[np.ndarray]:
    """All subsets of q of the coordinates, some at a time; int64, shape [some, q]."""
    assert comb(size, q) <= MOST_SUBSETS, "the command line refuses this"
    subsets = combinations(range(size), q)
    while batch := list(islice(subsets, _SUBSETS_AT_ONCE)):
        yield np.array(batch, dtype=np.int64)


def safe_step(m: Quadratic) -> float:
    """A step at which no worker's subnet can diverge: 1 over the largest eigenvalue of any M_i.

    Eigenvalues of M_SS lie between those of M (Cauchy), so at any step below twice this one, and
    with b = 0, every round makes |x| smaller, whatever the deal. f may rise meanwhile. Derived.
    """
    return float(1 / np.linalg.eigvalsh(m.matrices)[:, -1].max())


def rounds_to_forget(m: Quadratic, q: int, step: float, left: float) -> int:
    """Rounds after which the mean iterate has `left` of the start, with one local step."""
    rate = np.abs(np.linalg.eigvals(np.eye(m.size) - step * thinned(m.matrix, q))).max()
    return int(np.ceil(np.log(left) / np.log(min(max(rate, 1e-3), 1 - 1e-9))))


def preconditioned_fixed_point(problem: Quadratic) -> Array:
    """n^(-3/2) sum D_i^(-1/2) b_i, the limit of E x under C_i = sqrt(n) D_i^(-1/2) P_i, Perm-1."""
    n = problem.workers
    return n**-1.5 * (problem.vectors / np.sqrt(problem.diagonals)).sum(0)


# Descent of f, Perm-1 (section 4.1): x+ = x - step B x with B diagonal, its entry j that of the
# worker to whom j was dealt, so that f(x+) = f(x) - step x'LBx + step^2 x'BLBx / 2.


def descent_matrix(matrix: Array, m: Quadratic) -> Array:
    """W = (L E B + E B L) / 2: f falls in the mean by step x'Wx, up to step^2. Shape [d, d]."""
    product = matrix * m.diagonals.mean(0)
    return (product + product.T) / 2


def least_descent(matrix: Array, m: Quadratic) -> tuple[float, Array]:
    """The least eigenvalue of W and its unit eigenvector: if it is negative, f rises there."""
    values, vectors = np.linalg.eigh(descent_matrix(matrix, m))
    return float(values[0]), vectors[:, 0]


def step_bound(matrix: Array, m: Quadratic) -> tuple[float, Array]:
    """theta, the least with E BLB <= theta W, and a direction in which they are equal.

    Theorem 1 allows steps up to 1 / theta. In the mean f falls everywhere at any step below
    2 / theta; above it f does not fall in that direction. W must be positive definite.
    """
    root = np.linalg.cholesky(descent_matrix(matrix, m))
    curvature = matrix * _deal_moments(m.diagonals)
    half = np.linalg.solve(root, np.linalg.solve(root, curvature).T)
    values, vectors = np.linalg.eigh((half + half.T) / 2)
    direction = np.linalg.solve(root.T, vectors[:, -1])
    return float(values[-1]), direction / np.linalg.norm(direction)


def _deal_moments(values: Array) -> Array:
    """E y y' for y_j = values[i(j), j], i a uniformly random permutation (Perm-1); [d, d]."""
    n = len(values)
    total = values.sum(0)
    moments = (np.outer(total, total) - values.T @ values) / (n * (n - 1))
    np.fill_diagonal(moments, (values**2).mean(0))
    return moments


@dataclass(frozen=True)
class Theorem2:
    """Theorem 2: preconditioned sketches C_i = sqrt(n) D_i^(-1/2) P_i, Perm-1, b_i that differ.

    bias   |h|^2 in the norm of L, h = L^(-1) b - n^(-1/2) mean D_i^(-1/2) b_i. The paper's theorem
           prints L^2, its text L. L it is: both sides then have the unit of f.
    noise  sigma^2, the variance over deals of (1/n) sum C_i b_i in the norm of L
    """

    bias: float
    noise: float

    @classmethod
    def of(cls, problem: Quadratic) -> "Theorem2":
        """The constants of a problem; as many workers as coordinates."""
        h = problem.minimiser() - preconditioned_fixed_point(problem)
        values = problem.vectors / np.sqrt(problem.workers * problem.diagonals)
        mean = values.mean(0)
        covariance = _deal_moments(values) - np.outer(mean, mean)
        return cls(float(h @ problem.matrix @ h), float((problem.matrix * covariance).sum()))

    def bound(self, step: float, beta: float, start: float, rounds: int) -> float:
        """Bound of the mean over rounds of |grad f|^2, norm of L^(-1); `start`: f(x_0) - min f.

        Holds for steps up to (1/2 - beta) / (1/2 + beta), 0 < beta < 1/2.
        """
        assert 0 < step <= (0.5 - beta) / (0.5 + beta) + 1e-12
        return (
            2 * start / (step * rounds) + (2 / beta * (1 - step) + step) * self.bias
        ) + step * self.noise

    def stationary(self, step: float) -> float:
        """The exact limit of the mean of |grad f|^2 at a constant step. Derived.

        E B = I, so x+ = (1 - step) x + step v with independent v: variance step / (2 - step).
        """
        return self.bias + step / (2 - step) * self.noise

    def averaged(self, rounds: int) -> float:
        """The same after `rounds` at the falling steps 1, 1/2, 1/3, ...: x is a mean of v."""
        return self.bias + self.noise / rounds

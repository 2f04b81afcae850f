"""The formulas of quadratics against all deals one by one, and the iteration against matrices."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ist_hpc.exchange.placement import at_round
from ist_hpc.studies.quadratic import formulas, problems, theory
from ist_hpc.studies.quadratic.descent import Run, in_process

sizes = st.sampled_from([(2, 1), (2, 2), (3, 1), (3, 2), (4, 1)])
drawn = st.builds(
    lambda size, *rest: (problems.drawn(rest[0], size[0] * size[1], size[0], *rest[1:]), size[1]),
    sizes,
    st.sampled_from(problems.KINDS),
    st.floats(1, 300),
    st.booleans(),
    st.integers(0, 2**64 - 1),
)


def all_masks(workers: int, q: int) -> np.ndarray:
    """Every deal, as P_i: 0 and 1, [deals, workers, d, d]. By the definition of Perm-q."""
    orders = np.array(list(permutations(range(workers * q)))).reshape(-1, workers, q)
    return np.eye(workers * q)[orders].sum(2)[..., None] * np.eye(workers * q)


def one_round(masks, problem, x, step, local_steps=1):
    """The masked form by whole matrices, of one deal [workers, d, d]."""
    total = np.zeros_like(x)
    for mask, matrix, vector in zip(masks, problem.matrices, problem.vectors, strict=True):
        own = mask @ x
        for _ in range(local_steps):
            own = own - step * mask @ (matrix @ own - vector)
        total += own
    return total


def relative(one, other) -> float:
    return float(np.abs(one - other).max() / max(np.abs(other).max(), 1e-300))


# Theory against the mean over all deals.


@settings(max_examples=60, deadline=None)
@given(drawn, st.integers(1, 4), st.floats(0.1, 1.5))
def test_the_mean_fixed_point_is_that_of_the_mean_over_all_deals(drawn, local_steps, share):
    problem, q = drawn
    step = share * theory.safe_step(problem)
    point = theory.mean_fixed_point(problem, q, step, local_steps)
    after = [
        one_round(masks, problem, point, step, local_steps)
        for masks in all_masks(problem.workers, q)
    ]
    assert relative(np.mean(after, 0), point) < 1e-11


@settings(max_examples=60, deadline=None)
@given(drawn)
def test_masks_thin_the_matrix_out_as_predicted(drawn):
    problem, q = drawn
    n, masks = problem.workers, all_masks(problem.workers, q)
    seen = np.einsum("kwij,wjl,kwlm->im", masks, problem.matrices, masks) / len(masks)
    assert relative(seen / n, theory.thinned(problem.matrix, q) / n) < 1e-12
    assert relative(theory.thinned(problem.matrix, problem.size), problem.matrix) < 1e-15


@settings(max_examples=60, deadline=None)
@given(drawn)
def test_the_bias_is_what_pairs_that_do_not_meet_would_have_given(drawn):
    problem, q = drawn
    least, matrix = problem.minimiser(), problem.matrix
    apart = 1 - (q - 1) / (problem.size - 1)
    pull = apart * (matrix - np.diag(np.diagonal(matrix))) @ least
    bias = np.linalg.solve(theory.thinned(matrix, q), pull)
    error = theory.mean_fixed_point(problem, q) - least - bias
    assert np.abs(error).max() < 1e-11 * max(1.0, np.abs(least).max())


@settings(max_examples=60, deadline=None)
@given(drawn.filter(lambda found: found[1] == 1))
def test_descent_and_theta_are_those_of_the_mean_over_all_deals(drawn):
    problem, _ = drawn
    n, matrix = problem.workers, problem.matrix
    m = problems.scaled(problem, n)
    deals = all_masks(n, 1) * n
    steps = np.einsum("kwij,wjl,kwlm->kim", deals, problem.matrices, deals) / n
    falls = np.mean([(matrix @ b + b @ matrix) / 2 for b in steps], 0)
    bends = np.mean([b @ matrix @ b for b in steps], 0)
    assert relative(theory.descent_matrix(matrix, m), falls) < 1e-12
    least, direction = theory.least_descent(matrix, m)
    assert least == pytest.approx(direction @ falls @ direction, rel=1e-9, abs=1e-9 * n)
    if least > 1e-3:
        theta, direction = theory.step_bound(matrix, m)
        excess = np.linalg.eigvalsh(bends - theta * falls)
        assert abs(excess[-1]) < 1e-9 * np.abs(bends).max()
        bent, fallen = direction @ bends @ direction, direction @ falls @ direction
        assert bent == pytest.approx(theta * fallen)


def preconditioned_pulls(problem) -> np.ndarray:
    """(1/n) sum C_i b_i of every deal, C_i as whole matrices; [deals, d]. Checks that B = I."""
    n, pulls = problem.workers, []
    for masks in all_masks(n, 1):
        sketches = [
            np.sqrt(n) * mask * d**-0.5 for mask, d in zip(masks, problem.diagonals, strict=True)
        ]
        both = zip(sketches, problem.matrices, problem.vectors, strict=True)
        blocks, vectors = zip(*[(c @ own @ c, c @ vector) for c, own, vector in both], strict=True)
        assert relative(np.mean(blocks, 0), np.eye(n)) < 1e-12
        pulls.append(np.mean(vectors, 0))
    return np.array(pulls)


@settings(max_examples=60, deadline=None)
@given(drawn.filter(lambda found: found[1] == 1))
def test_preconditioned_sketches_are_the_papers(drawn):
    """B = I; the mean step, bias and variance of theorem 2, by whole matrices C_i."""
    problem, _ = drawn
    matrix, pulls = problem.matrix, preconditioned_pulls(problem)
    mean = np.mean(pulls, 0)
    assert relative(theory.preconditioned_fixed_point(problem), mean) < 1e-11
    theorem = theory.Theorem2.of(problem)
    noise = np.mean([(pull - mean) @ matrix @ (pull - mean) for pull in pulls])
    assert theorem.noise == pytest.approx(noise, rel=1e-9, abs=1e-12)
    gradient = matrix @ mean - problem.vector
    left = gradient @ np.linalg.solve(matrix, gradient)
    assert theorem.bias == pytest.approx(left, rel=1e-9, abs=1e-12)


def mean_square_after(problem, pulls, steps) -> float:
    """The mean of |grad f|^2 in the norm of L^(-1) after x+ = (1 - step) x + step v, v drawn.

    Each round a deal is drawn for itself, so mean and covariance of x follow from those of v.
    """
    drift, scatter = pulls.mean(0), np.cov(pulls.T, bias=True)
    mean, covariance = np.full(problem.size, 3.0), np.zeros_like(scatter)
    for step in steps:
        mean = (1 - step) * mean + step * drift
        covariance = (1 - step) ** 2 * covariance + step**2 * scatter
    away = mean - problem.minimiser()
    return float(away @ problem.matrix @ away + (problem.matrix * covariance).sum())


@settings(max_examples=60, deadline=None)
@given(drawn.filter(lambda found: found[1] == 1), st.floats(0.1, 1.9), st.integers(1, 40))
def test_the_limits_of_theorem_2_are_those_of_all_deals(drawn, step, rounds):
    """At a constant step, and after rounds at 1, 1/2, 1/3, ..., whose first forgets the start."""
    problem, _ = drawn
    pulls, theorem = preconditioned_pulls(problem), theory.Theorem2.of(problem)
    limit = mean_square_after(problem, pulls, [step] * 400)  # 0.9^400 of the start is left
    assert theorem.stationary(step) == pytest.approx(limit, rel=1e-9, abs=1e-12)
    after = mean_square_after(problem, pulls, 1 / np.arange(1.0, 1 + rounds))
    assert theorem.averaged(rounds) == pytest.approx(after, rel=1e-9, abs=1e-12)


@given(drawn, st.floats(0.01, 0.99), st.floats(0.01, 0.49), st.integers(1, 1000))
def test_the_bound_of_theorem_2_is_above_the_exact_limit(drawn, share, beta, rounds):
    theorem, step = theory.Theorem2.of(drawn[0]), share * (0.5 - beta) / (0.5 + beta)
    assert theorem.stationary(step) <= theorem.bound(step, beta, 0.0, rounds) * (1 + 1e-12)


@given(st.floats(0.01, 100), st.floats(0.01, 100), st.floats(0, 0.999))
def test_w_is_indefinite_where_c_is_beyond_the_edge(a, b, share):
    edge, c = 2 * a * b / (a + b), share * np.sqrt(a * b)
    example = problems.counterexample(a, b, c, 2)
    assert np.linalg.eigvalsh(example.matrix)[0] > 0
    least = theory.least_descent(example.matrix, example)[0]
    if abs(c - edge) > 1e-6 * edge:
        assert (least < 0) == (c > edge)
    changed = problems.changed_variables(example)
    assert theory.least_descent(changed.matrix, changed)[0] > 0


def test_the_figures_that_were_computed_apart():
    """a = 1, b = 10: eigenvalues by hand, of L and of W."""
    a, b, c = formulas.COUNTEREXAMPLE
    example = problems.counterexample(a, b, c, 5)
    assert np.linalg.eigvalsh(example.matrix)[0] == pytest.approx(0.35, abs=0.01)
    assert theory.least_descent(example.matrix, example)[0] == pytest.approx(-0.86, abs=0.005)
    same = problems.changed_variables(problems.drawn("dense", 6, 6, 50.0, False, 4))
    theta, _ = theory.step_bound(same.matrix, problems.scaled(same, 6))
    assert theta == pytest.approx(6, rel=1e-12)


# The iteration against whole matrices.


@settings(max_examples=40, deadline=None)
@given(drawn, st.integers(1, 3), st.integers(0, 2**64 - 1))
def test_every_form_is_what_the_paper_writes(drawn, local_steps, seed):
    """x+ = x - step (1/n) sum C_i grad f_i(C_i x), with the package's deals as masks."""
    problem, _ = drawn
    n, d = problem.workers, problem.size
    start = np.random.default_rng(0).normal(size=(2, d))
    steps = np.array([0.1, 0.03, 0.2]) / n / np.linalg.norm(problem.matrices, axis=(1, 2)).max()
    run = Run(start, steps, local_steps, seed)
    # sqrt(n) P_i is the mask P_i in the variable sqrt(n) x: only the unit of length differs.
    forms = {
        "masked": (problem, np.full((n, d), np.sqrt(n)), np.sqrt(n)),
        "scaled": (problems.scaled(problem, n), np.full((n, d), float(n)), 1.0),
        "preconditioned": (problems.preconditioned(problem), np.sqrt(n / problem.diagonals), 1.0),
    }
    for name, (m, diagonals, unit) in forms.items():
        expected = start / unit
        for index, step in enumerate(steps):
            deals = at_round(run.axes, n, seed, index).deals
            for replica, x in enumerate(expected):
                masks = deals[f"x{replica}"].holder == np.arange(n)[:, None]
                after = np.zeros(d)
                for i, mask in enumerate(masks):
                    c, own = np.diag(diagonals[i] * mask), x * mask
                    for _ in range(local_steps):
                        gradient = problem.matrices[i] @ (c @ own) - problem.vectors[i]
                        own = own - step / n * c @ gradient
                    after += own
                expected[replica] = after
        assert relative(in_process(m, run)[-1], expected * unit) < 1e-12, name


@settings(max_examples=40, deadline=None)
@given(drawn, st.integers(1, 3), st.floats(0.01, 1.99))
def test_no_subnet_makes_x_longer_below_twice_the_safe_step(drawn, local_steps, share):
    problem, _ = drawn
    start = np.random.default_rng(1).normal(size=(3, problem.size))
    steps = np.full(12, share * theory.safe_step(problem))
    seen = in_process(problem.interpolated(), Run(start, steps, local_steps))
    lengths = np.linalg.norm(seen, axis=2)
    assert (lengths[1:] <= lengths[:-1] * (1 + 1e-12)).all()


@pytest.mark.parametrize(("share", "grows"), [(0.98, False), (1.02, True)])
def test_perm_1_diverges_above_twice_the_inverse_of_the_largest_diagonal(share, grows):
    """And not above 2 / the largest eigenvalue, the limit of gradient descent."""
    problem = problems.drawn("dense", 5, 5, 100.0, False, 1).interpolated()
    largest = problem.diagonals.max()
    step = share * 2 / largest
    assert step > 2 / np.linalg.eigvalsh(problem.matrix)[-1]
    seen = in_process(problem, Run(np.ones((1, 5)), np.full(600, step)))
    assert (np.linalg.norm(seen[-1]) > np.linalg.norm(seen[0])) == grows
    whole = in_process(problem.in_one(), Run(np.ones((1, 5)), np.full(60, step)))
    assert np.linalg.norm(whole[-1]) > np.linalg.norm(whole[0])


def test_one_step_solves_it_to_the_last_digit():
    problem = problems.drawn("dense", 8, 8, 1000.0, True, 0).interpolated()
    run = Run(np.ones((4, 8)), np.ones(1))
    assert np.abs(in_process(problems.preconditioned(problem), run)[1]).max() < 1e-15
    printed = in_process(problems.preconditioned_as_printed(problem), run)[1]
    assert np.linalg.norm(printed, axis=1).min() > 0.1  # L_i^(-1/2), the letter of the text

"""Compares each formula with a measurement and its standard error: the rows that are printed."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ist_hpc.common import random_streams
from ist_hpc.exchange.placement import at_round
from ist_hpc.studies.quadratic import problems, theory
from ist_hpc.studies.quadratic.descent import Descend, Run, dealt_units, in_process
from ist_hpc.studies.quadratic.problems import Array, Kind, Quadratic

DEVIATIONS = 5.0
ROUNDING = 1e-12
_ONE_STEP = 8  # times as many replicas if they run for one round only
_LEFT = 1e-13  # of the start, before the mean over rounds begins
_LEFT_OF_NOISE = 1e-6  # the same if the deals scatter x in any problem
_EVERY = 4
_BETA = 0.25  # of theorem 2, which then allows steps up to 1/3
COUNTEREXAMPLE = (1.0, 10.0, 2.49)
"""a, b, c: L is positive definite, and c > 2ab / (a + b) = 1.82."""


@dataclass(frozen=True)
class Row:
    """A prediction and its measurement.

    error   one standard error of `measured`, over replicas; 0 if nothing is random
    away    their distance in standard errors, for vectors that of the worst coordinate; nan if only
            rounding is allowed for
    holds   equal (or below, if the prediction is a bound) within the error and rounding
    """

    formula: int
    what: str
    predicted: float
    measured: float
    error: float
    away: float
    holds: bool
    is_bound: bool = False


def allowed_errors(replicas: int) -> float:
    """Standard errors by which a mean over replicas may be off: 5, and more for few replicas.

    The quantile of Student's t that is as improbable (6e-7, both sides together) as five standard
    deviations of a normal distribution, by its Cornish-Fisher expansion.
    """
    z, degrees = DEVIATIONS, replicas - 1
    return (
        z
        + (z**3 + z) / (4 * degrees)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    )


def compare(formula: int, what: str, predicted: float, samples: Array, bound: bool = False) -> Row:
    """A number against the mean of its samples, [replicas]; a bound must not be below it."""
    measured, error = float(samples.mean()), _error(samples)
    excess = measured - predicted
    away, holds = _judge(np.array([max(excess, 0.0) if bound else excess]), samples[:, None])
    return Row(formula, what, predicted, measured, float(error), away, holds, bound)


def compare_points(formula: int, what: str, origin: Array, predicted: Array, samples: Array) -> Row:
    """A point [d] against the mean of samples [replicas, d], all coordinates.

    The row shows the distance from `origin`; for the measured point along the predicted direction,
    so that its error is that of a linear function.
    """
    distance = float(np.linalg.norm(predicted - origin))
    mean = samples.mean(0)
    if distance > ROUNDING * max(1.0, float(np.abs(origin).max())):
        along = (samples - origin) @ (predicted - origin) / distance
        measured, error = float(along.mean()), float(_error(along))
    else:
        distance = 0.0
        measured = float(np.linalg.norm(mean - origin))
        error = float(np.linalg.norm(_error(samples)))
    away, holds = _judge(mean - predicted, samples)
    return Row(formula, what, distance, measured, error, away, holds)


def _error(samples: Array) -> Array:
    return np.asarray(samples.std(0, ddof=1) / np.sqrt(len(samples)))


def _judge(differences: Array, samples: Array) -> tuple[float, bool]:
    """Standard errors of the worst coordinate, nan if that is rounding; whether all are allowed."""
    differences, errors = np.abs(differences), _error(samples)
    rounding = ROUNDING * max(1.0, float(np.abs(samples).max()))
    holds = bool((differences <= allowed_errors(len(samples)) * errors + rounding).all())
    random = errors > rounding
    away = float((differences[random] / errors[random]).max()) if random.any() else float("nan")
    return away, holds


@dataclass(frozen=True)
class Study:
    """The settings of the measurements.

    q            coordinates per worker in Perm-q; formulas of Perm-1 are measured with one
    local_steps  local steps in the rows with several
    rounds       rounds in the mean, after the start is forgotten
    """

    descend: Descend
    workers: int
    q: int = 4
    kind: Kind = "dense"
    condition: float = 10.0
    local_steps: int = 5
    replicas: int = 32
    rounds: int = 100
    seed: int = 0

    def problem(self, q: int, heterogeneous: bool) -> Quadratic:
        """The problem with q coordinates per worker."""
        size = q * self.workers
        return problems.drawn(
            self.kind, size, self.workers, self.condition, heterogeneous, self.seed
        )

    def means(self, m: Quadratic, q: int, step: float, local_steps: int = 1) -> Array:
        """The mean over rounds, for each replica; [replicas, d]. From a start far away."""
        before = theory.rounds_to_forget(m, q, step, _LEFT)
        start = np.full((self.replicas, m.size), 3.0)
        steps = np.full(before + self.rounds, step)
        seen = self.descend(m, Run(start, steps, local_steps, self.seed, _EVERY))
        return seen[1 + before // _EVERY :].mean(0)

    def after_one_round(self, m: Quadratic, starts: Array, step: float) -> Array:
        """x after a round, from starts [replicas, d]."""
        return self.descend(m, Run(starts, np.array([step]), seed=self.seed))[1]

    def rates(self, matrix: Array, m: Quadratic, starts: Array) -> tuple[Array, Array]:
        """The decrease of f = x'Lx / 2 in a round from each start, as step a - step^2 b / 2.

        a and b, [replicas], from two rounds with the same deals and steps s and 2s: no limit is
        taken. L is `matrix`, the descent that of `m` without its vectors.
        """
        step, still = theory.safe_step(m), m.interpolated()

        def fall(factor: float) -> Array:
            return _value(matrix, starts) - _value(
                matrix, self.after_one_round(still, starts, factor * step)
            )

        once, twice = fall(1.0), fall(2.0)
        return (4 * once - twice) / (2 * step), (2 * once - twice) / step**2

    def one_step_starts(self, point: Array) -> Array:
        """The same start for the many replicas that run for one round."""
        return np.broadcast_to(point, (_ONE_STEP * self.replicas, len(point))).copy()


def _value(matrix: Array, points: Array) -> Array:
    return 0.5 * np.einsum("...i,ij,...j", points, matrix, points)


def measure(study: Study) -> Iterator[Row]:
    """All rows, in order. Collective if the study's `descend` is."""
    yield from compression(study)
    yield from descent(study)
    yield from preconditioning(study)
    yield from bias(study)
    yield from theorem2(study)
    yield from masked(study)


def compression(study: Study) -> Iterator[Row]:
    """1: compressing the model is not compressing the gradient; Perm-1, C_i = n P_i."""
    problem = study.problem(1, heterogeneous=True)
    point, n = problem.minimiser(), study.workers
    starts = study.one_step_starts(point)
    placement = at_round(Run(starts, np.zeros(1)).axes, n, study.seed, 0)
    masks = np.zeros((n, *starts.shape))
    np.put_along_axis(masks, dealt_units(placement), 1.0, 2)
    gradients = np.einsum("wij,j->wi", problem.matrices, point) - problem.vectors
    zero = np.zeros_like(point)
    yield compare_points(
        1,
        "gradients compressed: |mean step at x*|",
        zero,
        zero,
        (masks * gradients[:, None]).sum(0),
    )
    m = problems.scaled(problem, n)
    step = theory.safe_step(m)
    predicted = theory.thinned(m.matrix, 1) @ point - m.vector
    moved = (starts - study.after_one_round(m, starts, step)) / step
    yield compare_points(1, "model compressed: |mean step at x*|", zero, predicted, moved)
    inside = np.einsum("wij,wrj->ri", problem.matrices, n * masks * point) / n - problem.vector
    yield compare_points(
        1, "|E grad f(C x*)|, outside of the sketch", zero, np.zeros_like(point), inside
    )


def descent(study: Study) -> Iterator[Row]:
    """2: where descent fails, and up to which step it is guaranteed; Perm-1, b = 0."""
    n = study.workers
    a, b, c = COUNTEREXAMPLE
    edge = 2 * a * b / (a + b)
    for name, corner in (("0.99 edge", 0.99 * edge), ("1.01 edge", 1.01 * edge), (f"{c}", c)):
        example = problems.counterexample(a, b, corner, n)
        starts = np.zeros((3, n))
        starts[[0, 1, 2, 2], [0, 1, 0, 1]] = 1
        falls = study.rates(example.matrix, example, starts)[0]
        mixed = (falls[2] - falls[0] - falls[1]) / 2
        least = np.linalg.eigvalsh([[falls[0], mixed], [mixed, falls[1]]])[:1]
        predicted = theory.least_descent(
            example.matrix[:2, :2], problems.counterexample(a, b, corner, 2)
        )
        yield compare(2, f"c = {name}: least eigenvalue of W", predicted[0], np.repeat(least, 2))
    yield from _growth(study)
    problem = study.problem(1, heterogeneous=True)
    m = problems.scaled(problem, n)
    lowest, worst = theory.least_descent(problem.matrix, m)
    falls = study.rates(problem.matrix, m, study.one_step_starts(worst))[0]
    yield compare(2, "n differ: least eigenvalue of W", lowest, falls)
    if lowest > 0:
        bound, direction = theory.step_bound(problem.matrix, m)
        falls, bends = study.rates(problem.matrix, m, study.one_step_starts(direction))
        yield compare(2, "n differ: theta, in its direction", bound, _ratio(bends, falls))


def _growth(study: Study) -> Iterator[Row]:
    """From the direction in which f rises: how far, and that |x| falls; and with D^(-1/2)."""
    example = problems.counterexample(*COUNTEREXAMPLE, study.workers)
    changed = problems.changed_variables(example)
    worst = theory.least_descent(example.matrix, example)[1]

    def both(problem: Quadratic, start: Array) -> tuple[Array, Array]:
        """x of a run, two replicas, and as it must be, [rounds + 1, 2 or 1, d]: B = D."""
        step, rounds = 0.01, 200
        shrink = (1 - step * np.diagonal(problem.matrix)) ** np.arange(rounds + 1)[:, None]
        run = Run(np.stack([start, start]), np.full(rounds, step), seed=study.seed)
        return study.descend(problem, run), (start * shrink)[:, None]

    def row(what: str, seen: Array, expected: Array) -> Row:
        return compare(2, what, float(expected[0]), seen)

    runs = both(example, worst)
    values = [_value(example.matrix, points) for points in runs]
    yield row(f"c = {COUNTEREXAMPLE[2]}: largest f / f at the start", *map(_highest, values))
    norms = [np.linalg.norm(points, axis=2) for points in runs]
    yield row("the same: largest |x| / |x| a round before", *map(_steepest, norms))
    runs = both(changed, worst * np.sqrt(np.diagonal(example.matrix)))
    values = [_value(changed.matrix, points) for points in runs]
    yield row("by D^(-1/2): largest f / f a round before", *map(_steepest, values))


def _highest(values: Array) -> Array:
    return np.asarray(values.max(0) / values[0])


def _steepest(values: Array) -> Array:
    return np.asarray((values[1:] / values[:-1]).max(0))


def _ratio(over: Array, under: Array) -> Array:
    """Samples whose mean and error are those of the ratio of means, to first order."""
    ratio = over.mean() / under.mean()
    return np.asarray(ratio + (over - ratio * under) / under.mean())


def preconditioning(study: Study) -> Iterator[Row]:
    """3: D^(-1/2), in the interpolation case; Perm-1, b = 0."""
    n = study.workers
    same = problems.changed_variables(study.problem(1, heterogeneous=False))
    starts = _anywhere(study, n)
    falls, bends = study.rates(same.matrix, problems.scaled(same, n), starts)
    yield compare(3, "one L, by D^(-1/2): theta = n", n, bends / falls)
    differing = study.problem(1, heterogeneous=True).interpolated()
    left = study.after_one_round(problems.preconditioned(differing), starts, 1.0)
    yield compare(3, "n differ, D_i^(-1/2), step 1: |x| left", 0.0, _shrunk(left, starts))
    printed = problems.preconditioned_as_printed(study.problem(1, heterogeneous=False))
    left = study.after_one_round(printed.interpolated(), starts, 1.0)
    expected = starts * (1 - n * np.diagonal(printed.matrix) / n)
    yield compare(
        3,
        "one L, L^(-1/2) as printed: |x| left",
        float(_shrunk(expected, starts).mean()),
        _shrunk(left, starts) - _shrunk(expected, starts) + _shrunk(expected, starts).mean(),
    )


def _anywhere(study: Study, size: int) -> Array:
    """A random start for each replica."""
    shape = (0, study.replicas)
    return random_streams.uniform("quadratic/start", study.seed, shape, size, 1.0).astype(
        np.float64
    )


def _shrunk(points: Array, starts: Array) -> Array:
    return np.linalg.norm(points, axis=1) / np.linalg.norm(starts, axis=1)


def bias(study: Study) -> Iterator[Row]:
    """4: the bias of the preconditioned sketches if b is not 0; Perm-1. Rows: |x - x*|."""
    n = study.workers
    problem = study.problem(1, heterogeneous=True)
    yield compare_points(
        4,
        "n differ: n^(-3/2) sum D_i^(-1/2) b_i",
        problem.minimiser(),
        theory.preconditioned_fixed_point(problem),
        study.means(problems.preconditioned(problem), 1, 0.5),
    )
    for name, same in (
        ("one L: D^(-1/2) b / sqrt(n)", study.problem(1, heterogeneous=False)),
        ("the same, of eigenvalue sqrt(n)", problems.exact(n, study.seed)),
    ):
        same = problems.changed_variables(same)
        yield compare_points(
            4,
            name,
            same.minimiser(),
            same.vector / np.sqrt(n),
            study.after_one_round(problems.scaled(same, np.sqrt(n)), _anywhere(study, n), 1.0),
        )


def theorem2(study: Study) -> Iterator[Row]:
    """5: theorem 2 and the exact limit; Perm-1, preconditioned. Rows: mean |grad f|^2."""
    problem = study.problem(1, heterogeneous=True)
    m, theorem = problems.preconditioned(problem), theory.Theorem2.of(problem)
    start = np.zeros((study.replicas, m.size))
    at_start = float(problem.suboptimality(start[0]))
    for name, step in (("1/3", 1 / 3), ("1/12", 1 / 12)):
        before = theory.rounds_to_forget(m, 1, step, _LEFT_OF_NOISE)
        rounds = before + study.rounds
        seen = study.descend(m, Run(start, np.full(rounds, step), seed=study.seed))
        squares = 2 * problem.suboptimality(seen)
        yield compare(
            5, f"step {name}: limit", theorem.stationary(step), squares[1 + before :].mean(0)
        )
        bound = theorem.bound(step, _BETA, at_start, rounds)
        yield compare(5, f"step {name}: mean, bound", bound, squares[:-1].mean(0), bound=True)
    steps = 1 / np.arange(1.0, 1 + study.rounds)
    seen = study.descend(m, Run(start, steps, seed=study.seed, every=study.rounds))
    squares = 2 * problem.suboptimality(seen[-1])
    expected = theorem.averaged(study.rounds)
    yield compare(5, f"steps 1/k, k = {study.rounds} (|h|^2 is left)", expected, squares)


def masked(study: Study) -> Iterator[Row]:
    """6: the masked form, which trains networks; Perm-q. Rows: |mean x - x*|."""
    q, several = study.q, study.local_steps
    same, differing = (study.problem(q, heterogeneous) for heterogeneous in (False, True))
    whole = differing.in_one()
    step = theory.safe_step(whole)
    rounds = theory.rounds_to_forget(whole, whole.size, step, _LEFT)
    run = Run(np.full((2, whole.size), 3.0), np.full(rounds, step), every=rounds)
    least = whole.minimiser()
    yield compare_points(6, "gradient descent (q = d)", least, least, in_process(whole, run)[-1])

    def row(what: str, problem: Quadratic, share: float = 1.0, local_steps: int = 1) -> Row:
        step = share * theory.safe_step(problem)
        predicted = theory.mean_fixed_point(problem, q, step, local_steps)
        means = study.means(problem, q, step, local_steps)
        return compare_points(6, what, problem.minimiser(), predicted, means)

    yield row("one L: L_q^(-1) b", same)
    yield row("the same, a quarter of the step", same, 0.25)
    changed = problems.changed_variables(same)
    root = np.sqrt(np.diagonal(same.matrix))
    means = study.means(changed, q, theory.safe_step(changed)) / root
    predicted = theory.mean_fixed_point(same, q)
    yield compare_points(6, "the same, by D^(-1/2)", same.minimiser(), predicted, means)
    yield row(f"one L, {several} local steps", same, local_steps=several)
    yield row("n differ: mean(L)_q^(-1) mean(b)", differing)
    yield row(f"n differ, {several} local steps", differing, local_steps=several)

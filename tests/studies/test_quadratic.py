"""The formulas of quadratics against what is measured, and the command."""

import numpy as np
import pytest
import torch

from ist_hpc.common.blocks import block_of
from ist_hpc.common.errors import InputError
from ist_hpc.exchange import placement
from ist_hpc.exchange.exchanger import Exchanger, allocate_home
from ist_hpc.exchange.placement import Axis, Deal, TensorSpec, at_round, home
from ist_hpc.quadratic import _arguments, _run, main
from ist_hpc.runtime.launch import Runtime
from ist_hpc.studies.quadratic import descent, figures, formulas, problems, theory
from ist_hpc.studies.quadratic.descent import Run, in_process
from ist_hpc.studies.quadratic.formulas import Study
from tests.helpers.launching import one_error_line, run_ranks
from tests.helpers.threads import ThreadRanks

pytestmark = pytest.mark.long

SMALL = {"workers": 2, "q": 4, "rounds": 60, "seed": 1}


# Formulas against measurements.


@pytest.fixture(scope="module")
def dense() -> list[formulas.Row]:
    return list(formulas.measure(Study(in_process, **SMALL)))


def failing(rows) -> list[str]:
    return [f"{row.formula} {row.what}" for row in rows if not row.holds]


def test_every_formula_holds(dense):
    assert failing(dense) == []
    assert [sum(row.formula == number for row in dense) for number in range(1, 7)] == [
        3, 8, 3, 3, 5, 7
    ]  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        {"workers": 3, "q": 2, "condition": 100.0, "replicas": 16, "rounds": 40},
        {"workers": 3, "q": 2, "kind": "diagonal", "condition": 3.0, "rounds": 40},
        {"workers": 5, "q": 1, "condition": 2.0, "local_steps": 1, "replicas": 16, "rounds": 40},
    ],
    ids=["badly conditioned", "diagonal", "one coordinate a worker"],
)
def test_every_formula_holds_for_other_problems(settings):
    rows = list(formulas.measure(Study(in_process, **settings)))
    assert failing(rows) == []
    assert len(rows) in (28, 29)  # theta needs W to be positive definite


def test_the_measurements_could_have_told(dense):
    """Errors are far below what is measured: a bias of 0 is excluded, where one is predicted."""
    told = [row.predicted / row.error for row in dense if row.predicted and row.error > 1e-12]
    assert len(told) == 15
    assert min(told) > 2 * formulas.allowed_errors(32)


def test_a_biased_deal_is_found(monkeypatch):
    """Every eighth round the deal is not random: blocks."""
    fair = placement.deal

    def biased(name, axis, ranks, seed, round_index) -> Deal:
        if round_index % 8 == 3:
            return Deal(name, ranks, block_of(axis.size, ranks))
        return fair(name, axis, ranks, seed, round_index)

    monkeypatch.setattr(placement, "deal", biased)
    study = Study(in_process, **SMALL)
    assert failing(formulas.bias(study))
    assert len(failing(formulas.masked(study))) >= 3


def q_over_d(matrix, q):
    diagonal = np.diag(np.diagonal(matrix))
    return diagonal + q / len(matrix) * (matrix - diagonal)


def of_all_coordinates(m, q, step=1.0, local_steps=1):
    return m.minimiser()


def of_one_local_step(m, q, step=1.0, local_steps=1):
    return np.linalg.solve(theory.thinned(m.matrix, q), m.vector)


def wrong_power(problem):
    return (problem.vectors / np.sqrt(problem.diagonals)).mean(0)


def with_replacement(values):
    return np.outer(values.mean(0), values.mean(0)) + np.diag(values.var(0))


def without_scatter(values):
    return np.outer(values.mean(0), values.mean(0))


def without_coupling(matrix, m):
    return np.diag(np.diagonal(matrix) * m.diagonals.mean(0))


def of_half_the_step(self, step):
    return self.bias + step / 2 * self.noise


def without_noise(self, step):
    return self.bias


def of_twice_the_rounds(self, rounds):
    return self.bias + self.noise / (2 * rounds)


SCATTERED = {"workers": 4, "condition": 30.0, "seed": 1}
COUPLED = {"workers": 2, "condition": 10.0, "seed": 18}
DENSE = {"workers": 8, "q": 1, "condition": 10.0}
# Few rounds and like eigenvalues, so that noise is not lost beside the bias.
NOISY = {"workers": 4, "q": 1, "kind": "diagonal", "condition": 2.0, "seed": 3}
NOISY |= {"rounds": 4, "replicas": 200}


@pytest.mark.parametrize(
    ("name", "wrong", "rows", "least", "settings"),
    [
        ("thinned", q_over_d, formulas.masked, 3, SMALL),
        ("mean_fixed_point", of_all_coordinates, formulas.masked, 4, SMALL),
        ("mean_fixed_point", of_one_local_step, formulas.masked, 1, SMALL),
        ("preconditioned_fixed_point", wrong_power, formulas.bias, 1, SMALL),
        ("_deal_moments", with_replacement, formulas.theorem2, 2, COUPLED),
        ("_deal_moments", without_scatter, formulas.descent, 1, SCATTERED),
        ("descent_matrix", without_coupling, formulas.descent, 3, SMALL),
        ("Theorem2.stationary", of_half_the_step, formulas.theorem2, 1, DENSE),
        ("Theorem2.stationary", without_noise, formulas.theorem2, 2, NOISY),
        ("Theorem2.averaged", of_twice_the_rounds, formulas.theorem2, 1, NOISY),
    ],
)
def test_a_wrong_formula_is_found(name, wrong, rows, least, settings, monkeypatch):
    monkeypatch.setattr(f"{theory.__name__}.{name}", wrong)
    assert len(failing(rows(Study(in_process, **settings)))) >= least


def test_the_norm_of_theorem_2_is_that_of_l():
    """With L^2, as the theorem prints, the bound is broken where eigenvalues are small."""
    large = problems.drawn("dense", 4, 4, 3.0, True, 0)
    problem = problems.Quadratic(large.matrices / 30, large.vectors)
    theorem, step, beta = theory.Theorem2.of(problem), 1 / 3, 0.25
    h = problem.minimiser() - theory.preconditioned_fixed_point(problem)
    printed = theory.Theorem2(float(h @ problem.matrix @ problem.matrix @ h), theorem.noise)
    at_start = float(problem.suboptimality(np.zeros(4)))
    run = Run(np.zeros((16, 4)), np.full(400, step))
    seen = 2 * problem.suboptimality(in_process(problems.preconditioned(problem), run)[:-1])
    below = seen.mean(0) - 5 * seen.mean(0).std(ddof=1)
    assert (below > printed.bound(step, beta, at_start, 400)).all()
    assert (seen.mean(0) < theorem.bound(step, beta, at_start, 400)).all()


def test_few_replicas_are_allowed_more():
    """Quantiles of Student's t as improbable as five standard deviations of a normal one."""
    for replicas, quantile in ((16, 8.267), (32, 6.268), (64, 5.565), (256, 5.130)):
        assert formulas.allowed_errors(replicas) == pytest.approx(quantile, rel=0.01)


def test_verdicts():
    samples = np.array([0.9, 1.0, 1.1] * 10)
    error = samples.std(ddof=1) / np.sqrt(30)
    limit = formulas.allowed_errors(30)
    for off, holds in ((0.99 * limit, True), (1.01 * limit, False)):
        for sign in (-1, 1):
            row = formulas.compare(1, "", 1.0 + sign * off * error, samples)
            assert row.holds == holds
            assert row.away == pytest.approx(off)
        assert formulas.compare(1, "", 1.0 + off * error, samples, bound=True).holds
        assert formulas.compare(1, "", 1.0 - off * error, samples, bound=True).holds == holds
    exact = np.ones((8, 3))
    assert formulas.compare_points(1, "", np.zeros(3), np.ones(3), exact).holds
    wrong = np.array([1, 1, 1 + 1e-11])
    assert not formulas.compare_points(1, "", np.zeros(3), wrong, exact).holds


# Where the coordinates are.


def test_the_exchange_moves_every_bit():
    """Signalling NaNs, denormals and all, as halves of float64: rounds, and home again."""
    ranks, size = 3, 300
    bits = np.random.default_rng(2).integers(0, 2**63, size, dtype=np.int64) * 2 + 1
    bits[:6] = [0x7F800001_FF800001, 0x7FA00000_00000001, -1, 0, -(2**63), 0x00000001_80000001]
    spec = TensorSpec("x0", (size, 2), ("x0", None))

    def body(comm):
        state = allocate_home([spec], comm.rank, ranks)
        block = descent._doubles(state["x0"].place("home"))
        block[:] = bits[slice(*spec.home_rows(comm.rank, ranks))].view(np.float64)
        exchanger, source = Exchanger(comm, 1.0), home(ranks)
        axes = {"x0": Axis(size)}
        for target in (*(at_round(axes, ranks, 0, index) for index in range(4)), source):
            exchanger.exchange([spec], source, target, state)
            source = target
        return state["x0"].place("home").view(torch.int32).numpy()

    arrived = np.concatenate(ThreadRanks(ranks).run(body))
    assert np.array_equal(arrived, bits.view(np.int32).reshape(-1, 2))


# The command.


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--q 0", "--q must be at least 1, got 0"),
        ("--replicas 15", "--replicas must be at least 16, got 15"),
        ("--condition 0.5", "--condition must be 1 to 1000, got 0.5"),
        ("--condition nan", "--condition must be 1 to 1000, got nan"),
        ("--seed 18446744073709551616", "--seed must be below 2^64"),
        ("--kind sparse", "invalid choice: 'sparse'"),
        ("--output x.txt", "--output must end with .png, .pdf, .svg"),
    ],
)
def test_a_wrong_command_line_is_one_line(words, says, capsys):
    assert main(words.split()) == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert printed.err.startswith("quadratic: error: ")
    assert says in printed.err
    assert printed.err.count("\n") == 1


class Alone:
    """A communicator of one rank, as far as the command uses it."""

    def bcast(self, value, root=0):
        return value

    def allgather(self, value):
        return [value]

    def Get_rank(self) -> int:  # noqa: N802
        return 0


def command(*words: str) -> int:
    return _run(Runtime(Alone(), 0, 1, 1), _arguments(words))


QUICK = ("--workers", "3", "--q", "2", "--replicas", "16", "--rounds", "8", "--condition", "2")


def test_the_table_and_the_picture(capsys, monkeypatch, tmp_path):
    for name, value in {"_ROUNDS": 5, "_SHARES": (1.0,), "_WORKERS": (2, 24)}.items():
        monkeypatch.setattr(figures, name, value)
    monkeypatch.setattr(figures, "_CONDITIONS", (2.0,))
    picture = tmp_path / "quadratic.png"
    assert command(*QUICK, "--output", str(picture)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "3 workers, in one process; dense, eigenvalues 1 to 2; seed 0"
    assert sum("holds (" in line for line in lines) == 29
    assert lines[-2:] == ["29 of 29 rows hold", f"picture: {picture}"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_formula_that_fails_is_said_and_ends_with_1(capsys, monkeypatch):
    monkeypatch.setattr(theory, "thinned", q_over_d)
    assert command(*QUICK) == 1
    out = capsys.readouterr().out
    assert "FAILS (" in out
    assert "29 of 29" not in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--output", "nowhere/x.png"), "make it: mkdir -p nowhere"),
        (("--workers", "1"), "at least 2"),
        (("--workers", "100", "--q", "9"), "at most 512 coordinates, got 9 x 100"),
        (("--workers", "8", "--q", "8"), "more than 200000; lower --q"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_measured(words, says):
    with pytest.raises(InputError, match=says):
        command(*words)


def test_workers_that_are_not_the_ranks_are_refused_once(tmp_path):
    words = ["-m", "ist_hpc.quadratic", "--workers", "3"]
    done = run_ranks(2, words, tmp_path, check=False)
    assert one_error_line(done) == ("quadratic: error: 2 ranks are 2 workers; leave --workers out")
    assert not done.stdout

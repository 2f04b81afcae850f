"""Quadratics over real MPI: a rank is a worker, and the iterates are those of one process."""

import numpy as np
import pytest

from ist_hpc.common.sizes import ELEMENT_BYTES
from ist_hpc.exchange.exchanger import Exchanger
from ist_hpc.exchange.placement import TensorSpec, at_round, home
from ist_hpc.exchange.plan import pair_counts
from ist_hpc.quadratic import _arguments, _run
from ist_hpc.runtime.launch import Runtime
from ist_hpc.runtime.meters import ExchangeReport
from ist_hpc.studies.quadratic import descent, formulas, problems, theory
from ist_hpc.studies.quadratic.descent import Run, in_process, over_ranks

SEED = 5


def some(world, q=3, heterogeneous=True):
    workers = world.Get_size()
    return problems.drawn("dense", q * workers, workers, 20.0, heterogeneous, SEED)


def run_of(problem, **settings) -> Run:
    start = np.random.default_rng(SEED).normal(size=(3, problem.size))
    steps = theory.safe_step(problem) / np.arange(1.0, 13.0)
    return Run(start, steps, seed=SEED, **settings)


def same_bits(one, other) -> bool:
    return np.array_equal(one.view(np.int64), other.view(np.int64))


@pytest.mark.parametrize("local_steps", [1, 4])
@pytest.mark.parametrize("form", ["masked", "scaled", "preconditioned"])
def test_ranks_give_the_iterates_of_one_process_to_the_last_bit(world, form, local_steps):
    problem = some(world)
    if form == "scaled":
        problem = problems.scaled(problem, problem.workers)
    elif form == "preconditioned":
        problem = problems.preconditioned(problem)
    run = run_of(problem, local_steps=local_steps)
    seen = over_ranks(world, problem, run)
    assert seen.dtype == np.float64
    assert seen.shape == (13, 3, problem.size)
    assert same_bits(seen, in_process(problem, run))


def test_looking_at_x_changes_nothing(world):
    problem = some(world, heterogeneous=False)
    often = over_ranks(world, problem, run_of(problem))
    seldom = over_ranks(world, problem, run_of(problem, every=4))
    assert same_bits(seldom[1:], often[4::4])


def test_a_rank_uses_its_own_function_only(world):
    problem = some(world)
    own = np.arange(problem.workers) == world.Get_rank()
    nowhere = problems.Quadratic(
        np.where(own[:, None, None], problem.matrices, np.nan),
        np.where(own[:, None], problem.vectors, np.nan),
    )
    run = run_of(problem)
    assert same_bits(over_ranks(world, nowhere, run), in_process(problem, run))


def test_the_exchange_moves_the_coordinates(world, monkeypatch):
    """An exchange a round, of the bytes that follow from the deals."""
    ranks, reports = world.Get_size(), []

    class Counted(Exchanger):
        def exchange(self, *arguments, **settings) -> ExchangeReport:
            reports.append(super().exchange(*arguments, **settings))
            return reports[-1]

    monkeypatch.setattr(descent, "Exchanger", Counted)
    problem = some(world)
    run = run_of(problem, every=99)
    over_ranks(world, problem, run)
    assert len(reports) == len(run.steps)
    specs = [TensorSpec(name, (axis.size, 2), (name, None)) for name, axis in run.axes.items()]
    places = [home(ranks), *(at_round(run.axes, ranks, SEED, index) for index in range(12))]
    for source, target, report in zip(places[:-1], places[1:], reports, strict=True):
        counts = pair_counts(specs, source, target) * ELEMENT_BYTES
        assert report.bytes_sent == counts[world.Get_rank()].sum()
    moved = world.allreduce(sum(report.bytes_sent for report in reports))
    assert (moved > 0) == (ranks > 1)


def test_without_the_exchange_it_is_another_descent(world, monkeypatch):
    """The coordinates stay where they were first: the comparison above would see it."""

    class Still(Exchanger):
        def exchange(self, specs, source, target, state, keep_source=False) -> ExchangeReport:
            if not source.is_home and not target.is_home:
                return ExchangeReport()
            return super().exchange(specs, source, target, state, keep_source)

    monkeypatch.setattr(descent, "Exchanger", Still)
    problem = some(world)
    run = run_of(problem)
    same = same_bits(over_ranks(world, problem, run), in_process(problem, run))
    assert same == (world.Get_size() == 1)


def test_rank_0_prints_the_table_of_one_process(world, capsys, monkeypatch):
    """A part of the table; all ranks agree that it holds."""
    monkeypatch.setattr(formulas, "measure", formulas.bias)
    ranks, rank = world.Get_size(), world.Get_rank()
    words = ["--q", "1", "--replicas", "16", "--rounds", "8", "--condition", "2"]
    assert _run(Runtime(world, rank, ranks, 1), _arguments(words)) == 0
    printed = capsys.readouterr().out.splitlines()
    alone = Runtime(world.Split(rank), 0, 1, 1)
    workers = ["--workers", str(ranks)] if ranks > 1 else []
    assert _run(alone, _arguments([*words, *workers])) == 0
    expected = capsys.readouterr().out.splitlines()
    assert expected[-1] == "3 of 3 rows hold"
    assert printed[1:] == (expected[1:] if rank == 0 else [])
    where = f"a rank each of {ranks}" if ranks > 1 else "in one process"
    assert rank > 0 or printed[0].split("; ")[0].endswith(f"workers, {where}")

"""The picture of the command: four panels, measured in one process; drawing imports matplotlib.

Two panels need other numbers of workers than a job has ranks, so one rank draws everything. Its
iterates equal those of the ranks.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ist_hpc.studies.plots import pictures
from ist_hpc.studies.quadratic import problems, theory
from ist_hpc.studies.quadratic.descent import Run, in_process
from ist_hpc.studies.quadratic.formulas import COUNTEREXAMPLE, Study
from ist_hpc.studies.quadratic.problems import Array, Quadratic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OTHERWISE = "take the table"
"""The alternative for a user without matplotlib."""

_COLOURS = pictures.COLOURS[:4]
_DASHED: dict[str, Any] = {"linestyle": "--", "lw": 1.1, "zorder": 1}
_ROUNDS = 200
_SHARES = (0.01, 0.03, 0.1, 0.3, 1.0)  # of the safe step
_SIZE = 24  # coordinates where the number of workers varies
_WORKERS = (2, 3, 4, 6, 8, 12, 24)
_CONDITIONS = (2.0, 10.0, 100.0)


def save(study: Study, output: Path) -> None:
    """Measure, draw into a file and replace it. Local.

    Raises `InputError` if matplotlib is missing or the file cannot be written.
    """
    study = replace(study, descend=in_process)
    figure = pictures.new_figure(11.6, 8.2, OTHERWISE)
    panels = (_distance, _step_size, _share, _descent)
    for axes, panel in zip(figure.subplots(2, 2).flat, panels, strict=True):
        panel(axes, study)
        pictures.plain(axes)
        axes.legend(frameon=False, fontsize="small")
    figure.suptitle(
        f"{study.workers} workers, {study.q} of {study.q * study.workers} coordinates each; "
        f"{study.kind}, eigenvalues 1 to {study.condition:g}; dashed: predicted",
        fontsize="medium",
    )
    pictures.save(figure, output)


def _distance(axes: "Axes", study: Study) -> None:
    """The mean over replicas settles beside the minimiser, where the formulas predict."""
    same, differing = (study.problem(study.q, differ) for differ in (False, True))
    several = study.local_steps
    for colour, (name, problem, q, local_steps) in zip(
        _COLOURS,
        (
            ("gradient descent, one L", same.in_one(), same.size, 1),
            ("subnets, one L", same, study.q, 1),
            (f"subnets, one L, {several} local steps", same, study.q, several),
            ("subnets, L and b differ", differing, study.q, 1),
        ),
        strict=True,
    ):
        # Small steps and many replicas, to show the mean and not the scatter of the deals.
        step, least = theory.safe_step(problem) / 4, problem.minimiser()
        start = np.zeros((4 * study.replicas, problem.size))
        run = Run(start, np.full(_ROUNDS, step), local_steps, study.seed)
        away = np.linalg.norm(in_process(problem, run).mean(1) - least, axis=1)
        axes.plot(away / np.linalg.norm(least), color=colour, lw=1.8, label=name)
        if q < problem.size:
            limit = theory.mean_fixed_point(problem, q, step, local_steps) - least
            far = float(np.linalg.norm(limit) / np.linalg.norm(least))
            axes.axhline(far, color=colour, **_DASHED)
    axes.set_yscale("log")
    axes.set_ylim(1e-3, 2)
    axes.set_xlabel("rounds")
    axes.set_ylabel("|mean x - x*| / |x*|")


def _step_size(axes: "Axes", study: Study) -> None:
    """Smaller steps remove the noise of the deals, not the bias."""
    seen = []
    for colour, differ in zip(_COLOURS[1::2], (False, True), strict=True):
        problem = study.problem(study.q, differ)
        scale = float(problem.suboptimality(np.zeros(problem.size)))
        points, errors = [], []
        for share in _SHARES:
            gaps = _gaps(study, problem, share * theory.safe_step(problem)) / scale
            points.append(gaps.mean())
            errors.append(gaps.std(ddof=1) / np.sqrt(len(gaps)))
        name = "subnets, L and b differ" if differ else "subnets, one L"
        axes.errorbar(_SHARES, points, errors, fmt="o-", color=colour, ms=4, label=name)
        limit = theory.mean_fixed_point(problem, study.q)
        floor = float(problem.suboptimality(limit)) / scale
        axes.axhline(floor, color=colour, **_DASHED)
        seen += [*points, floor]
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(min(seen) / 4, 2 * max(seen))
    axes.set_xlabel("step size, of 1 / largest eigenvalue")
    axes.set_ylabel("f - min f in the end, of that at 0")


def _gaps(study: Study, problem: Quadratic, step: float) -> Array:
    """Mean suboptimality of each replica over rounds, after the start is forgotten."""
    before = theory.rounds_to_forget(problem, study.q, step, 1e-4)
    start = np.zeros((study.replicas, problem.size))
    run = Run(start, np.full(before + study.rounds, step), seed=study.seed, every=4)
    seen = in_process(problem, run)
    return np.asarray(problem.suboptimality(seen[1 + before // 4 :]).mean(0))


def _share(axes: "Axes", study: Study) -> None:
    """The bias vanishes as a worker is dealt a larger share of the coordinates."""
    for colour, condition in zip(_COLOURS, _CONDITIONS, strict=False):
        measured, errors = [], []
        for workers in _WORKERS:
            q = _SIZE // workers
            own = replace(study, workers=workers, q=q, condition=condition)
            problem = own.problem(q, False)
            least = problem.minimiser()
            toward = theory.mean_fixed_point(problem, q) - least
            toward = toward / max(float(np.linalg.norm(toward)), 1e-12)
            along = (own.means(problem, q, theory.safe_step(problem)) - least) @ toward
            along = along / np.linalg.norm(least)
            measured.append(along.mean())
            errors.append(along.std(ddof=1) / np.sqrt(len(along)))
        shares = 1 / np.array(_WORKERS)
        name = f"eigenvalues 1 to {condition:g}"
        axes.errorbar(shares, measured, errors, fmt="o", color=colour, ms=4, label=name)
        limits = [theory.mean_fixed_point(problem, q) for q in range(1, _SIZE + 1)]
        predicted = np.linalg.norm(np.array(limits) - least, axis=1) / np.linalg.norm(least)
        axes.plot(np.arange(1, _SIZE + 1) / _SIZE, predicted, color=colour, **_DASHED)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"share q / d of the coordinates a worker is dealt (d = {_SIZE}, one L)")
    axes.set_ylabel("|mean x - x*| / |x*|")


def _descent(axes: "Axes", study: Study) -> None:
    """f may rise although |x| falls; in the variables D^(1/2) x it cannot."""
    a, b, last = COUNTEREXAMPLE
    edge = 2 * a * b / (a + b)
    step, rounds = 0.01, 200
    for colour, (c, changes) in zip(
        _COLOURS, ((1.5, False), (last, False), (3.1, False), (last, True)), strict=True
    ):
        problem = problems.counterexample(a, b, c, 2)
        worst = theory.least_descent(problem.matrix, problem)[1]
        if changes:
            worst = worst * np.sqrt(np.diagonal(problem.matrix))
            problem = problems.changed_variables(problem)
        run = Run(worst[None], np.full(rounds, step), seed=study.seed)
        values = problem.value(in_process(problem, run))[:, 0]
        name = f"c = {c:g}{', by D^(-1/2)' if changes else ''}"
        axes.plot(values / values[0], color=colour, lw=1.8, label=name)
    axes.axhline(1, color="0.6", lw=1, zorder=0)
    axes.set_yscale("log")
    axes.set_xlabel(f"rounds at step {step:g}; L = [[{a:g}, c], [c, {b:g}]], b = 0")
    axes.set_ylabel(f"f / f at the start (2ab / (a + b) = {edge:.2f})")

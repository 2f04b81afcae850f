"""`python -m ist_hpc.quadratic`: what independent subnets converge to, predicted and measured."""

import argparse
from collections.abc import Sequence
from functools import partial
from math import comb, isfinite
from pathlib import Path

from ist_hpc.common import random_streams
from ist_hpc.common.commandline import Parser, add_version, given_path
from ist_hpc.common.errors import EXIT_FAILED, InputError
from ist_hpc.runtime.ending import run
from ist_hpc.runtime.launch import AgreedInputError, Runtime, launch, on_root
from ist_hpc.studies.plots import pictures
from ist_hpc.studies.quadratic import figures, formulas, theory
from ist_hpc.studies.quadratic.descent import in_process, over_ranks
from ist_hpc.studies.quadratic.formulas import Row, Study
from ist_hpc.studies.quadratic.problems import KINDS

_PROGRAM = "python -m ist_hpc.quadratic"
_WORKERS = 8
_LEAST_REPLICAS = 16
_MOST_COORDINATES = 512
_MOST_CONDITION = 1000.0
_EPILOG = f"""\
examples:
  {_PROGRAM}
      8 workers, in this process, one after the other; about ten seconds
  mpirun -np 4 {_PROGRAM} --replicas 16
      4 ranks are 4 workers, and coordinates move between them as neurons do in training. The
      iterates are to the last bit those of --workers 4 in one process, only slower
  {_PROGRAM} --condition 1000 --output quadratic.png
      badly conditioned, and a picture
  {_PROGRAM} --kind diagonal
      no coordinate depends on another: one L leaves no bias

f is the mean of the workers' f_i(x) = x'L_i x / 2 - b_i'x. Each round the d = qn coordinates are
dealt to the n workers, q to each, and each takes local gradient steps on its own with the others
masked to zero. Formulas 1 to 5 are of Shulgin and Richtarik (arXiv 2306.16484), who deal one
coordinate to a worker (Perm-1) and put sketches C_i = c_i P_i in place of the masks P_i; 6 is of
the masks, by which this package trains networks. "one L": all f_i are the same; "n differ": they
are not. L_q = D + ((q - 1) / (d - 1)) (L - D), D the diagonal of L. docs/when-it-works.md explains.

A row holds if the mean over replicas, which differ in their deals, is within five standard errors
of the prediction (more where replicas are few: Student's t), or within rounding.
exit code: 0 if all rows hold, 1 if one does not, 2 if the command line is wrong.
"""


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=_PROGRAM,
        description="Train quadratics by independent subnets, and print the fixed points, biases "
        "and step sizes that theory predicts beside those that are measured.",
        epilog=_EPILOG,
    )
    study = Study(in_process, _WORKERS)
    add = parser.add_argument
    add("--workers", type=int, metavar="N", help=f"default: {_WORKERS}; under mpirun its ranks")
    add("--q", type=int, default=study.q, help="coordinates a worker (default: %(default)s)")
    add("--kind", choices=KINDS, default=study.kind, help="of the L_i (default: %(default)s)")
    add(
        "--condition",
        type=float,
        default=study.condition,
        metavar="K",
        help="eigenvalues of the L_i go from 1 to K (default: %(default)g)",
    )
    add(
        "--local-steps",
        type=int,
        default=study.local_steps,
        metavar="J",
        help="of the rows with several (default: %(default)s)",
    )
    add(
        "--replicas",
        type=int,
        default=study.replicas,
        help="independent runs, from which the standard errors are (default: %(default)s)",
    )
    add(
        "--rounds",
        type=int,
        default=study.rounds,
        help="averaged, after those in which the start is forgotten (default: %(default)s)",
    )
    add("--seed", type=int, default=0, help="of problems and deals (default: 0)")
    add(
        "--output",
        type=given_path,
        metavar="FILE",
        help="a picture, too: .png (or .pdf, .svg); replaced; drawn by rank 0 alone",
    )
    add_version(parser)
    return parser


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked as far as possible without the number of ranks."""
    given = _parser().parse_args(argv)
    for name, least in (
        ("q", 1),
        ("local_steps", 1),
        ("replicas", _LEAST_REPLICAS),
        ("rounds", 8),
        ("seed", 0),
    ):
        if getattr(given, name) < least:
            option = name.replace("_", "-")
            raise InputError(f"--{option} must be at least {least}, got {getattr(given, name)}")
    if given.seed >= random_streams.SEED_LIMIT:
        raise InputError(f"--seed must be below 2^64, got {given.seed}")
    if not (isfinite(given.condition) and 1 <= given.condition <= _MOST_CONDITION):
        raise InputError(f"--condition must be 1 to {_MOST_CONDITION:g}, got {given.condition:g}")
    output: Path | None = given.output
    if output is not None:
        pictures.refuse_format(output)
    return given


def _refuse_output(output: Path) -> None:
    """Refuse an output that would fail only after minutes. Local, on the rank that draws."""
    if not output.parent.is_dir():
        raise InputError(f"--output: there is no folder {output.parent}")
    pictures.require_matplotlib(figures.OTHERWISE)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line on every rank; returns the exit code. Collective."""
    return launch("quadratic", lambda: _arguments(argv), _run)


def _run(runtime: Runtime, arguments: argparse.Namespace) -> int:
    comm, chief = runtime.comm, runtime.rank == 0
    study = _study(runtime, arguments)
    if arguments.output is not None:
        on_root(comm, lambda: _refuse_output(arguments.output))
    if chief:
        print("\n".join(_heading(study, runtime.ranks)), flush=True)
    rows: list[Row] = []
    for row in formulas.measure(study):
        if chief and (not rows or rows[-1].formula != row.formula):
            print(_TITLES[row.formula])
        if chief:
            print(_line(row), flush=True)
        rows.append(row)
    failed = sum(not row.holds for row in rows)
    if chief:
        print(f"{len(rows) - failed} of {len(rows)} rows hold")
    if arguments.output is not None:
        on_root(comm, lambda: figures.save(study, arguments.output))
        if chief:
            print(f"picture: {arguments.output}")
    return int(comm.bcast(EXIT_FAILED if failed else 0))


def _study(runtime: Runtime, arguments: argparse.Namespace) -> Study:
    """What to measure; raises `AgreedInputError` for a number of workers that does not fit."""
    asked, ranks, q = arguments.workers, runtime.ranks, arguments.q
    if ranks > 1 and asked not in (None, ranks):
        raise AgreedInputError(f"{ranks} ranks are {ranks} workers; leave --workers out")
    workers = ranks if ranks > 1 else _WORKERS if asked is None else asked
    size = q * workers
    if workers < 2:
        raise AgreedInputError("--workers must be at least 2: one worker is gradient descent")
    if size > _MOST_COORDINATES:
        raise AgreedInputError(f"at most {_MOST_COORDINATES} coordinates, got {q} x {workers}")
    if arguments.local_steps > 1 and comb(size, q) > theory.MOST_SUBSETS:
        raise AgreedInputError(
            f"several local steps are predicted by a sum over all subsets of {q} of {size} "
            f"coordinates, more than {theory.MOST_SUBSETS}; lower --q, or --local-steps 1"
        )
    return Study(
        partial(over_ranks, runtime.comm) if ranks > 1 else in_process,
        workers,
        q,
        arguments.kind,
        arguments.condition,
        arguments.local_steps,
        arguments.replicas,
        arguments.rounds,
        arguments.seed,
    )


_TITLES = {
    1: "1  compressing the model is not compressing the gradient (Perm-1, C_i = n P_i)",
    2: "2  descent of f can fail: W = (LB + BL) / 2, B = E sum P_i L_i P_i (Perm-1, b = 0)",
    3: "3  what D^(-1/2) cures (Perm-1, b = 0)",
    4: "4  what it does not: |mean x - x*| where b is not 0 (Perm-1, preconditioned)",
    5: "5  theorem 2: mean |grad f|^2 in the norm of L^(-1) (Perm-1, preconditioned)",
    6: "6  masks, as networks are trained: |mean x - x*| (Perm-q)",
}


def _heading(study: Study, ranks: int) -> list[str]:
    q, workers = study.q, study.workers
    where = f"a rank each of {ranks}" if ranks > 1 else "in one process"
    return [
        f"{workers} workers, {where}; {study.kind}, eigenvalues 1 to {study.condition:g}; "
        f"seed {study.seed}",
        f"Perm-1: d = {workers}; Perm-q: q = {q}, d = {q * workers}; {study.replicas} replicas, "
        f"means over {study.rounds} rounds",
        "",
        f"{'':46}{'predicted':>12}{'measured':>13}  {'s.e.':<9}verdict",
    ]


def _line(row: Row) -> str:
    away = "rounding" if row.away != row.away else f"{row.away:.1f} s.e."
    verdict = f"holds ({away})" if row.holds else f"FAILS ({away})"
    relation = "<=" if row.is_bound else "  "
    verdict = verdict.replace("(0.0 s.e.)", "(below)") if row.is_bound else verdict
    return (
        f"   {row.what:<41}{relation}{row.predicted:>12.6g}{row.measured:>13.6g}  "
        f"{row.error:<9.1e}{verdict}"
    )


if __name__ == "__main__":
    run("quadratic", main)

"""`python -m ist_hpc.plot`: learning curves, speed-ups and tables of runs and studies; no MPI."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ist_hpc.common.commandline import Parser, add_version, given_path
from ist_hpc.common.errors import EXIT_BAD_INPUT, InputError
from ist_hpc.common.standard_streams import complain
from ist_hpc.runtime.ending import run
from ist_hpc.studies.plots import pictures
from ist_hpc.studies.plots import study as plot_study
from ist_hpc.studies.plots.curves import curves, table
from ist_hpc.studies.plots.draw import draw, draw_scaling
from ist_hpc.studies.plots.runs import Run, read_run

_PROGRAM = "python -m ist_hpc.plot"
_EPILOG = f"""\
examples:
  {_PROGRAM} runs/speech2-a --output curves.png
  {_PROGRAM} runs/r1 runs/r4 --x steps samples --label "1 rank" "4 ranks" --output a.png
      two panels: the same curves over steps and over samples
  {_PROGRAM} runs/r4-seed* runs/r1-seed* --group --output curves.png --table
      runs that differ only in seed or fold of the data become one curve: mean, band from the least
      to the most; --table prints them as Markdown, too
  {_PROGRAM} runs/* --table
      only the table
  {_PROGRAM} runs/scaling --output speed-up.png --table
      a study of `bench scaling`: speed-up over ranks, and its tables
  {_PROGRAM} runs/scaling/ranks-* --table
      scaling studies of several jobs as one
  {_PROGRAM} runs/convergence --ranks 4 --x seconds bytes --log --output curves.png \\
      --seconds-from runs/scaling/scaling.csv
      a study of `bench convergence`: a curve a method; seconds are steps times the seconds a step
      of the other study

A run that is still going can be plotted. Seconds and bytes are those of training and exchanging;
evaluations and checkpoints are left out, so that how often one looks does not change the curve.
"""


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=_PROGRAM,
        description="Draw learning curves (a metric on the test rows) of runs, or what a study "
        "found, and print tables.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=given_path,
        metavar="RUN",
        help="a run folder, or one folder of a study",
    )
    parser.add_argument(
        "--output", type=given_path, metavar="FILE", help="the plot: .png (or .pdf, .svg); replaced"
    )
    parser.add_argument(
        "--x",
        nargs="+",
        choices=("steps", "samples", "seconds", "bytes"),
        help="what the metric is drawn over, a panel each (default: steps)",
    )
    parser.add_argument("--log", action="store_true", help="logarithmic axes of x")
    parser.add_argument(
        "--group",
        action="store_true",
        help="one curve for runs that differ only in seed or fold of the data",
    )
    parser.add_argument(
        "--label", nargs="+", default=[], metavar="TEXT", help="a label for each curve, in order"
    )
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="such as precision_at_5; default: accuracy, or precision_at_1 for sets of labels",
    )
    parser.add_argument(
        "--ranks", nargs="+", type=int, default=[], metavar="N", help="of a study only these"
    )
    parser.add_argument(
        "--seconds-from",
        type=given_path,
        metavar="scaling.csv",
        help="of a convergence study: seconds as steps times those of a step in this study",
    )
    parser.add_argument("--table", action="store_true", help="print a Markdown table")
    add_version(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        _run(_parser().parse_args(argv))
    except InputError as error:
        complain(f"plot: error: {error}")
        return EXIT_BAD_INPUT
    return 0


def _run(arguments: argparse.Namespace) -> None:
    output: Path | None = arguments.output
    if output is None and not arguments.table:
        raise InputError("nothing to do: give --output FILE for a plot, or --table; see --help")
    if output is not None:
        pictures.refuse_format(output)
    studies = [found for path in arguments.runs if (found := plot_study.find(path))]
    of_scaling = [plot_study.is_scaling(study) for study in studies]
    together = len(studies) == len(arguments.runs) and all(of_scaling)
    if studies and len(arguments.runs) > 1 and not together:
        raise InputError(
            "a study is plotted alone, or scaling studies together as one; got "
            f"{len(arguments.runs)} folders"
        )
    if studies:
        _of_study(studies, arguments)
    else:
        _of_runs(arguments)


def _of_runs(arguments: argparse.Namespace) -> None:
    for name in ("ranks", "seconds_from"):
        if getattr(arguments, name):
            raise InputError(
                f"--{name.replace('_', '-')} is of a study, the folder of a scaling.csv"
            )
    runs = [read_run(path, arguments.metric) for path in arguments.runs]
    _refuse_mixed(runs)
    lines = curves(runs, arguments.group, arguments.label)
    if arguments.output is not None:
        pictures.save(draw(lines, arguments.x or ["steps"], arguments.log), arguments.output)
    if arguments.table:
        print(table(lines))


def _of_study(studies: Sequence[Path], arguments: argparse.Namespace) -> None:
    study, scaling = studies[0], plot_study.is_scaling(studies[0])
    of_curves = ("x", "log", "label", "metric", "seconds_from")
    for name in ("group", *(of_curves if scaling else ())):
        if getattr(arguments, name):
            raise InputError(f"--{name.replace('_', '-')} is not for {study}; leave it out")
    if arguments.output is not None and scaling:
        pictures.save(
            draw_scaling(plot_study.scaling_summary(studies, arguments.ranks)), arguments.output
        )
    elif arguments.output is not None:
        lines = plot_study.curves(
            study, arguments.ranks, arguments.label, arguments.metric, arguments.seconds_from
        )
        _refuse_mixed([run for line in lines for run in line.runs])
        time = "steps x seconds a step, measured apart" if arguments.seconds_from else ""
        pictures.save(draw(lines, arguments.x or ["steps"], arguments.log, time), arguments.output)
    if arguments.table:
        print(plot_study.table(studies, arguments.ranks, arguments.seconds_from))


def _refuse_mixed(runs: Sequence[Run]) -> None:
    metrics = sorted({run.metric for run in runs if len(run.points["test"])})
    if len(metrics) > 1:
        raise InputError(
            f"the runs have different metrics, {' and '.join(metrics)}; plot them apart, or name "
            "one that all have: --metric"
        )


if __name__ == "__main__":
    run("plot", main)

"""The common part of both studies: the command line, and making the runs that have no row yet."""

import argparse
import copy
import dataclasses
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ist_hpc.common.commandline import add_configuration, count, given_path
from ist_hpc.common.errors import EXIT_BAD_INPUT, InputError
from ist_hpc.common.standard_streams import complain
from ist_hpc.config import loading
from ist_hpc.config.keys import Config
from ist_hpc.runtime import horovod_start
from ist_hpc.runtime.launch import stop_on_sigterm
from ist_hpc.studies.launches import (
    DEFAULT_LAUNCHER,
    LaunchPlace,
    RunError,
    choose_place,
    refuse_ranks,
    run_program,
    train_command,
)
from ist_hpc.studies.state import Row, State, opened
from ist_hpc.studies.study import (
    FORMS,
    Planned,
    parse_methods,
    parse_settings_for,
    plan_runs,
    settings_of,
)

OwnSettings = Callable[[Planned, Config], Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Kind:
    """The differences between the two studies.

    name           names its files, `scaling.csv`
    number_column  column that distinguishes runs of one method on as many ranks: `repeat`, `seed`
    own_settings   settings that the study itself adds to a run, from the configuration without them
    row_of         the row of a finished run, from (run, configuration, run folder)
    resumes        whether a stopped run continues; else it begins anew
    keeps          whether the checkpoints of the runs stay
    """

    name: str
    number_column: str
    own_settings: OwnSettings
    row_of: Callable[[Planned, Config, Path], Row]
    resumes: bool
    keeps: bool


def add_arguments(parser: argparse.ArgumentParser, output: str) -> None:
    """The part of the command line that both studies have."""
    add_configuration(parser)
    parser.add_argument("--methods", nargs="+", required=True, metavar="METHOD", help=FORMS)
    parser.add_argument(
        "--set-for",
        nargs="+",
        action="append",
        default=[],
        metavar="METHOD[/RANKS] KEY=VALUE",
        help="settings of one method, on all or on so many ranks: its learning rate, say",
    )
    parser.add_argument("--ranks", nargs="+", type=count, default=[2, 4, 8], metavar="N")
    parser.add_argument(
        "--hosts",
        default="none",
        metavar="none|RATE",
        help="one rank on each host of bench/hosts.sh, with links of this rate (1gbit); root only. "
        "none: the ranks are where --launcher puts them",
    )
    parser.add_argument(
        "--launcher", default=DEFAULT_LAUNCHER, metavar="COMMAND", help="default: %(default)s"
    )
    parser.add_argument(
        "--output", type=given_path, default=Path(output), help="folder of the CSV and the runs"
    )
    parser.add_argument(
        "--time-limit", type=float, default=7200.0, metavar="S", help="seconds a run may take"
    )


def conduct(
    kind: Kind, numbers: Sequence[int], arguments: argparse.Namespace
) -> tuple[list[Row], list[str]]:
    """Make the runs that have no row yet; return (rows of all requested runs, failures).

    Raises `InputError` before anything is written if a configuration or an option cannot be used,
    and later if the first run ends for bad input, as the others would, too.
    """
    refuse_ranks()
    stop_on_sigterm()
    if arguments.time_limit <= 0:
        raise InputError(f"--time-limit must be above 0 seconds, got {arguments.time_limit:g}")
    planned = configurations(kind, numbers, arguments)
    runs, configs = [run for run, _ in planned], {run.key: config for run, config in planned}
    settings = {run.key: _settings(kind, run, arguments) for run in runs}
    done = State(arguments.output, kind.name, kind.number_column).done()
    missing = [run for run in runs if run.key not in done]
    _refuse_without_horovod([configs[run.key] for run in missing])
    where = choose_place(arguments.hosts, arguments.launcher) if missing else None
    failed: list[str] = []
    with opened(arguments.output, kind.name, kind.number_column) as state:
        state.take_settings(*_identity(kind, runs, arguments), _as_now)
        done = state.done()  # another study may have continued since
        missing = [run for run in missing if run.key not in done]
        if where is not None:
            with where.up(max(run.ranks for run in missing)):
                for left, run in zip(range(len(missing) - 1, -1, -1), missing, strict=True):
                    try:
                        row = _make(
                            kind,
                            run,
                            configs[run.key],
                            settings[run.key],
                            arguments,
                            where,
                            state.lock,
                        )
                    except RunError as failure:
                        if failure.code == EXIT_BAD_INPUT and len(state.rows) == len(done):
                            raise InputError(f"{run.folder}: {failure.line}") from None
                        failed.append(f"{run.folder} {failure}")
                        _say(failed[-1])
                        continue
                    state.add(row)
                    _say(f"{kind.name}: {run.folder} done, {left} to go")
        places = {run.key: number for number, run in enumerate(runs)}
        rows = [row for row in state.rows if state.key(row) in places]
        return sorted(rows, key=lambda row: places[state.key(row)]), failed


def configurations(
    kind: Kind, numbers: Sequence[int], arguments: argparse.Namespace
) -> list[tuple[Planned, Config]]:
    """The runs of the study in their order, each with its configuration. Raises `InputError`."""
    runs = plan_runs(parse_methods(arguments.methods), arguments.ranks, numbers)
    return [(run, loading.load(arguments.config, _settings(kind, run, arguments))) for run in runs]


def _refuse_without_horovod(configs: Sequence[Config]) -> None:
    """Raise `InputError` if a baseline would be measured with Horovod's substitute."""
    baselines = {"data_parallel", "local_sgd"}
    found = sorted({config.train.algorithm for config in configs} & baselines)
    if found and not horovod_start.is_installed():
        raise InputError(
            f"{' and '.join(found)} would be measured without Horovod, which is not installed: "
            "a study compares with what others use; install Horovod (INSTALL.md)"
        )


def _say(text: str) -> None:
    complain(f"{time.strftime('%H:%M:%S')} {text}")


def _settings(kind: Kind, run: Planned, arguments: argparse.Namespace) -> list[str]:
    methods = parse_methods(arguments.methods)
    special = parse_settings_for(arguments.set_for, methods)
    settings = settings_of(run, arguments.set, special, seeds=kind.number_column == "seed")
    return [*settings, *kind.own_settings(run, loading.load(arguments.config, settings))]


def _identity(
    kind: Kind, runs: Sequence[Planned], arguments: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(settings of the study, the configuration of each method and number of ranks)."""
    common = {
        "hosts": arguments.hosts,
        "launcher": arguments.launcher if arguments.hosts == "none" else None,
    }
    configs = {}
    for run in runs:
        settings = _settings(kind, dataclasses.replace(run, number=0), arguments)
        config = loading.load(arguments.config, settings)
        configs[f"{run.method.name} on {run.ranks}"] = dataclasses.asdict(config)
    return common, configs


def _as_now(settings: dict[str, Any]) -> dict[str, Any]:
    """The configuration of an earlier version of the package, converted to this version."""
    try:
        return dataclasses.asdict(loading.resolve(copy.deepcopy(settings), lambda _: "there"))
    except InputError:  # unknown to this version: it differs, which is reported
        return settings


def _make(
    kind: Kind,
    run: Planned,
    config: Config,
    settings: Sequence[str],
    arguments: argparse.Namespace,
    where: LaunchPlace,
    lock: int | None,
) -> Row:
    """Make one run; return its row. Raises `RunError`, or `InputError` for an unreadable folder."""
    runs, logs = arguments.output / "runs", arguments.output / "logs"
    logs.mkdir(exist_ok=True)
    folder = runs / run.folder
    if not kind.resumes and folder.exists():
        shutil.rmtree(folder)  # stopped half-way: its measurement would mix two starts
    program = train_command(arguments.config, settings, runs, run.folder, kind.resumes)
    before = where.received_bytes(run.ranks)
    log = logs / f"{run.folder}.log"
    command = where.command(run.ranks, program)
    launch_s = run_program(command, log, run.ranks, arguments.time_limit, lock)
    after = where.received_bytes(run.ranks)
    if not kind.keeps:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    row = {
        "method": run.method.name,
        "ranks": run.ranks,
        kind.number_column: run.number,
        "hosts": where.rate,
        **kind.row_of(run, config, folder),
        "launch_s": round(launch_s, 3),
    }
    if before is not None and after is not None:
        row["launch_nic_bytes"] = round((sum(after) - sum(before)) / run.ranks)
    return row | {"finished": time.strftime("%Y-%m-%dT%H:%M:%S%z")}

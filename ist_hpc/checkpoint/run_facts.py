"""The state of a run: how far it is, how fast, how well, and why it stopped. Uses no MPI."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ist_hpc.checkpoint.folder import MANIFEST, newest_first
from ist_hpc.common.disk.names import spoken
from ist_hpc.common.errors import InputError
from ist_hpc.config import loading
from ist_hpc.config.keys import Config
from ist_hpc.runtime.meters import KINDS
from ist_hpc.runtime.run_folder.folder import UNSAID_END, RunFolder

_RECENT_ROUNDS = 20
_MOST_STARTS = 4
_MOST_CHECKPOINTS = 4


def is_run(path: Path) -> bool:
    """Whether a folder belongs to a run, and not to a checkpoint."""
    return (path / "run.json").is_file() and not (path / MANIFEST).is_file()


def describe_run(path: Path, now_s: float | None = None) -> Iterator[str]:
    """The lines about a run. Local. Raises `InputError` for files that cannot be read.

    now_s  the time, seconds since 1970; by default the present
    """
    folder, now_s = RunFolder(path), time.time() if now_s is None else now_s
    starts = _starts(path)
    rows = list(folder.metrics.rows())
    rounds = [row for row in rows if row.get("kind") == "round"]
    config = _config(path)
    yield str(path)
    facts = [
        ("status", _status(folder, now_s)),
        *_progress(rounds, config),
        *_quality(rows),
        ("saved", _checkpoints(folder.checkpoints, now_s)),
        *_where_time_goes(rows),
        *_started(starts),
    ]
    for name, value in facts:
        yield f"  {name:10} {value}"


def _starts(path: Path) -> Sequence[Mapping[str, Any]]:
    try:
        starts = json.loads((path / "run.json").read_text(encoding="utf-8"))["starts"]
        if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
            raise ValueError("`starts` is no list of objects")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path / 'run.json'}: cannot be read ({error})") from None
    return starts


def _config(path: Path) -> Config | None:
    """The configuration; none if it cannot be read: other facts are still shown."""
    try:
        return loading.load(path / "config.yaml")
    except InputError:
        return None


def _status(folder: RunFolder, now_s: float) -> str:
    said = folder.status() or "never began to train"
    owner = folder.owner()
    if folder.goes_on() and owner is None:
        return UNSAID_END
    if owner is None:
        return said
    try:
        age_s = now_s - folder.metrics.path.stat().st_mtime
    except OSError:
        return f"{said}: {owner}; no round yet"
    return f"{said}: {owner}; last row {_ago(age_s)}"


def _progress(
    rounds: Sequence[Mapping[str, Any]], config: Config | None
) -> Iterator[tuple[str, str]]:
    if not rounds:
        yield "progress", "no round was trained yet"
        return
    last = rounds[-1]
    of_all, share = "", 0.0
    if config is not None:
        train = config.train
        if train.rounds is not None:
            of_all, share = f" of {train.rounds:,}", last["round"] / train.rounds
        elif train.epochs is not None:
            share = min(1.0, last["epoch"] / train.epochs)
    percent = f" ({100 * share:.0f} %)" if share else ""
    yield (
        "progress",
        f"round {last['round']:,}{of_all}{percent}, {last['steps']:,} local steps a rank, epoch "
        f"{last['epoch']:.2f}, {last['samples']:,} samples",
    )
    recent = rounds[-_RECENT_ROUNDS - 1 :]
    steps = recent[-1]["steps"] - recent[0]["steps"]
    samples = recent[-1]["samples"] - recent[0]["samples"]
    seconds = sum(sum(row["seconds"].values()) for row in recent[1:])
    if steps > 0 and seconds > 0:
        rate = f"{seconds / steps:.3g} s a step, {samples / seconds:,.0f} samples a second"
        if 0 < share < 1:
            done = last["samples"]
            left_s = seconds / samples * done * (1 - share) / share
            rate += f"; {_span(left_s)} of training left"
        yield "rate", rate
    loss = last["loss"]
    skipped = sum(bool(row.get("skipped")) for row in rounds)
    given_up = f"; {skipped} rounds given up" if skipped else ""
    yield "loss", f"{'not finite' if loss is None else f'{loss:.4f}'} in the last round{given_up}"


def _quality(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    tests = [row for row in rows if isinstance(row.get("test"), dict) and row["test"]]
    if not tests:
        return
    metric = next(name for name in tests[-1]["test"] if name != "loss")
    known = [row for row in tests if row["test"].get(metric) is not None]
    if not known:
        return
    best = max(known, key=lambda row: row["test"][metric])
    yield (
        "test",
        f"{spoken(metric)} {known[-1]['test'][metric]:.4f} after round {known[-1]['round']:,}; "
        f"best {best['test'][metric]:.4f} after round {best['round']:,}",
    )


def _checkpoints(checkpoints: Path, now_s: float) -> str:
    found = newest_first(checkpoints)
    if not found:
        return "no checkpoint"
    parts = []
    for folder in found[:_MOST_CHECKPOINTS]:
        try:
            size, age_s = _megabytes(folder), now_s - folder.stat().st_mtime
        except OSError:  # the run has removed it meanwhile
            continue
        parts.append(f"{folder.name} ({size}, {_ago(age_s)})")
    more = f" and {len(found) - _MOST_CHECKPOINTS} more" if found[_MOST_CHECKPOINTS:] else ""
    damaged = sum(1 for _ in checkpoints.glob("damaged-*"))
    bad = f"; {damaged} damaged" if damaged else ""
    return ", ".join(parts) + more + bad


def _where_time_goes(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    spent = {kind: sum(row["seconds"].get(kind, 0.0) for row in rows) for kind in KINDS}
    total_s = sum(spent.values())
    if total_s > 0:
        shares = [f"{kind} {100 * spent[kind] / total_s:.1f} %" for kind in KINDS if spent[kind]]
        yield "time", f"{_span(total_s)}: " + ", ".join(shares)
    moved = sum(row.get("bytes_received", 0) + row.get("bytes_averaged", 0) for row in rows)
    if moved:
        yield "bytes", f"{moved / 1e6:,.1f} MB exchanged or averaged, by all ranks"


def _started(starts: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    if len(starts) > _MOST_STARTS:
        yield "starts", f"{len(starts)}, of which the last {_MOST_STARTS}:"
    for start in starts[-_MOST_STARTS:]:
        job = (start.get("slurm") or {}).get("SLURM_JOB_ID")
        of_job = f", Slurm job {job}" if job else ""
        before = start.get("before")
        after = f" (before it: {before})" if before else ""
        yield (
            "start",
            f"{start.get('time', '?')}, {start.get('ranks', '?')} ranks, {start.get('host', '?')}"
            f"{of_job}{after}",
        )


def _megabytes(folder: Path) -> str:
    return f"{sum(file.stat().st_size for file in folder.iterdir()) / 1e6:,.1f} MB"


def _ago(seconds: float) -> str:
    return f"{_span(max(0.0, seconds))} ago"


def _span(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    if seconds < 72 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"

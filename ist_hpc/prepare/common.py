"""What the converters share: arguments, the order of rows, the ends of shards, worker processes."""

import argparse
import importlib
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import ModuleType
from typing import TypedDict, TypeVar

from ist_hpc.commandline import given_path
from ist_hpc.errors import InputError
from ist_hpc.shard_writer import check_target

Task = TypeVar("Task")
Result = TypeVar("Result")

_SEED_LIMIT = 2**64
_TASKS_AHEAD = 4  # a worker; bounds the results that wait to be written
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


def add_output_arguments(
    parser: argparse.ArgumentParser, seed_of: str = "the order of the rows"
) -> None:
    """Add --output, --seed (of `seed_of`, for its help), --overwrite and --if-missing."""
    parser.add_argument(
        "--output", type=given_path, required=True, metavar="DIR", help="the folder to make"
    )
    parser.add_argument("--seed", type=int, default=0, help=f"of {seed_of}, 0 or more (default 0)")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the data set at DIR, once the new one is complete",
    )
    parser.add_argument(
        "--if-missing",
        action="store_true",
        help="do nothing, and end well, if DIR has a data set already, whoever made it",
    )


def begin(args: argparse.Namespace) -> None:
    """Check the arguments that all converters have, before anything that takes long.

    The first thing that a converter does. Raises InputError, and `AlreadyMadeError` if there is
    nothing to do.
    """
    check_seed(args.seed)
    check_target(args.output, args.overwrite, args.if_missing, args.since_s)


def of_output(args: argparse.Namespace) -> "OfOutput":
    """What `DatasetWriter` is told of --overwrite, --if-missing and of waiting for others."""
    return {
        "overwrite": args.overwrite,
        "if_missing": args.if_missing,
        "since_s": args.since_s,
        "waiting": args.waiting,
    }


class OfOutput(TypedDict, total=False):
    """Keyword arguments of `DatasetWriter`, see there."""

    overwrite: bool
    if_missing: bool
    since_s: float | None
    waiting: Callable[[float], None] | None


def check_range(option: str, value: int, low: int, high: int | None = None) -> None:
    """Raise InputError unless low <= value <= high (no `high`: no upper limit)."""
    if value < low or (high is not None and value > high):
        allowed = f"{low} or more" if high is None else f"{low} to {high}"
        raise InputError(f"{option} must be {allowed} (got {value})")


def check_seed(seed: int) -> None:
    """Raise InputError unless the seed is one that the streams of random words take."""
    check_range("--seed", seed, 0, _SEED_LIMIT - 1)


def require(module: str, install: str) -> ModuleType:
    """Import an optional package; InputError with the command that installs it if it is absent."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"this needs {module} ({error}); install it with: {install}") from error


def shard_ends(rows: int, shards: int) -> list[int]:
    """After how many rows to end each of `shards` shards, so that they differ by one row at most.

    Fewer rows than shards make a shard a row.
    """
    shards = max(1, min(shards, rows))
    return [rows * (k + 1) // shards for k in range(shards)]


def usable_cores() -> int:
    """The cores this process may use: what a batch system or taskset grants, not what exists."""
    return len(os.sched_getaffinity(0))


def ordered_map(
    function: Callable[[Task], Result], tasks: Iterable[Task], workers: int
) -> Generator[Result, None, None]:
    """`map(function, tasks)` in `workers` processes of one thread each; results in order.

    Holds a few results a worker at a time, however slowly they are used. Even one worker is a
    process of its own, so that the same bits come out at any number of workers: BLAS may sum in
    another order with other numbers of threads. Raises InputError if a worker process dies (a
    `multiprocessing.Pool` would wait for it for ever), else whatever `function` raises.
    """
    # Spawned, not forked: the environment is read when numpy loads, and a fork of a process with
    # threads can deadlock.
    with _one_thread_each():
        pool = ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), initializer=_ignore_interrupts
        )
        waiting: deque[Future[Result]] = deque()
        try:
            for task in tasks:
                waiting.append(pool.submit(function, task))
                if len(waiting) >= _TASKS_AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise InputError(
                "a worker process died, most likely killed for want of memory; "
                f"use fewer than {workers} --workers or ask for more memory"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _ignore_interrupts() -> None:
    # They reach every process of a terminal or job step; the parent alone answers them.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

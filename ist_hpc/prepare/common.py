"""Shared by the converters: arguments, the order of rows, the ends of shards, worker processes."""

import argparse
import functools
import importlib
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import ModuleType
from typing import ParamSpec, TypedDict, TypeVar

from ist_hpc.common.commandline import given_path
from ist_hpc.common.disk import caches
from ist_hpc.common.errors import EXIT_FAILED, InputError, printable
from ist_hpc.common.standard_streams import complain
from ist_hpc.cost.grants import granted_bytes
from ist_hpc.data.writing.target import check_target

Task = TypeVar("Task")
Result = TypeVar("Result")
P = ParamSpec("P")

MOST_SHARDS = 10_000  # of a split
MOST_WORKERS = 1024

_SEED_LIMIT = 2**64
_SHOWN_BITS = 128  # of a number in a message
_TASKS_AHEAD = 4  # per worker; bounds the results that wait to be written
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

    A converter calls it first. Raises InputError, and `AlreadyMadeError` if there is nothing to do.
    """
    check_seed(args.seed)
    check_target(args.output, args.overwrite, args.if_missing, args.since_s)


def of_output(args: argparse.Namespace) -> "OfOutput":
    """The arguments of `DatasetWriter` for --overwrite, --if-missing and waiting for others."""
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
        got = str(value) if value.bit_length() < _SHOWN_BITS else "a number of many digits"
        raise InputError(f"{option} must be {allowed} (got {got})")


def check_seed(seed: int) -> None:
    """Raise InputError unless the streams of random words accept the seed."""
    check_range("--seed", seed, 0, _SEED_LIMIT - 1)


def check_counts(shards: int | None = None, workers: int | None = None) -> None:
    """Raise InputError unless these numbers of files per split and of workers are possible."""
    if shards is not None:
        check_range("--shards", shards, 1, MOST_SHARDS)
    if workers is not None:
        check_range("--workers", workers, 1, MOST_WORKERS)


def require(module: str, install: str) -> ModuleType:
    """Import an optional package, or a module of it.

    Raises InputError with the command that installs it if it is absent, and with its own message if
    it exists but cannot be imported.
    """
    package = module.partition(".")[0]
    try:
        if package == "librosa" and package not in sys.modules:
            caches.for_numba(package)
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InputError(f"this needs {module} ({error}); install it with: {install}") from error
    except InputError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # a library may raise anything as it is imported
        raise InputError(
            f"this needs {package}, which is installed but cannot be imported "
            f"({type(error).__name__}: {error}); free what it lacks, or install it again: {install}"
        ) from error


def say(text: str, error: bool = False) -> None:
    """Print lines for a person, on stderr if `error`; names in them become printable."""
    for line in text.split("\n"):
        (complain if error else print)(printable(line))


def check_memory(needed_bytes: int, cause: str) -> None:
    """Raise InputError if this process may not have as many bytes.

    cause  what requests them: a line of a file, or options
    """
    grant = granted_bytes()
    bounds = [
        (grant.shared[0].limit_bytes, grant.shared[0].source),
        (grant.available_bytes, "memory that is free now"),
    ]
    if grant.process is not None:
        left_bytes = max(0, grant.process.limit_bytes - grant.process.used_bytes)
        bounds.append((left_bytes, f"what {grant.process.source} leaves"))
    bound_bytes, source = min(bounds)
    if needed_bytes > bound_bytes:
        raise InputError(
            f"{cause}: needs {needed_bytes / 1e9:.1f} GB of memory, but there are "
            f"{bound_bytes / 1e9:.1f} GB ({source})"
        )


def answers_for_memory(run: Callable[P, Result]) -> Callable[P, Result]:
    """Wrap the converter `run` so that it raises InputError instead of MemoryError."""

    @functools.wraps(run)
    def answering(*args: P.args, **options: P.kwargs) -> Result:
        try:
            return run(*args, **options)
        except MemoryError as error:
            what = str(error) or "no more is granted"
            raise InputError(
                f"out of memory ({what}); ask for more memory, raise `ulimit -v`, use fewer "
                "--workers, or give smaller data"
            ) from None

    return answering


def shard_ends(rows: int, shards: int) -> list[int]:
    """After how many rows to end each of `shards` shards, so that they differ by one row at most.

    With fewer rows than shards, each row gets its own shard.
    """
    shards = max(1, min(shards, rows))
    return [rows * (k + 1) // shards for k in range(shards)]


def usable_cores() -> int:
    """The cores this process may use: granted by a batch system or taskset, not all that exist."""
    return len(os.sched_getaffinity(0))


def ordered_map(
    function: Callable[[Task], Result], tasks: Iterable[Task], workers: int
) -> Generator[Result, None, None]:
    """`map(function, tasks)` in `workers` processes of one thread each; results in order.

    Holds a few results per worker at a time, however slowly they are used. Even a single worker is
    a separate process, so that any number of workers produces the same bits: BLAS may sum in
    another order with other numbers of threads. Raises InputError if a worker process dies (a
    `multiprocessing.Pool` would wait for it for ever), else whatever `function` raises.
    """
    # Spawned, not forked: the environment is read when numpy loads, and a fork of a process with
    # threads can deadlock.
    with _one_thread_each():
        pool = ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), initializer=_begin_worker
        )
        waiting: deque[Future[Result]] = deque()
        try:
            for task in tasks:
                waiting.append(_submitted(pool, function, task, workers))
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


def _submitted(
    pool: ProcessPoolExecutor, function: Callable[[Task], Result], task: Task, workers: int
) -> Future[Result]:
    try:
        return pool.submit(function, task)
    except OSError as error:
        raise InputError(
            f"{workers} worker processes cannot be started ({error.strerror or error}); "
            "use fewer --workers"
        ) from error


def _begin_worker() -> None:
    # A worker whose parent was killed would wait for work for ever.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Signals reach every process of a terminal or job step; only the parent handles them.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(EXIT_FAILED)


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

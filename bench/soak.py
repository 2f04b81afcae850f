"""A soak: a run that is killed at random and resumed, again and again, against one that is not.

    python bench/soak.py [--kills 50] [--ranks 4] [--seed 0] [--folder runs/soak]

Each start of the run is ended by SIGKILL of a rank, or of mpirun, 5 to 40 seconds after its first
round; a loop starts it again. After the last kill it goes on for 20 rounds. Then the same number of
rounds are trained without an interruption. Both must end with the same weights and optimiser state
to the last bit, without a file that does not belong there, and with as much memory and as many open
files at the end as early on. Ends with `soak: ok` and exit code 0, or says what is wrong.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import h5py
import numpy as np

from ist_hpc.common.commandline import given_path

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = [
    *("model.hidden=[512,512]", "data.batch_size=64", "train.local_steps=5", "train.epochs=null"),
    *("optimizer.momentum=0.9", "evaluate.every_epochs=0", "evaluate.every_rounds=50"),
    *("checkpoint.every_rounds=10", "checkpoint.keep=2"),
]
MORE_ROUNDS = 20
KILL_AFTER_S = (5.0, 40.0)
START_LIMIT_S, END_LIMIT_S, END_OF_A_JOB_S = 120.0, 7200.0, 60.0
MOST_GROWTH = 1.05


class SoakError(Exception):
    """What went wrong, in a line."""


@contextmanager
def started(folder: Path, name: str, ranks: int, rounds: int) -> Iterator[subprocess.Popen[bytes]]:
    """The run, begun or gone on with, in a session of its own that ends with the block."""
    words = ["-m", "ist_hpc.train", "--runs", str(folder), "--name", name, "--resume"]
    settings = ["--set", f"data.path={folder}/digits", *SETTINGS, f"train.rounds={rounds}"]
    mpirun = [str(ROOT / "tools" / "mpirun.sh"), "--quiet", "-np", str(ranks), sys.executable]
    with (folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            [*mpirun, *words, *settings],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        for pid in processes(process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def processes(session: int) -> list[int]:
    """mpirun and its ranks (Linux: from /proc)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(stat.parent.name))
    return sorted(found)


def rows(run: Path) -> list[dict[str, object]]:
    """The whole rows of a run's metrics."""
    found = []
    with suppress(FileNotFoundError):
        for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):
                found.append(json.loads(line))
    return found


def rounds_of(run: Path) -> int:
    """The rounds that a run has trained, as its metrics say."""
    return max((int(str(row["round"])) for row in rows(run)), default=0)


def newest(run: Path) -> Path | None:
    """The newest checkpoint."""
    return max((run / "checkpoints").glob("round-*"), default=None)


def tensors(checkpoint: Path) -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint."""
    found: dict[str, np.ndarray] = {}
    with h5py.File(checkpoint / "checkpoint.h5") as file:

        def keep(name: str, item: object) -> None:
            if isinstance(item, h5py.Dataset):
                found[name] = item[()]

        file.visititems(keep)
    return found


def kill_again_and_again(folder: Path, ranks: int, kills: int, generator: random.Random) -> int:
    """The run with its kills; the rounds that it is to have at its end."""
    run, goal = folder / "killed", 10**7
    for number in range(1, kills + 1):
        with started(folder, "killed", ranks, goal) as process:
            wait_for_a_start(run, number, process)
            time.sleep(generator.uniform(*KILL_AFTER_S))
            victims = processes(process.pid)
            if not victims or process.poll() is not None:
                raise SoakError(f"start {number} ended by itself; see {folder}/killed.log")
            os.kill(generator.choice(victims), signal.SIGKILL)
            begin_s = time.monotonic()
            while processes(process.pid):  # ranks may live on when mpirun was killed
                process.poll()
                if time.monotonic() - begin_s > END_OF_A_JOB_S:
                    raise SoakError(f"kill {number} did not end the job within {END_OF_A_JOB_S} s")
                time.sleep(0.1)
        found = newest(run)
        print(
            f"soak: kill {number} of {kills}, job over after {time.monotonic() - begin_s:.1f} s, "
            f"{rounds_of(run)} rounds, {found.name if found else 'no checkpoint'}",
            flush=True,
        )
    found = newest(run)
    goal = int(found.name.removeprefix("round-")) + MORE_ROUNDS if found else MORE_ROUNDS
    to_the_end(folder, "killed", ranks, goal)
    return goal


def wait_for_a_start(run: Path, number: int, process: subprocess.Popen[bytes]) -> None:
    """Until a round of this start is in the metrics."""
    end_s, resumed_at = time.monotonic() + START_LIMIT_S, None
    while True:
        with suppress(FileNotFoundError, ValueError, IndexError):
            starts = json.loads((run / "run.json").read_text(encoding="utf-8"))["starts"]
            # The start is recorded when the rounds that it trains again have left the metrics.
            if len(starts) >= number and resumed_at is None:
                resumed_at = rounds_of(run)
        if resumed_at is not None and rounds_of(run) > resumed_at:
            return
        if process.poll() is not None or time.monotonic() > end_s:
            raise SoakError(f"start {number} trained no round; see {run}.log")
        time.sleep(0.2)


def to_the_end(folder: Path, name: str, ranks: int, goal: int) -> None:
    """Let the run go on to its end; prints memory and open files of the ranks meanwhile."""
    with started(folder, name, ranks, goal) as process:
        end_s, files = time.monotonic() + END_LIMIT_S, []
        while process.poll() is None:
            if time.monotonic() > end_s:
                raise SoakError(f"the run {name} came to no end in {END_LIMIT_S:g} s")
            files.append(max(map(open_files, processes(process.pid)), default=0))
            time.sleep(1)
        if process.returncode != 0:
            raise SoakError(
                f"{name} ended with exit code {process.returncode}; see {folder}/{name}.log"
            )
    steady = [count for count in files if count]
    half = len(steady) // 2
    if half and max(steady[half:]) > max(steady[:half]):
        raise SoakError(
            f"{name}: open files grew from {max(steady[:half])} to {max(steady[half:])}"
        )
    if steady:
        print(f"soak: {name}: at most {max(steady)} open files in a process", flush=True)


def open_files(pid: int) -> int:
    """How many files a process has open."""
    with suppress(OSError):
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return 0


def compare(folder: Path, goal: int) -> None:
    """Raise `SoakError` unless both runs are as they must be."""
    name = f"round-{goal:08d}"
    first, second = (tensors(folder / run / "checkpoints" / name) for run in ("killed", "whole"))
    if first.keys() != second.keys():
        raise SoakError("the checkpoints have different tensors")
    for key, values in first.items():
        if not np.array_equal(values.view(np.int32), second[key].view(np.int32)):
            raise SoakError(f"{key} differs")
    for run in ("killed", "whole"):
        found = {path.name for path in (folder / run).iterdir()}
        allowed = {"checkpoints", "config.yaml", "run.json", "metrics.jsonl", "summary.json"}
        left = found - allowed - {"STATUS", ".lock"}
        kept = sorted(path.name for path in (folder / run / "checkpoints").iterdir())
        if left or len(kept) != 2 or kept[1] != name:
            raise SoakError(f"left in {run}: {sorted(left)}, checkpoints {kept}")
        numbers = [row["round"] for row in rows(folder / run) if row["kind"] == "round"]
        if numbers != list(range(1, goal + 1)):
            raise SoakError(f"the metrics of {run} lack rounds, or have some twice")
    peaks = [max(row["peak_rss_mib"]) for row in rows(folder / "whole") if "peak_rss_mib" in row]
    early, late = peaks[len(peaks) // 10], peaks[-1]
    print(
        f"soak: memory of a rank {early:.0f} MiB after a tenth, {late:.0f} MiB at the end",
        flush=True,
    )
    if late > early * MOST_GROWTH:
        raise SoakError(f"memory grew from {early:.0f} to {late:.0f} MiB")


def main() -> int:
    """Parse arguments and soak; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=given_path, default=Path("runs/soak"))
    args = parser.parse_args()
    folder: Path = args.folder.resolve()
    if folder.exists():
        print(f"soak: {folder} exists; remove it, or give another --folder", file=sys.stderr)
        return 2
    folder.mkdir(parents=True)
    prepare = [sys.executable, "-m", "ist_hpc.prepare", "digits", "--output", folder / "digits"]
    subprocess.run(prepare, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    begin_s = time.monotonic()
    try:
        goal = kill_again_and_again(folder, args.ranks, args.kills, random.Random(args.seed))
        print(f"soak: {goal} rounds without an interruption", flush=True)
        to_the_end(folder, "whole", args.ranks, goal)
        compare(folder, goal)
    except SoakError as error:
        print(f"soak: FAILED: {error}", file=sys.stderr)
        return 1
    minutes = (time.monotonic() - begin_s) / 60
    print(
        f"soak: ok: {args.kills} kills, {goal} rounds, the same to the last bit; {minutes:.0f} min"
    )
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())

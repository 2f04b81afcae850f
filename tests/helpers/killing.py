"""A training command that is killed (SIGKILL) at a chosen moment of its first save.

    python tests/helpers/killing.py RANK MOMENT ARGUMENTS OF TRAINING   on any number of ranks
    python tests/helpers/killing.py every ARGUMENTS OF TRAINING         on one: each moment in turn

A moment is a call that changes what is on disk: opening a file to write, a write of HDF5's, a
flush, a rename, a removal. MOMENT 0 kills nothing; at its end each rank then writes how many there
were to moments-RANK. `every` prints, a line a moment, the newest checkpoint that it left whole.
"""

import io
import os
import signal
import sys
from pathlib import Path
from typing import Any

import h5py

from ist_hpc.common.disk import hdf5_writing

MOMENTS = [
    (os, "fsync"),
    (os, "rename"),
    (os, "replace"),
    (os, "mkdir"),
    (os, "rmdir"),
    (os, "unlink"),
    (h5py.Group, "create_dataset"),
    (h5py.File, "close"),
    (hdf5_writing._Sink, "write"),
    (io, "FileIO"),
    (io, "open"),
]
MIDDLE_OF_A_SAVE = 6


class Killer:
    """Counts moments while armed, and kills this process before the chosen one."""

    def __init__(self, moment: int) -> None:
        self.moment, self.count, self.armed = moment, 0, False
        for owner, name in MOMENTS:
            self.at(owner, name)

    def at(self, owner: Any, name: str) -> None:
        """Make the function a moment."""
        whole = getattr(owner, name)

        def counted(*args: Any, **options: Any) -> Any:
            if self.armed and not (owner is io and _only_reads(args, options)):
                self.count += 1
                if self.count == self.moment:
                    os.kill(os.getpid(), signal.SIGKILL)
            return whole(*args, **options)

        setattr(owner, name, counted)


def _only_reads(args: tuple[Any, ...], options: dict[str, Any]) -> bool:
    mode = options.get("mode", args[1] if len(args) > 1 else "r")
    return not set(mode) & set("wax+")


def arm(killer: Killer, number: int = 1) -> None:
    """Let only this save of the run have moments."""
    from ist_hpc.checkpoint import write
    from ist_hpc.training import home

    whole = write.save
    saves = 0

    def save(*args: Any) -> Path:
        nonlocal saves
        saves += 1
        killer.armed = saves == number
        try:
            return whole(*args)
        finally:
            killer.armed = False

    assert home.write is write
    write.save = save


def in_a_slurm_step() -> None:
    """Kill the rank KILL_RANK in its second save, or with its 20th exchange on the way (KILL_IN).

    For a `sitecustomize`: a batch template starts the training command itself.
    """
    if os.environ.get("SLURM_PROCID") != os.environ.get("KILL_RANK", "none"):
        return
    if os.environ["KILL_IN"] == "save":
        arm(Killer(MIDDLE_OF_A_SAVE), 2)
        return
    from ist_hpc.exchange.exchanger import Exchanger

    assert os.environ["KILL_IN"] == "exchange"
    whole, count = Exchanger._send_off, 0

    def send_off(self: Exchanger, *args: Any) -> Any:
        nonlocal count
        count += 1
        flight = whole(self, *args)
        if count == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return flight

    Exchanger._send_off = send_off  # type: ignore[method-assign]


def train(killer: Killer, argv: list[str]) -> int:
    """The training command, in which only the first save has moments."""
    from ist_hpc.train import main

    arm(killer)
    return main(argv)


def one(rank: int, moment: int, argv: list[str]) -> int:
    """A run of which one rank is killed at a moment."""
    from mpi4py import MPI

    own = MPI.COMM_WORLD.Get_rank()
    killer = Killer(moment if own == rank else 0)
    code = train(killer, argv)
    Path(f"moments-{own}").write_text(str(killer.count))
    return code


def every(argv: list[str]) -> int:
    """Runs that are killed at each moment in turn, each by a fork that starts MPI by itself."""
    import ist_hpc.training.start  # noqa: F401  # and torch, which takes most of a start
    from ist_hpc.checkpoint.folder import Checkpoint, newest_first

    run = Path(argv[argv.index("--runs") + 1]) / argv[argv.index("--name") + 1]
    moment = 0
    while True:
        moment += 1
        child = os.fork()
        if not child:
            os._exit(train(Killer(moment), argv))
        killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        newest = newest_first(run / "checkpoints")[0]
        Checkpoint(newest).check_files(Checkpoint(newest).files)
        print(moment, killed, newest.name, flush=True)
        if killed >= 0:
            return killed


if __name__ == "__main__":
    if sys.argv[1] == "every":
        sys.exit(every(sys.argv[2:]))
    sys.exit(one(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))

"""`bench save`: a checkpoint against what plain writing of the same bytes takes on the same disk.

Plain writing is what `dd bs=4M conv=fsync` does: each rank writes as many bytes as it has in the
checkpoint to a file of its own, in large pieces, and flushes it; all ranks at once. The checkpoint
includes all that a run does: HDF5 with its checksums, SHA-256 of every file, the flush, reading it
again, the rename, and removing the one before. The two take turns.
"""

import argparse
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ist_hpc.bench.exchange import load
from ist_hpc.bench.made import make_data, make_trainer, timed
from ist_hpc.bench.report import slowest, spread, table
from ist_hpc.common.commandline import add_configuration, count, given_path
from ist_hpc.common.disk.files import flush_to_disk
from ist_hpc.data.shards import Dataset
from ist_hpc.runtime.launch import Runtime, check_on_all, on_root

if TYPE_CHECKING:
    import numpy.typing as npt

HELP = "seconds of a checkpoint, against writing and flushing as many bytes"

_PIECE_BYTES = 4 << 20
_ROWS = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `bench save`."""
    add_configuration(parser, such_as="configs/speech3.yaml")
    parser.add_argument(
        "--folder", type=given_path, default=Path("."), help="a folder on the disk that is meant"
    )
    parser.add_argument("--saves", type=count, default=7, help="repetitions after 2 to warm up")


def run(runtime: Runtime, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure; returns the figures, the same on all ranks. Collective."""
    comm = runtime.comm
    settings = [*arguments.set, "checkpoint.keep=1", "evaluate.calibration_rows=2"]
    config = check_on_all(comm, lambda: load(arguments.config, settings))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as own:
        shared = Path(comm.bcast(own))
        on_root(comm, lambda: make_data(config, shared / "data", _ROWS))
        trainer = make_trainer(runtime, config, Dataset.open(shared / "data"), shared)
        on_root(comm, lambda: trainer.folder.create(resume=False))
        trainer.begin_round(1)
        values = np.random.default_rng(0).integers(256, size=_PIECE_BYTES, dtype=np.uint8)
        save_s, plain_s, sizes = [], [], [0]
        for number in range(arguments.saves + 2):
            trainer.progress.round = number + 1
            trainer.visit_home(evaluate=False, save=True)
            save_s.append(trainer.meter.read(comm).seconds["save"])
            folder = trainer.folder.checkpoints / f"round-{number + 1:08d}"
            rank_file = folder / f"rank-{runtime.rank:04d}.h5"
            sizes = comm.allgather(rank_file.stat().st_size)
            plain = partial(_write, shared / f"plain-{runtime.rank}", sizes[runtime.rank], values)
            plain_s.append(timed(comm, plain))
        comm.Barrier()
    saved, alone = slowest(comm, save_s[2:]), slowest(comm, plain_s[2:])
    return {
        "ranks": runtime.ranks,
        "bytes": sum(sizes),
        "save_s": saved.tolist(),
        "plain_s": alone.tolist(),
        "ratio": (alone / saved).tolist(),
    }


def _write(path: Path, size: int, values: "npt.NDArray[np.uint8]") -> None:
    with path.open("wb", buffering=0) as file:
        for start in range(0, size, len(values)):
            file.write(values[: min(len(values), size - start)].data)
    flush_to_disk(path)


def show(figures: dict[str, Any]) -> str:
    """The figures as a table: median (lowest to highest) over repetitions."""
    values = {key: np.array(value) for key, value in figures.items() if isinstance(value, list)}
    rate = figures["bytes"] / np.array(figures["save_s"]) / 1e6
    return table(
        [
            ("ranks", f"{figures['ranks']}, {os.cpu_count()} cores"),
            ("checkpoint, MB", f"{figures['bytes'] / 1e6:,.1f}"),
            ("checkpoint, s", spread(values["save_s"])),
            ("plain writing, s", spread(values["plain_s"])),
            ("checkpoint, MB a second", spread(rate, 1)),
            ("speed over plain writing", spread(values["ratio"], 3)),
        ]
    )

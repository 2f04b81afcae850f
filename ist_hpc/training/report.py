"""What a run writes about itself: a row per round and per visit home, and a summary at the end."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ist_hpc.checkpoint.read import Progress
from ist_hpc.runtime.meters import KINDS, Reading
from ist_hpc.runtime.run_folder.folder import RunFolder
from ist_hpc.training.schedule import Schedule

if TYPE_CHECKING:
    from mpi4py import MPI


class Report:
    """Rows and totals of one run, the same on all ranks; rank 0 writes them into `folder`.

    on_gpu  whether rows say what each rank's GPU holds

    The totals include those of the run's earlier starts. Each reading of the meters goes into one
    row or into the summary. Making a report is collective; its methods are local.
    """

    def __init__(
        self, comm: "MPI.Comm", folder: RunFolder, schedule: Schedule, on_gpu: bool
    ) -> None:
        self._writes, self._ranks = comm.Get_rank() == 0, comm.Get_size()
        self._folder, self._schedule, self._on_gpu = folder, schedule, on_gpu
        self._totals = comm.bcast(folder.metrics.totals() if self._writes else None)

    def add_round(
        self, progress: Progress, reading: Reading, lr: float, given_up: bool
    ) -> dict[str, Any]:
        """Write the row of a round, and return it. `lr` is the rate of its last step."""
        self._count(reading)
        row = {
            "kind": "round",
            **self._position(progress),
            "loss": reading.loss,
            "lr": lr,
            **_spent(reading),
        }
        if given_up:
            row["skipped"] = True
        return self._add(row)

    def add_visit(
        self,
        progress: Progress,
        reading: Reading,
        test: dict[str, float] | None,
        test_rows: int = 0,
    ) -> dict[str, Any]:
        """Write the row of a visit home, and return it.

        test       metrics; None if nothing was evaluated
        test_rows  of how many rows they are
        """
        self._count(reading)
        row = {
            "kind": "save" if test is None else "evaluation",
            **self._position(progress),
            **({} if test is None else {"test": test, "test_rows": test_rows}),
            **_spent(reading),
            **self._peaks(reading),
        }
        return self._add(row)

    def write_summary(
        self,
        progress: Progress,
        reading: Reading,
        *,
        algorithm: str,
        test: dict[str, float],
        metric: str,
        wall_s: float,
        saved: Path | None,
    ) -> dict[str, Any]:
        """Write the summary, and return it.

        algorithm, test, metric  the algorithm, the last evaluation, and its main metric
        wall_s, saved            seconds of this start, and the newest checkpoint
        """
        self._count(reading)
        seconds = {kind: round(value, 3) for kind, value in self._totals["seconds"].items()}
        summary = {
            "algorithm": algorithm,
            "ranks": self._ranks,
            "rounds": progress.round,
            "steps": progress.steps,
            "samples": progress.samples,
            "epochs": self._schedule.epoch(progress),
            "test": test,
            "best": {metric: progress.best},
            "seconds": seconds,
            "wall_s_of_last_start": round(wall_s, 3),
            "bytes": self._totals["bytes"],
            **self._peaks(reading),
            "checkpoint": str(saved) if saved else None,
        }
        if self._writes:
            self._folder.write_summary(summary)
        return summary

    def _add(self, row: dict[str, Any]) -> dict[str, Any]:
        if self._writes:
            self._folder.add_metrics(row)
        return row

    def _position(self, progress: Progress) -> dict[str, Any]:
        return {
            "round": progress.round,
            "steps": progress.steps,
            "samples": progress.samples,
            "epoch": round(self._schedule.epoch(progress), 4),
        }

    def _count(self, reading: Reading) -> None:
        for kind in KINDS:
            self._totals["seconds"][kind] += reading.seconds[kind]
        for direction, size in _moved(reading).items():
            self._totals["bytes"][direction] += size

    def _peaks(self, reading: Reading) -> dict[str, list[float]]:
        """Memory of each rank: of the process, and of its GPU if it has one."""
        peaks = {"peak_rss_mib": reading.peak_rss_mib}
        if self._on_gpu:
            peaks["peak_gpu_mib"] = reading.peak_gpu_mib
        return peaks


def _moved(reading: Reading) -> dict[str, int]:
    """Bytes by direction, under their names in rows and totals."""
    return {
        "sent": reading.bytes_sent,
        "received": reading.bytes_received,
        "averaged": reading.bytes_averaged,
    }


def _spent(reading: Reading) -> dict[str, Any]:
    """Seconds and bytes of a row."""
    sizes = {f"bytes_{direction}": size for direction, size in _moved(reading).items()}
    return {"seconds": reading.seconds, **sizes}

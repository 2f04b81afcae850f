"""The round loop: it knows when things are due, an algorithm knows how they are done."""

import json
import math
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from ist_hpc import checkpoint
from ist_hpc.algorithms.base import Algorithm
from ist_hpc.checkpoint_read import Progress
from ist_hpc.config import Config
from ist_hpc.evaluation import HomeNetwork
from ist_hpc.exchange import ExchangeReport
from ist_hpc.models.base import Model
from ist_hpc.optimizer import learning_rate
from ist_hpc.rows import BatchStream, CommonRows
from ist_hpc.runfolder import RunFolder
from ist_hpc.runtime import log
from ist_hpc.shards import Dataset

if TYPE_CHECKING:
    from mpi4py import MPI

KINDS = ("data", "train", "exchange", "average", "evaluate", "save")
"""What the seconds of a run are spent on."""
_LINE_EVERY_S = 10.0


@dataclass
class _Meter:
    """What one rank used since it was last read."""

    seconds: dict[str, float]
    loss_sum: float = 0.0
    steps: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0

    @classmethod
    def fresh(cls) -> "_Meter":
        return cls(dict.fromkeys(KINDS, 0.0))

    @contextmanager
    def timing(self, kind: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[kind] += time.perf_counter() - begin

    def count(self, report: ExchangeReport) -> None:
        self.bytes_sent += report.bytes_sent
        self.bytes_received += report.bytes_received

    def vector(self) -> list[float]:
        seconds = [self.seconds[kind] for kind in KINDS]
        sizes = [self.bytes_sent, self.bytes_received, peak_rss_mib()]
        return [*seconds, self.loss_sum, self.steps, *sizes, time.monotonic()]


def peak_rss_mib() -> float:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@dataclass(frozen=True)
class _AllRanks:
    """The meters of all ranks for one round, the same on all ranks."""

    table: np.ndarray

    def _column(self, index: int) -> np.ndarray:
        return self.table[:, index]

    @property
    def seconds(self) -> dict[str, float]:
        """Of each kind, the mean over ranks."""
        return {kind: float(self._column(i).mean()) for i, kind in enumerate(KINDS)}

    @property
    def loss(self) -> float:
        return float(self._column(len(KINDS)).sum() / max(1.0, self._column(len(KINDS) + 1).sum()))

    @property
    def bytes_sent(self) -> int:
        return int(self._column(len(KINDS) + 2).sum())

    @property
    def bytes_received(self) -> int:
        return int(self._column(len(KINDS) + 3).sum())

    @property
    def peak_rss_mib(self) -> list[float]:
        return [round(float(value), 1) for value in self._column(len(KINDS) + 4)]

    @property
    def clock_of_rank_0(self) -> float:
        """For decisions by time, which all ranks must make alike."""
        return float(self.table[0, -1])


class Trainer:
    """Trains a model with an algorithm until the configured length is reached.

    Every public method is collective. The position of the run is `progress`, from which everything
    else that a resume needs follows.
    """

    def __init__(
        self,
        comm: "MPI.Comm",
        config: Config,
        dataset: Dataset,
        model: Model,
        algorithm: Algorithm,
        folder: RunFolder,
        segments: list[tuple[int, int]],
        progress: Progress,
    ) -> None:
        self.comm, self.rank, self.ranks = comm, comm.Get_rank(), comm.Get_size()
        self.config, self.dataset, self.model = config, dataset, model
        self.algorithm, self.folder = algorithm, folder
        if progress.ranks != self.ranks:
            # Other ranks, other rows: each has, on average, seen its share of the samples so far.
            stream_rows = progress.samples // self.ranks
            progress = replace(progress, ranks=self.ranks, stream_rows=stream_rows)
        self.progress = progress
        self.train_rows = dataset.rows("train")
        self.stream = BatchStream(
            dataset,
            segments,
            config.data.batch_size,
            config.seed,
            self.rank,
            config.data.window_mib << 20,
            progress.stream_rows,
        )
        self.test = CommonRows(comm, dataset, "test", config.data.assign)
        self._calibration: Tensor | None = None
        self._meter = _Meter.fresh()
        self._totals: dict[str, Any] = {
            "seconds": dict.fromkeys(KINDS, 0.0),
            "bytes": {"sent": 0, "received": 0},
        }
        self._result: dict[str, float] = {}
        self._saved: Path | None = None

    # How long: rounds and steps.

    @property
    def epoch(self) -> float:
        """Passes over the training rows so far, by all ranks together."""
        return self.progress.samples / self.train_rows

    def steps_left(self) -> int:
        """Local steps that are still to be trained."""
        train, batch = self.config.train, self.config.data.batch_size
        if train.rounds is not None:
            return max(0, train.rounds - self.progress.round) * train.local_steps
        assert train.epochs is not None
        samples = train.epochs * self.train_rows - self.progress.samples
        return max(0, math.ceil(samples / (self.ranks * batch)))

    # The loop.

    def run(self) -> dict[str, Any]:
        """Train to the end; returns the summary, the same on all ranks. Collective."""
        started = time.monotonic()
        last_save = self.comm.bcast(started)
        total_steps = self.progress.steps + self.steps_left()
        showing = self.rank == 0 and sys.stderr.isatty()
        bar = tqdm(total=total_steps, initial=self.progress.steps, unit="step", disable=not showing)
        last_line = started
        with bar:
            while (left := self.steps_left()) > 0:
                before = self.epoch
                self._train_round(min(left, self.config.train.local_steps))
                ranks = self._read_meters()
                row = self._round_row(ranks)
                bar.update(self.progress.steps - bar.n)
                bar.set_postfix(loss=f"{ranks.loss:.4f}", refresh=False)
                finished = self.steps_left() == 0
                evaluate = finished or self._evaluation_due(before)
                save = finished or self._save_due(ranks.clock_of_rank_0 - last_save)
                if save:
                    last_save = ranks.clock_of_rank_0
                if evaluate or save:
                    self._visit_home(evaluate, save)
                    ranks = self._read_meters()
                    self._evaluation_row(ranks, evaluate)
                    if evaluate and not showing:
                        self._say(row, self._result)
                        last_line = time.monotonic()
                elif not showing and time.monotonic() - last_line > _LINE_EVERY_S:
                    self._say(row, {})
                    last_line = time.monotonic()
        if not self._result:
            self._visit_home(evaluate=True, save=False)  # a resume of a finished run
            ranks = self._read_meters()
        summary = self._summary(ranks, time.monotonic() - started)
        if self.rank == 0:
            self.folder.write_summary(summary)
        return summary

    def _train_round(self, steps: int) -> None:
        meter, progress = self._meter, self.progress
        with meter.timing("exchange"):
            meter.count(self.algorithm.begin_round(progress.round))
        self.local_steps(steps)
        with meter.timing("average"):
            self.algorithm.end_round()
        progress.round += 1

    def local_steps(self, steps: int) -> None:
        """Train this rank's part alone for so many steps. Local."""
        meter, progress = self._meter, self.progress
        losses = []
        for _ in range(steps):
            with meter.timing("data"):
                features, labels = self.stream.next_batch()
            with meter.timing("train"):
                lr = learning_rate(self.config.optimizer, self.epoch)
                losses.append(self.algorithm.step(features, labels, lr, progress.steps))
            progress.steps += 1
            progress.samples += self.ranks * self.config.data.batch_size
        progress.stream_rows = self.stream.position_rows
        meter.loss_sum += sum(float(loss) for loss in losses)
        meter.steps += steps

    def _evaluation_due(self, epoch_before: float) -> bool:
        evaluate = self.config.evaluate
        if evaluate.every_rounds and self.progress.round % evaluate.every_rounds == 0:
            return True
        every = evaluate.every_epochs
        return every > 0 and math.floor(self.epoch / every) > math.floor(epoch_before / every)

    def _save_due(self, since_last_s: float) -> bool:
        due = self.config.checkpoint
        if due.every_rounds and self.progress.round % due.every_rounds == 0:
            return True
        return due.every_minutes > 0 and since_last_s >= due.every_minutes * 60

    # Visits home: evaluation and checkpoint.

    def _visit_home(self, evaluate: bool, save: bool) -> None:
        meter = self._meter
        with meter.timing("exchange"):
            meter.count(self.algorithm.visit_home(with_slots=save))
        with meter.timing("evaluate"):
            weights = {
                spec.key: self.algorithm.state[spec.key].place("home") for spec in self.model.specs
            }
            network = HomeNetwork(self.comm, self.model, weights | self.algorithm.shared)
            network.calibrate(self._calibration_features())
            if evaluate:
                self._result = network.evaluate(self.test, self.config.evaluate.batch_rows)
                self.progress.best = max(self.progress.best, self._result["accuracy"])
        if save:
            with meter.timing("save"):
                self._saved = self._save(network)
        self.algorithm.leave_home()

    def _calibration_features(self) -> Tensor:
        if self._calibration is None:
            rows = CommonRows(self.comm, self.dataset, "train", self.config.data.assign)
            sample = rows.sample(self.config.evaluate.calibration_rows, self.config.seed)
            self._calibration = rows.fetch(sample)[0]
        return self._calibration

    def _save(self, network: HomeNetwork) -> Path:
        algorithm = self.algorithm
        contents = checkpoint.Contents(
            config=self.config,
            features=self.dataset.features,
            classes=self.dataset.classes,
            progress=self.progress,
            specs=self.model.specs,
            slot_specs=algorithm.slot_specs,
            state=algorithm.state,
            shared=algorithm.shared,
            shared_slots=algorithm.shared_slots,
            statistics=network.statistics,
            statistics_sizes={spec.key: spec.size for spec in self.model.statistics},
        )
        keep = self.config.checkpoint.keep
        return checkpoint.save(self.comm, self.folder.checkpoints, contents, keep)

    # What is reported.

    def _read_meters(self) -> _AllRanks:
        """Exchange the ranks' meters (a few numbers) and begin new ones. Collective."""
        own = np.array(self._meter.vector())
        table = np.empty((self.ranks, len(own)))
        self.comm.Allgather(own, table)
        self._meter = _Meter.fresh()
        ranks = _AllRanks(table)
        for kind, seconds in ranks.seconds.items():
            self._totals["seconds"][kind] += seconds
        self._totals["bytes"]["sent"] += ranks.bytes_sent
        self._totals["bytes"]["received"] += ranks.bytes_received
        return ranks

    def _position(self) -> dict[str, Any]:
        progress = self.progress
        return {
            "round": progress.round,
            "steps": progress.steps,
            "samples": progress.samples,
            "epoch": round(self.epoch, 4),
        }

    def _round_row(self, ranks: _AllRanks) -> dict[str, Any]:
        seconds = {kind: round(ranks.seconds[kind], 6) for kind in KINDS[:4]}
        row = {
            "kind": "round",
            **self._position(),
            "loss": ranks.loss,
            "lr": learning_rate(self.config.optimizer, self.epoch),
            "seconds": seconds,
            "bytes_sent": ranks.bytes_sent,
            "bytes_received": ranks.bytes_received,
        }
        if self.rank == 0:
            self.folder.add_metrics(row)
        return row

    def _evaluation_row(self, ranks: _AllRanks, evaluated: bool) -> None:
        row = {
            "kind": "evaluation" if evaluated else "save",
            **self._position(),
            **({"test": self._result} if evaluated else {}),
            "seconds": {k: round(ranks.seconds[k], 6) for k in ("exchange", "evaluate", "save")},
            "bytes_sent": ranks.bytes_sent,
            "bytes_received": ranks.bytes_received,
            "peak_rss_mib": ranks.peak_rss_mib,
            "total_seconds": {k: round(v, 3) for k, v in self._totals["seconds"].items()},
            "total_bytes_received": self._totals["bytes"]["received"],
        }
        if self.rank == 0:
            self.folder.add_metrics(row)

    def _say(self, row: dict[str, Any], result: dict[str, float]) -> None:
        tested = f", test accuracy {result['accuracy']:.4f}" if result else ""
        log.info(
            "round %d, epoch %.1f, loss %.4f%s", row["round"], row["epoch"], row["loss"], tested
        )

    def _summary(self, ranks: _AllRanks, wall_s: float) -> dict[str, Any]:
        return json.loads(
            json.dumps(
                {
                    "algorithm": self.config.train.algorithm,
                    "ranks": self.ranks,
                    "rounds": self.progress.round,
                    "steps": self.progress.steps,
                    "samples": self.progress.samples,
                    "epochs": self.epoch,
                    "test": self._result,
                    "best": {"accuracy": self.progress.best},
                    "seconds": {**self._totals["seconds"], "wall": wall_s},
                    "bytes": self._totals["bytes"],
                    "peak_rss_mib": ranks.peak_rss_mib,
                    "checkpoint": str(self._saved) if self._saved else None,
                }
            )
        )

"""The round loop: it knows when things are due, an algorithm knows how they are done."""

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ist_hpc import checkpoint
from ist_hpc.algorithms.base import Algorithm
from ist_hpc.checkpoint_read import DataShape, Progress
from ist_hpc.config import Config
from ist_hpc.devices import moved
from ist_hpc.evaluation import HomeNetwork, main_metric, metrics_for
from ist_hpc.images import augmentation_of, scaling_of
from ist_hpc.meters import KINDS, Meter, Reading
from ist_hpc.models.base import Model
from ist_hpc.optimizer import learning_rate
from ist_hpc.progress import Narrator
from ist_hpc.rows import BatchStream, CommonRows
from ist_hpc.runfolder import RunFolder
from ist_hpc.runtime import log
from ist_hpc.shards import Dataset
from ist_hpc.sparse import Rows

if TYPE_CHECKING:
    from mpi4py import MPI


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
        saved: Path | None = None,
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
        self._scaling = scaling_of(config.data, dataset)
        self.stream = BatchStream(
            dataset,
            segments,
            config.data.batch_size,
            config.seed,
            self.rank,
            config.data.window_mib << 20,
            progress.stream_rows,
            self._scaling,
            augmentation_of(config.data, dataset, config.seed, self.rank),
        )
        self.test = CommonRows(comm, dataset, "test", config.data.assign, self._scaling)
        self._calibration: Rows | None = None
        self._metric = main_metric(dataset.sparse, config.evaluate)
        self._meter = algorithm.meter = Meter(algorithm.device)
        self._totals = comm.bcast(folder.totals() if self.rank == 0 else None)
        self._result: dict[str, float] = {}
        self._lr = 0.0  # of the last step
        self._diverged = False
        self._saved = saved

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
        # Rounded first: 8.06 epochs of 2000 rows are 16,120 samples, not a trillionth more.
        samples = math.ceil(round(train.epochs * self.train_rows, 6)) - self.progress.samples
        return max(0, -(-samples // (self.ranks * batch)))

    # The loop.

    def run(self) -> dict[str, Any]:
        """Train to the end; returns the summary, the same on all ranks. Collective."""
        started = time.monotonic()
        last_save_s = self._meter.read(self.comm).clock_s  # what came before is no part of the run
        steps_done = self.progress.steps
        narrator = Narrator(self.rank, steps_done, steps_done + self.steps_left(), self._metric)
        try:
            while (left := self.steps_left()) > 0:
                epoch_before = self.epoch
                self._train_round(min(left, self.config.train.local_steps))
                reading = self._read_meter()
                row = self._add_round_row(reading)
                finished = self.steps_left() == 0
                evaluate = finished or self._evaluation_due(epoch_before)
                save = finished or self._save_due(reading.clock_s - last_save_s)
                if save:
                    last_save_s = reading.clock_s
                if evaluate or save:
                    self._visit_home(evaluate, save)
                    self._add_visit_row(self._read_meter(), evaluate)
                narrator.after_round(row, self._result if evaluate else None)
        finally:
            narrator.close()
        if not self._result:  # a resume of a finished run
            self._visit_home(evaluate=True, save=False)
        summary = self._summary(self._read_meter(), time.monotonic() - started)
        if self.rank == 0:
            self.folder.write_summary(summary)
        return summary

    def _train_round(self, steps: int) -> None:
        meter, progress = self._meter, self.progress
        with meter.timing("exchange"):
            meter.count_exchange(self.algorithm.begin_round(progress.round))
        self.local_steps(steps)
        with meter.timing("average"):
            self.algorithm.end_round()
        progress.round += 1

    def local_steps(self, steps: int) -> None:
        """Train for so many steps. Local, unless the algorithm averages gradients."""
        meter, progress = self._meter, self.progress
        device = self.algorithm.device
        losses = []
        for _ in range(steps):
            with meter.timing("data"):
                features, labels = (moved(part, device) for part in self.stream.next_batch())
            with meter.timing("train"):
                self._lr = learning_rate(self.config.optimizer, self.epoch)
                losses.append(self.algorithm.step(features, labels, self._lr, progress.steps))
            progress.steps += 1
            progress.samples += self.ranks * self.config.data.batch_size
        progress.stream_rows = self.stream.position_rows
        with meter.timing("train"):  # a GPU is still at work: this waits for it, once a round
            meter.count_losses(torch.stack(losses).tolist())

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
            meter.count_exchange(self.algorithm.visit_home(with_slots=save))
        with meter.timing("evaluate"):
            weights = {
                spec.key: self.algorithm.state[spec.key].place("home") for spec in self.model.specs
            }
            network = HomeNetwork(self.comm, self.model, weights | self.algorithm.shared)
            network.calibrate(self._calibration_features())
            if evaluate:
                metrics = metrics_for(self.dataset, self.config.evaluate)
                batch_rows = self.config.evaluate.batch_rows
                self._result = network.evaluate(self.test, batch_rows, metrics)
                self.progress.best = max(self.progress.best, self._result[self._metric])
        if save:
            with meter.timing("save"):
                self._saved = self._save(network)
        self.algorithm.leave_home()

    def _calibration_features(self) -> Rows:
        if self._calibration is None:
            assign = self.config.data.assign
            rows = CommonRows(self.comm, self.dataset, "train", assign, self._scaling)
            sample = rows.sample(self.config.evaluate.calibration_rows, self.config.seed)
            self._calibration = rows.fetch(sample)[0]
        return self._calibration

    def _save(self, network: HomeNetwork) -> Path:
        algorithm = self.algorithm
        contents = checkpoint.Contents(
            config=self.config,
            data=DataShape.of(self.dataset),
            metric=self._metric,
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

    def _read_meter(self) -> Reading:
        """What all ranks used since the last reading, added to the totals. Collective."""
        reading = self._meter.read(self.comm)
        for kind in KINDS:
            self._totals["seconds"][kind] += reading.seconds[kind]
        self._totals["bytes"]["sent"] += reading.bytes_sent
        self._totals["bytes"]["received"] += reading.bytes_received
        self._totals["bytes"]["averaged"] += reading.bytes_averaged
        return reading

    def _position(self) -> dict[str, Any]:
        progress = self.progress
        return {
            "round": progress.round,
            "steps": progress.steps,
            "samples": progress.samples,
            "epoch": round(self.epoch, 4),
        }

    def _add_round_row(self, reading: Reading) -> dict[str, Any]:
        row = {
            "kind": "round",
            **self._position(),
            "loss": reading.loss,
            "lr": self._lr,
            "seconds": reading.seconds,
            "bytes_sent": reading.bytes_sent,
            "bytes_received": reading.bytes_received,
            "bytes_averaged": reading.bytes_averaged,
        }
        if self.rank == 0:
            self.folder.add_metrics(row)
        if not math.isfinite(reading.loss) and not self._diverged and self.rank == 0:
            self._diverged = True
            log.warning("the loss of round %d is not finite", self.progress.round)
        return row

    def _add_visit_row(self, reading: Reading, evaluated: bool) -> None:
        row = {
            "kind": "evaluation" if evaluated else "save",
            **self._position(),
            **({"test": self._result} if evaluated else {}),
            "seconds": reading.seconds,
            "bytes_sent": reading.bytes_sent,
            "bytes_received": reading.bytes_received,
            "bytes_averaged": reading.bytes_averaged,
            **self._peaks(reading),
        }
        if self.rank == 0:
            self.folder.add_metrics(row)

    def _peaks(self, reading: Reading) -> dict[str, list[float]]:
        """Memory of each rank: of the process, and where there is one of its GPU."""
        peaks = {"peak_rss_mib": reading.peak_rss_mib}
        if self.algorithm.device.type != "cpu":
            peaks["peak_gpu_mib"] = reading.peak_gpu_mib
        return peaks

    def _summary(self, reading: Reading, wall_s: float) -> dict[str, Any]:
        seconds = {kind: round(value, 3) for kind, value in self._totals["seconds"].items()}
        return {
            "algorithm": self.config.train.algorithm,
            "ranks": self.ranks,
            "rounds": self.progress.round,
            "steps": self.progress.steps,
            "samples": self.progress.samples,
            "epochs": self.epoch,
            "test": self._result,
            "best": {self._metric: self.progress.best},
            "seconds": seconds,
            "wall_s_of_last_start": round(wall_s, 3),
            "bytes": self._totals["bytes"],
            **self._peaks(reading),
            "checkpoint": str(self._saved) if self._saved else None,
        }

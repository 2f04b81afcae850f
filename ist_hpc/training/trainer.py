"""The round loop: it knows when things are due, an algorithm knows how they are done."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ist_hpc.checkpoint import write
from ist_hpc.checkpoint.read import DataShape, Progress, round_folder
from ist_hpc.common.sizes import ELEMENT_BYTES
from ist_hpc.config.keys import Config
from ist_hpc.data.images import augmentation_of, scaling_of
from ist_hpc.data.rows import BatchStream, CommonRows
from ist_hpc.data.shards import Dataset
from ist_hpc.data.sparse_rows import Rows, to_device
from ist_hpc.models.base import Model
from ist_hpc.models.optimizer import learning_rate
from ist_hpc.runtime.launch import AgreedRunError, log
from ist_hpc.runtime.meters import KINDS, Meter, Reading, has_diverged
from ist_hpc.runtime.precision import computing
from ist_hpc.runtime.progress import Narrator
from ist_hpc.runtime.run_folder import RunFolder
from ist_hpc.runtime.stopping import StopRequest
from ist_hpc.training.algorithms.base import Algorithm
from ist_hpc.training.full_network import HomeNetwork, main_metric, metrics_for

if TYPE_CHECKING:
    from mpi4py import MPI

_MOST_SKIPPED = 10  # rounds in a row
_MOST_NAMED = 8  # ranks
_ASSUMED_SAVING = 50e6  # bytes a second and rank, where many write to one file system


class Trainer:
    """Trains a model with an algorithm until the configured length is reached, or `stop` says so.

    Every public method is collective. The position of the run is `progress`, from which everything
    else that a resume needs follows. `saved` is the newest checkpoint, None if there is none, and
    `saved_model` the full network scaled for the subnets that were trained before it.
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
        saved_model: Model | None = None,
        stop: StopRequest | None = None,
        meter: Meter | None = None,
    ) -> None:
        self.comm, self.rank, self.ranks = comm, comm.Get_rank(), comm.Get_size()
        self.config, self.dataset, self.model = config, dataset, model
        self._evaluated = saved_model or model  # until a round was trained here
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
        self.meter = algorithm.meter = meter or Meter()
        self.meter.device = algorithm.device
        self._totals = comm.bcast(folder.totals() if self.rank == 0 else None)
        self._result: dict[str, float] = {}
        self._lr = 0.0  # of the last step
        self._skipped = 0  # rounds given up in a row
        specs = (*model.specs, *algorithm.slot_specs)
        saved_bytes = ELEMENT_BYTES * sum(math.prod(spec.shape) for spec in specs) / self.ranks
        # until the first has been saved
        self._longest_s = {"round": 0.0, "checkpoint": saved_bytes / _ASSUMED_SAVING}
        self._warned: set[str] = set()
        self.saved, self._stop = saved, stop or StopRequest()
        self.stopped_by = 0  # the signal on which all ranks agreed

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

    def run(self) -> dict[str, Any] | None:
        """Train to the end; returns the summary, the same on all ranks. Collective.

        None if the run was asked to stop, which it did after a round, and saved; or before the
        first, with nothing that is not saved. Raises
        `AgreedRunError` if a loss or a weight is not finite and the round cannot be given up.
        """
        self.stopped_by = self._stop.agreed(self.comm)
        if self.stopped_by:  # while it was starting, and nothing is to be saved
            return None
        started = time.monotonic()
        last_save_s = self.meter.read(self.comm).clock_s  # what came before is no part of the run
        steps_done = self.progress.steps
        narrator = Narrator(self.rank, steps_done, steps_done + self.steps_left(), self._metric)
        try:
            if self.progress.owes_evaluation and self._visit(evaluate=True, save=False):
                return None
            while (left := self.steps_left()) > 0:
                epoch_before = self.epoch
                unfit = self._train_round(min(left, self.config.train.local_steps))
                reading = self._read_meter()
                row = self._add_round_row(reading, unfit)
                self.stopped_by = reading.flag
                stopped, finished = self.stopped_by != 0, self.steps_left() == 0
                due = finished or self._evaluation_due(epoch_before)
                evaluate, self.progress.owes_evaluation = due and not stopped, due and stopped
                save = stopped or finished or self._save_due(reading.clock_s - last_save_s)
                if save:
                    last_save_s = reading.clock_s
                if evaluate or save:
                    stopped |= self._visit(evaluate, save)
                narrator.after_round(row, self._result if evaluate else None)
                if stopped:
                    return None
        finally:
            narrator.close()
        if not self._result:  # a resume of a finished run
            self.visit_home(evaluate=True, save=False)
            if not self._result:  # it was asked to stop meanwhile
                return None
        summary = self._summary(self._read_meter(), time.monotonic() - started)
        if self.rank == 0:
            self.folder.write_summary(summary)
        return summary

    def _train_round(self, steps: int) -> list[int]:
        """Train a round; the ranks for which it was given up, if it was. Collective."""
        meter, progress = self.meter, self.progress
        begin_s, may_skip = time.monotonic(), self.config.train.on_nan == "skip_round"
        with meter.timing("exchange"):
            meter.count_exchange(self.algorithm.begin_round(progress.round))
            if may_skip:
                self.algorithm.keep_round()
        diverged, unfit = self.local_steps(steps), []
        if may_skip:
            fit = not diverged and self.algorithm.is_finite()
            with meter.timing("wait"):
                unfit = [rank for rank, is_fit in enumerate(self.comm.allgather(fit)) if not is_fit]
        if unfit:  # nothing is averaged: a mean of equal numbers may differ in the last bit
            self.algorithm.undo_round()
            progress.steps -= steps
        else:
            self.algorithm.forget_kept()
            with meter.timing("average"):
                self.algorithm.end_round()
        progress.round += 1
        self._evaluated = self.model
        self._record_duration("round", time.monotonic() - begin_s)
        return unfit

    def local_steps(self, steps: int) -> bool:
        """Train for so many steps. Local, unless the algorithm averages gradients.

        Returns whether the losses of this rank have diverged.
        """
        meter, progress = self.meter, self.progress
        device = self.algorithm.device
        precision = self.config.train.precision
        losses = []
        for _ in range(steps):
            with meter.timing("data"):
                features, labels = (to_device(part, device) for part in self.stream.next_batch())
            with meter.timing("train"):
                self._lr = learning_rate(self.config.optimizer, self.epoch)
                with computing(precision, device):
                    loss = self.algorithm.step(features, labels, self._lr, progress.steps)
                losses.append(loss)
            progress.steps += 1
            progress.samples += self.ranks * self.config.data.batch_size
        progress.stream_rows = self.stream.position_rows
        with meter.timing("train"):  # a GPU is still at work: this waits for it, once a round
            numbers = torch.stack(losses).tolist()
        meter.count_losses(numbers)
        return any(has_diverged(loss) for loss in numbers)

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

    def _visit(self, evaluate: bool, save: bool) -> bool:
        """Evaluate and save as asked; whether the run was asked to stop meanwhile. Collective.

        An evaluation is given up then, and the run saved if that was not done.
        """
        self.visit_home(evaluate, save)
        given_up = evaluate and not self._result
        if given_up and self.rank == 0:
            log.info("the evaluation was given up: the run was asked to stop")
        reading = self._read_meter()
        self._add_visit_row(reading, evaluate and not given_up)
        asked = given_up or bool(reading.flag)
        if not asked or (self.steps_left() == 0 and not given_up):
            return False
        self.stopped_by = self.stopped_by or reading.flag
        if not save and not self._is_saved():
            self.visit_home(evaluate=False, save=True)
            self._add_visit_row(self._read_meter(), evaluated=False)
        return True

    def _is_saved(self) -> bool:
        """Whether the newest checkpoint is of this round: it owes the same evaluation."""
        newest = round_folder(self.folder.checkpoints, self.progress.round)
        return self.saved is not None and self.saved.name == newest.name

    def visit_home(self, evaluate: bool, save: bool) -> None:
        """Bring the weights home, evaluate and save as asked. Collective."""
        meter, begin_s, evaluated_s = self.meter, time.monotonic(), 0.0
        with meter.timing("exchange"):
            meter.count_exchange(self.algorithm.visit_home(with_slots=save))
        with meter.timing("evaluate"):
            weights = {
                spec.key: self.algorithm.state[spec.key].place("home") for spec in self.model.specs
            }
            network = HomeNetwork(self.comm, self._evaluated, weights | self.algorithm.shared)
            network.calibrate(self._calibration_features())
            if evaluate:
                evaluated_s = -time.monotonic()
                metrics = metrics_for(self.dataset, self.config.evaluate)
                batch_rows = self.config.evaluate.batch_rows
                self._result = network.evaluate(self.test, batch_rows, metrics, self._asked_to_stop)
                self.progress.best = max(self.progress.best, self._result.get(self._metric, -1.0))
                self.progress.owes_evaluation = not self._result
                evaluated_s += time.monotonic()
        if save:
            with meter.timing("save"):
                self.saved = self._save(network)
            self._record_duration("checkpoint", time.monotonic() - begin_s - evaluated_s)
        self.algorithm.leave_home()

    def _asked_to_stop(self) -> bool:
        self.meter.beat()
        self.stopped_by = self._stop.agreed(self.comm)
        return self.stopped_by != 0

    def _calibration_features(self) -> Rows:
        if self._calibration is None:
            assign = self.config.data.assign
            rows = CommonRows(self.comm, self.dataset, "train", assign, self._scaling)
            sample = rows.sample(self.config.evaluate.calibration_rows, self.config.seed)
            self._calibration = rows.fetch(sample)[0]
        return self._calibration

    def _save(self, network: HomeNetwork) -> Path:
        algorithm = self.algorithm
        contents = write.Contents(
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
            statistics_shapes={spec.key: spec.shape for spec in self.model.statistics},
        )
        keep = self.config.checkpoint.keep
        return write.save(self.comm, self.folder.checkpoints, contents, keep)

    # What is reported.

    def _read_meter(self) -> Reading:
        """What all ranks used since the last reading, added to the totals. Collective."""
        reading = self.meter.read(self.comm, self._stop.number)
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

    def _add_round_row(self, reading: Reading, unfit: Sequence[int]) -> dict[str, Any]:
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
        if unfit:
            row["skipped"] = True
        if self.rank == 0:
            self.folder.add_metrics(row)
        self._skipped = self._skipped + 1 if unfit else 0
        if reading.diverged or unfit:
            what = "the loss" if reading.diverged else "a weight"
            self._answer_divergence(what, reading.diverged or unfit)
        return row

    def _answer_divergence(self, what: str, ranks: Sequence[int]) -> None:
        """Raise `AgreedRunError`, unless the round was given up and others may go better."""
        of = ", ".join(map(str, ranks[:_MOST_NAMED])) + (", ..." if ranks[_MOST_NAMED:] else "")
        where = f"{what} of round {self.progress.round} is not finite or above 1e9 (rank {of})"
        if 0 < self._skipped < _MOST_SKIPPED:
            if self.rank == 0:
                log.warning("%s; the round is given up", where)
            return
        saved = f"the newest checkpoint is {self.saved}" if self.saved else "nothing was saved"
        many = f", as were those of {self._skipped} rounds in a row" if self._skipped else ""
        raise AgreedRunError(
            f"{where}{many}; {saved}. A lower optimizer.lr usually helps, and train.on_nan: "
            "skip_round gives single rounds up"
        )

    def _record_duration(self, what: str, seconds: float) -> None:
        """Take note of how long something takes that cannot be stopped; warn if it is too long."""
        self._longest_s[what] = max(self._longest_s[what], seconds)
        needed_s, lead_time_s = sum(self._longest_s.values()), self.config.runtime.lead_time_s
        if self.rank != 0:
            return
        is_long = self._longest_s["checkpoint"] > self.config.runtime.silence_s / 2
        if is_long and "silence" not in self._warned:
            self._warned.add("silence")
            log.warning(
                "a checkpoint takes about %.0f s; a rank that is silent for %.0f s is taken for "
                "lost: raise runtime.silence_s",
                *(self._longest_s["checkpoint"], self.config.runtime.silence_s),
            )
        if 0 < lead_time_s < needed_s and "lead time" not in self._warned:
            self._warned.add("lead time")
            log.warning(
                "a round takes %.0f s and a checkpoint about %.0f s, but the warning comes only "
                "%.0f s before the kill (runtime.lead_time_s): ask for an earlier one (sbatch "
                "--signal; LEAD_TIME_S in slurm/env.sh), or take fewer train.local_steps",
                self._longest_s["round"],
                self._longest_s["checkpoint"],
                lead_time_s,
            )

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
            "checkpoint": str(self.saved) if self.saved else None,
        }

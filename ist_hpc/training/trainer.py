"""The round loop: it knows when things are due; an algorithm knows how to do them."""

import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ist_hpc.checkpoint.folder import round_folder
from ist_hpc.checkpoint.read import Progress
from ist_hpc.config.keys import Config
from ist_hpc.data.images import augmentation_of, scaling_of
from ist_hpc.data.rows import BatchStream
from ist_hpc.data.shards import Dataset
from ist_hpc.data.sparse_rows import Batch, to_device
from ist_hpc.models.base import Model
from ist_hpc.models.optimizer import learning_rate
from ist_hpc.runtime.launch import log
from ist_hpc.runtime.meters import Meter, Reading, has_diverged
from ist_hpc.runtime.precision import computing
from ist_hpc.runtime.progress import Narrator
from ist_hpc.runtime.run_folder.folder import RunFolder
from ist_hpc.runtime.stopping import StopRequest
from ist_hpc.training.algorithms.base import Algorithm
from ist_hpc.training.divergence import DivergencePolicy
from ist_hpc.training.durations import Durations, assumed_checkpoint_s
from ist_hpc.training.home import Home
from ist_hpc.training.report import Report
from ist_hpc.training.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a run trains, with what, and from which position.

    algorithm    trains `algorithm.model`; the weights are at home
    segments     the training rows of this rank
    progress     the position of the run, which determines all that a resume needs
    saved        the newest checkpoint, None if there is none
    saved_model  the full network, scaled for the subnets that were trained before it
    """

    config: Config
    dataset: Dataset
    algorithm: Algorithm
    folder: RunFolder
    segments: list[tuple[int, int]]
    progress: Progress
    saved: Path | None = None
    saved_model: Model | None = None
    stop: StopRequest = field(default_factory=StopRequest)
    meter: Meter = field(default_factory=Meter)


class Trainer:
    """Trains until the configured length is reached, or `stop` of the setup says so.

    Every public method is collective, except `local_steps` if the algorithm's steps are local.
    """

    def __init__(self, setup: Setup) -> None:
        self.config, self.dataset, self.folder = setup.config, setup.dataset, setup.folder
        self.algorithm, self.model = setup.algorithm, setup.algorithm.model
        self.comm, self.rank = self.algorithm.comm, self.algorithm.rank
        self.meter = self.algorithm.meter = setup.meter
        self.meter.device = self.algorithm.device
        self.progress, self.saved = setup.progress, setup.saved
        self.stopped_by = 0  # the signal on which all ranks agreed
        self._stop = setup.stop
        self._stream = self._batches(setup.segments)
        self._drawn: deque[Batch] = deque()  # of the round, ahead of its steps
        self._home = Home(self.config, self.dataset, self.algorithm)
        rows, ranks = self.dataset.rows("train"), self.algorithm.ranks
        self._schedule = Schedule(self.config, rows, ranks)
        skips = self.config.train.on_nan == "skip_round"
        self._divergence = DivergencePolicy(self.algorithm, may_skip=skips)
        saved_s = assumed_checkpoint_s((*self.model.specs, *self.algorithm.slot_specs), ranks)
        self._durations = Durations(saved_s, self.config.runtime, self.rank)
        on_gpu = self.algorithm.device.type != "cpu"
        self._report = Report(self.comm, self.folder, self._schedule, on_gpu)
        self._evaluated = setup.saved_model or self.model  # until this start has trained a round
        self._result: dict[str, float] = {}  # of the last evaluation
        self._lr = 0.0  # of the last step

    def _batches(self, segments: list[tuple[int, int]]) -> BatchStream:
        """This rank's stream of training rows, from the run's position on."""
        data, seed = self.config.data, self.config.seed
        return BatchStream(
            self.dataset,
            segments,
            data.batch_size,
            seed,
            self.rank,
            data.window_mib << 20,
            self.progress.stream_rows,
            scaling_of(data, self.dataset),
            augmentation_of(data, self.dataset, seed, self.rank),
        )

    # The loop.

    def run(self) -> dict[str, Any] | None:
        """Train to the end; returns the summary, the same on all ranks. Collective.

        None if the run was asked to stop: it stopped after a round and saved, or before the first
        round, with nothing to save. Raises `AgreedRunError` if a loss or a weight is not finite and
        the round cannot be given up.
        """
        self.stopped_by = self._stop.agreed(self.comm)
        if self.stopped_by:  # during the start: there is nothing to save
            return None
        started = time.monotonic()
        last_save_s = self.meter.read(self.comm).clock_s  # earlier time does not belong to the run
        progress, schedule = self.progress, self._schedule
        steps_total = progress.steps + schedule.steps_left(progress)
        narrator = Narrator(self.rank, progress.steps, steps_total, self._home.metric)
        try:
            if progress.owes_evaluation and self._visit(evaluate=True, save=False):
                return None
            while (left := schedule.steps_left(progress)) > 0:
                epoch_before = schedule.epoch(progress)
                unfit = self._train_round(min(left, self.config.train.local_steps))
                reading = self._read_meter()
                row = self._report.add_round(progress, reading, self._lr, given_up=bool(unfit))
                self._divergence.answer(progress.round, reading.diverged, unfit, self.saved)
                self.stopped_by = reading.flag
                stopped, finished = self.stopped_by != 0, schedule.steps_left(progress) == 0
                due = finished or schedule.evaluation_due(progress, epoch_before)
                evaluate, progress.owes_evaluation = due and not stopped, due and stopped
                since_last_s = reading.clock_s - last_save_s
                save = stopped or finished or schedule.save_due(progress, since_last_s)
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
            if not self._result:  # a request to stop came meanwhile
                return None
        return self._report.write_summary(
            progress,
            self._read_meter(),
            algorithm=self.config.train.algorithm,
            test=self._result,
            metric=self._home.metric,
            wall_s=time.monotonic() - started,
            saved=self.saved,
        )

    def _read_meter(self) -> Reading:
        """What all ranks used since the last reading, and any requests to stop. Collective."""
        return self.meter.read(self.comm, self._stop.number)

    def _train_round(self, steps: int) -> list[int]:
        """Train a round; return the ranks for which it was given up, if any. Collective."""
        meter, progress, begin_s = self.meter, self.progress, time.monotonic()
        self.begin_round(steps)
        diverged = self.local_steps(steps)
        unfit = self._divergence.undo_if_unfit(diverged)
        if unfit:  # average nothing: a mean of equal numbers may differ in the last bit
            progress.steps -= steps
        else:
            with meter.timing("average"):
                self.algorithm.end_round()
        progress.round += 1
        self._evaluated = self.model
        self._durations.add_round(time.monotonic() - begin_s)
        return unfit

    def begin_round(self, steps: int) -> None:
        """Bring the weights to where so many steps train them. Collective."""
        if self.algorithm.looks_ahead:
            with self.meter.timing("data"):
                self._drawn.extend(self._stream.next_batch() for _ in range(steps))
        with self.meter.timing("exchange"):
            progress = self.progress
            report = self.algorithm.begin_round(progress.round, self._drawn, progress.steps)
            self.meter.count_exchange(report)
            self._divergence.keep()

    def local_steps(self, steps: int) -> bool:
        """Train for the given number of steps. Local, unless the algorithm averages gradients.

        Returns whether the losses of this rank have diverged.
        """
        meter, progress = self.meter, self.progress
        device = self.algorithm.device
        precision = self.config.train.precision
        losses = []
        for _ in range(steps):
            with meter.timing("data"):
                ahead = self.algorithm.looks_ahead
                batch = self._drawn.popleft() if ahead else self._stream.next_batch()
                features, labels = (to_device(part, device) for part in batch)
            with meter.timing("train"):
                self._lr = learning_rate(self.config.optimizer, self._schedule.epoch(progress))
                with computing(precision, device):
                    loss = self.algorithm.step(features, labels, self._lr, progress.steps)
                losses.append(loss)
            progress.steps += 1
            progress.samples += self._schedule.samples_a_step
        progress.stream_rows = self._stream.position_rows
        with meter.timing("train"):  # a GPU is still working: wait for it, once per round
            numbers = torch.stack(losses).tolist()
        meter.count_losses(numbers)
        return any(has_diverged(loss) for loss in numbers)

    # Visits home: evaluation and checkpoint.

    def _visit(self, evaluate: bool, save: bool) -> bool:
        """Evaluate and save as asked; return whether a request to stop came. Collective.

        In that case an evaluation is given up, and the run is saved if it was not.
        """
        self.visit_home(evaluate, save)
        given_up = evaluate and not self._result
        if given_up and self.rank == 0:
            log.info("the evaluation was given up: the run was asked to stop")
        reading = self._read_meter()
        test = self._result if evaluate and not given_up else None
        self._report.add_visit(self.progress, reading, test, self._home.rows_of(self._at_end()))
        asked = given_up or bool(reading.flag)
        if not asked or (self._schedule.steps_left(self.progress) == 0 and not given_up):
            return False
        self.stopped_by = self.stopped_by or reading.flag
        if not save and not self._is_saved():
            self.visit_home(evaluate=False, save=True)
            self._report.add_visit(self.progress, self._read_meter(), test=None)
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
            network = self._home.network(self._evaluated)
            if evaluate:
                evaluated_s = -time.monotonic()
                self._result = self._home.evaluate(network, self._asked_to_stop, self._at_end())
                # Of a part of the rows it would not be comparable with the end's.
                if self._home.rows_of(self._at_end()) == self._home.rows_of(at_end=True):
                    best = self._result.get(self._home.metric, -1.0)
                    self.progress.best = max(self.progress.best, best)
                self.progress.owes_evaluation = not self._result
                evaluated_s += time.monotonic()
        if save:
            with meter.timing("save"):
                self.saved = self._home.save(network, self.progress, self.folder.checkpoints)
            self._durations.add_checkpoint(time.monotonic() - begin_s - evaluated_s)
        self.algorithm.leave_home()

    def _at_end(self) -> bool:
        return self._schedule.steps_left(self.progress) == 0

    def _asked_to_stop(self) -> bool:
        self.meter.beat()
        self.stopped_by = self._stop.agreed(self.comm)
        return self.stopped_by != 0

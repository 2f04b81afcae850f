"""How long a run is, and when it is evaluated and saved, by the configuration."""

import math

from ist_hpc.checkpoint.read import Progress
from ist_hpc.config.keys import Config


class Schedule:
    """Answers from a run's position alone, so that all ranks get the same answers. Local.

    train_rows  rows of the training split
    """

    def __init__(self, config: Config, train_rows: int, ranks: int) -> None:
        self._train, self._evaluate = config.train, config.evaluate
        self._checkpoint, self._train_rows = config.checkpoint, train_rows
        self.samples_a_step = ranks * config.data.batch_size
        """Samples of all ranks together."""

    def epoch(self, progress: Progress) -> float:
        """Passes over the training rows so far, by all ranks together."""
        return progress.samples / self._train_rows

    def steps_left(self, progress: Progress) -> int:
        """Local steps still to train; 0 when the run is finished."""
        train = self._train
        if train.rounds is not None:
            return max(0, train.rounds - progress.round) * train.local_steps
        assert train.epochs is not None
        # Rounded first: 8.06 epochs of 2000 rows are 16,120 samples, not a trillionth more.
        samples = math.ceil(round(train.epochs * self._train_rows, 6)) - progress.samples
        return max(0, -(-samples // self.samples_a_step))

    def evaluation_due(self, progress: Progress, epoch_before: float) -> bool:
        """Whether to evaluate after the last round, which began at `epoch_before`."""
        if self._evaluate.every_rounds and progress.round % self._evaluate.every_rounds == 0:
            return True
        every, epoch = self._evaluate.every_epochs, self.epoch(progress)
        return every > 0 and math.floor(epoch / every) > math.floor(epoch_before / every)

    def save_due(self, progress: Progress, since_last_s: float) -> bool:
        """Whether to save after the last round, `since_last_s` after the last save."""
        due = self._checkpoint
        if due.every_rounds and progress.round % due.every_rounds == 0:
            return True
        return due.every_minutes > 0 and since_last_s >= due.every_minutes * 60

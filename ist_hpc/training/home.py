"""Evaluates and saves the full network while the weights are at home."""

from collections.abc import Callable
from pathlib import Path

from ist_hpc.checkpoint import write
from ist_hpc.checkpoint.read import DataShape, Progress
from ist_hpc.config.keys import Config
from ist_hpc.data.images import scaling_of
from ist_hpc.data.rows import CommonRows
from ist_hpc.data.shards import Dataset
from ist_hpc.data.sparse_rows import Rows
from ist_hpc.models.base import Model
from ist_hpc.training.algorithms.base import Algorithm
from ist_hpc.training.evaluation.full_network import HomeNetwork, main_metric, metrics_for


class Home:
    """The full network of a run, between `visit_home` and `leave_home` of its algorithm.

    metric  the metric that is shown and whose best value is kept
    """

    def __init__(self, config: Config, dataset: Dataset, algorithm: Algorithm) -> None:
        self._config, self._dataset, self._algorithm = config, dataset, algorithm
        assign, scaling = config.data.assign, scaling_of(config.data, dataset)
        self._train, self._test = (
            CommonRows(algorithm.comm, dataset, split, assign, scaling)
            for split in ("train", "test")
        )
        self._calibration: Rows | None = None
        self.metric = main_metric(dataset.sparse, config.evaluate)

    def network(self, model: Model) -> HomeNetwork:
        """The network, calibrated; `model` scales it for how it was trained. Collective."""
        algorithm = self._algorithm
        specs = algorithm.model.specs
        weights = {spec.key: algorithm.state[spec.key].place("home") for spec in specs}
        network = HomeNetwork(algorithm.comm, model, weights | algorithm.shared)
        network.calibrate(self._calibration_features())
        return network

    def _calibration_features(self) -> Rows:
        """The features, read once per run, as they depend only on the seed."""
        if self._calibration is None:
            sample = self._train.sample(self._config.evaluate.calibration_rows, self._config.seed)
            self._calibration = self._train.fetch(sample)[0]
        return self._calibration

    def evaluate(
        self, network: HomeNetwork, given_up: Callable[[], bool], at_end: bool
    ) -> dict[str, float]:
        """The metrics of the test rows; empty if `given_up` says so. Collective.

        at_end  whether all rows are evaluated; else `evaluate.rows` of them
        """
        metrics = metrics_for(self._dataset, self._config.evaluate)
        batch_rows, chosen = self._config.evaluate.batch_rows, None
        if self.rows_of(at_end) < self._test.rows:
            chosen = self._test.sample(self.rows_of(at_end), self._config.seed, "evaluation")
        return network.evaluate(self._test, batch_rows, metrics, given_up, chosen)

    def rows_of(self, at_end: bool) -> int:
        """How many test rows are evaluated: at the end of a run, or in its course."""
        given = None if at_end else self._config.evaluate.rows
        return min(given or self._test.rows, self._test.rows)

    def save(self, network: HomeNetwork, progress: Progress, checkpoints: Path) -> Path:
        """Write a checkpoint, optimiser slots included; returns its folder. Collective."""
        algorithm = self._algorithm
        contents = write.Contents(
            config=self._config,
            data=DataShape.of(self._dataset),
            metric=self.metric,
            progress=progress,
            specs=algorithm.model.specs,
            slot_specs=algorithm.slot_specs,
            state=algorithm.state,
            shared=algorithm.shared,
            shared_slots=algorithm.shared_slots,
            statistics=network.statistics,
            statistics_shapes={spec.key: spec.shape for spec in algorithm.model.statistics},
        )
        return write.save(algorithm.comm, checkpoints, contents, self._config.checkpoint.keep)

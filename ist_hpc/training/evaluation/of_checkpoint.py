"""A checkpoint's full network, evaluated on the rows of a data set."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ist_hpc.checkpoint import restore
from ist_hpc.checkpoint.folder import Checkpoint
from ist_hpc.checkpoint.read import OpenCheckpoint
from ist_hpc.common.errors import InputError
from ist_hpc.config.keys import subnets_of
from ist_hpc.data.images import scaling_of
from ist_hpc.data.rows import CommonRows
from ist_hpc.data.shards import Dataset
from ist_hpc.models import networks
from ist_hpc.runtime.launch import check_on_all
from ist_hpc.runtime.meters import Meter
from ist_hpc.training.evaluation.full_network import HomeNetwork, metrics_for
from ist_hpc.training.evaluation.predictions import PredictionsFile, columns_of, origin_of

if TYPE_CHECKING:
    from mpi4py import MPI


class Evaluation:
    """The network as this rank holds it, and the rows of `split` of the data set at `data`.

    assign           `data.assign`: which shards a rank reads
    batch_rows, top  as in `evaluate`; None: as in the checkpoint

    Making one is local: it reads only this rank's home blocks. Raises `InputError` for data that do
    not fit the network.
    """

    def __init__(
        self,
        comm: "MPI.Comm",
        saved: Checkpoint,
        device: torch.device,
        *,
        data: Path,
        split: str,
        assign: str,
        batch_rows: int | None,
        top: list[int] | None,
    ) -> None:
        self._comm, self._split = comm, split
        self._dataset = dataset = Dataset.open(data)
        if top and not dataset.sparse:
            raise InputError(f"--top is of sets of labels; {data} has one class a row")
        with saved.opened() as opened:
            _check_fit(dataset, split, opened)
            scaling = scaling_of(opened.config.data, dataset)
            shape, subnets = opened.data, subnets_of(opened.config, opened.progress.ranks)
            model = networks.build(
                opened.config.model, shape.features, shape.outputs, shape.sparse, subnets
            )
            networks.refuse_other_rows(model, dataset.feature_shape, dataset.path)
            restored = restore.restore(opened, model, (), (), comm.Get_rank(), comm.Get_size())
        weights = {spec.key: restored.state[spec.key].place("home") for spec in model.specs}
        there = {key: weight.to(device) for key, weight in (weights | restored.shared).items()}
        self._network = HomeNetwork(comm, model, there, restored.statistics)
        configured = opened.config.evaluate
        self._config = replace(
            configured,
            batch_rows=batch_rows or configured.batch_rows,
            top=top or configured.top,
        )
        metrics_for(dataset, self._config)  # refuses impossible propensities
        self._rows = CommonRows(comm, dataset, split, assign, scaling)
        self._origin = origin_of(saved, opened.progress.round, data, split)

    @property
    def rows(self) -> int:
        """The number of rows in the split."""
        return self._rows.rows

    def check_shards(self) -> None:
        """Check this rank's part of the split's shards; the ranks together check all. Local.

        Under `files` these are the shards that the rank needs. Raises `InputError`.
        """
        shards, ranks = len(self._dataset.shards[self._split]), self._comm.Get_size()
        for index in range(self._comm.Get_rank(), shards, ranks):
            self._dataset.check_shard(self._split, index)

    def run(self, meter: Meter, target: Path | None, overwrite: bool) -> dict[str, float]:
        """The metrics of the rows, a batch at a time; rank 0 writes predictions to `target`.

        Collective. Raises `AgreedInputError` if the file cannot be written.
        """
        metrics = metrics_for(self._dataset, self._config)
        with ExitStack() as stack:
            file = None
            if target and self._comm.Get_rank() == 0:
                columns = columns_of(self._dataset, self._config)
                file = PredictionsFile(target, overwrite, self.rows, columns, self._origin)
                stack.enter_context(file)
            check_on_all(self._comm, lambda: file.begin() if file else None)
            batch_rows = self._config.batch_rows
            for start, batch in self._network.predict(self._rows, batch_rows, metrics):
                meter.beat()
                if file:
                    file.add(start, batch)
            result = metrics.result()
            check_on_all(self._comm, lambda: file.finish(result) if file else None)
        return result


def _check_fit(dataset: Dataset, split: str, opened: OpenCheckpoint) -> None:
    """Raise `InputError` unless the rows of the data set fit the model. Local."""
    if dataset.rows(split) == 0:
        raise InputError(f"{dataset.path}: the {split} split has no rows")
    for what, found, wanted in (
        ("features a row", dataset.features, opened.data.features),
        ("classes", dataset.outputs, opened.data.outputs),
    ):
        if found != wanted:
            raise InputError(
                f"{dataset.path} has {found} {what}, the model of {opened.path.parent} has "
                f"{wanted}; give the --data that it was trained for"
            )
    if dataset.sparse != opened.data.sparse:
        raise InputError(
            f"{dataset.path} is {dataset.kind}, the model of {opened.path.parent} is for "
            f"{'sparse' if opened.data.sparse else 'dense'} data; give the --data that it was "
            "trained for"
        )
    # One of them may have no names.
    named = zip(dataset.classes, opened.data.classes, strict=False)
    for label, (name, expected) in enumerate(named):
        if name != expected:
            raise InputError(
                f"{dataset.path}: class {label} is {name!r}, in {opened.path.parent} it is "
                f"{expected!r}; prepare the data with the classes in the model's order"
            )

"""Data of the configured shape and a trainer on them, for benchmarks of a step."""

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ist_hpc.checkpoint.read import Progress
from ist_hpc.common.errors import InputError
from ist_hpc.config.keys import Config
from ist_hpc.data.csr import Csr
from ist_hpc.data.rows import rank_segments
from ist_hpc.data.shards import Dataset, DatasetWriter
from ist_hpc.runtime import devices
from ist_hpc.runtime.launch import Runtime, on_root
from ist_hpc.runtime.run_folder.folder import RunFolder
from ist_hpc.training import algorithms, opening
from ist_hpc.training.trainer import Setup, Trainer

if TYPE_CHECKING:
    from mpi4py import MPI

ROWS = 4096
_CHANNELS = 3  # of images, if the configuration does not say
_LABELS_A_ROW = 5  # of sets of labels


def make_data(config: Config, path: Path, rows: int) -> None:
    """Random rows of the configured widths: what a step costs does not depend on the values.

    Sparse ones where `data.row_entries` is given, uint8 where `data.mean` or `data.augment` is (of
    images, then). Raises `InputError` where widths are not given, or are not those of images.
    """
    inputs, outputs, entries = config.model.inputs, config.model.outputs, config.data.row_entries
    if not inputs or not outputs:
        raise InputError("a benchmark of a step needs `model.inputs` and `model.outputs`")
    images = config.data.augment != "none" or bool(config.data.mean)
    shape = _image_shape(config, inputs) if images else (inputs,)
    generator = np.random.Generator(np.random.Philox(0))
    with DatasetWriter(
        path,
        name="bench",
        kind="dense" if entries is None else "sparse",
        feature_shape=shape,
        feature_dtype="uint8" if images else "float32",
        classes=outputs,
    ) as writer:
        for split, count in (("train", rows), ("test", 2)):
            if entries is None:
                features = (
                    generator.integers(256, size=(count, *shape), dtype=np.uint8)
                    if images
                    else generator.standard_normal((count, inputs), dtype=np.float32)
                )
                writer.append(split, features, generator.integers(outputs, size=count))
            else:
                features_csr = _random_rows(generator, count, round(entries), inputs)
                ones = np.ones(features_csr.entries, dtype=np.float32)
                features_csr = Csr(features_csr.indptr, features_csr.indices, ones, inputs)
                labels = _random_rows(generator, count, _LABELS_A_ROW, outputs)
                writer.append(split, features_csr, labels)


def _image_shape(config: Config, inputs: int) -> tuple[int, ...]:
    """Square images of `inputs` numbers, with the configured channels, by default three."""
    channels = len(config.data.mean) or _CHANNELS
    side = math.isqrt(inputs // channels)
    if channels * side**2 != inputs:
        raise InputError(
            f"a benchmark of a step makes square images of {channels} channels for `data.augment` "
            f"and `data.mean`; `model.inputs` is {inputs}, which is not {channels} x N x N"
        )
    return channels, side, side


def _random_rows(generator: np.random.Generator, rows: int, entries: int, width: int) -> Csr:
    """Rows of about `entries` entries: drawn with repetition, without the repeated ones."""
    drawn = np.sort(generator.integers(width, size=(rows, min(entries, width))), axis=1)
    fresh = np.ones(drawn.shape, dtype=bool)
    fresh[:, 1:] = np.diff(drawn, axis=1) > 0
    indptr = np.zeros(rows + 1, dtype=np.int64)
    np.cumsum(fresh.sum(axis=1), out=indptr[1:])
    return Csr(indptr, drawn[fresh].astype(np.int32), None, width)


def make_trainer(runtime: Runtime, config: Config, dataset: Dataset, folder: Path) -> Trainer:
    """A trainer whose algorithm has drawn its weights, as a run has. Collective."""
    model = opening.build_model(config, dataset, runtime.ranks)
    device = devices.choose(runtime.comm, config.device)
    algorithm = algorithms.build(runtime.comm, config, model, device)
    algorithm.start_new()
    segments = rank_segments(dataset, "train", "rows", runtime.rank, runtime.ranks)
    return Trainer(
        Setup(
            config=config,
            dataset=dataset,
            algorithm=algorithm,
            folder=RunFolder(folder / "run"),
            segments=segments,
            progress=Progress(ranks=runtime.ranks),
        )
    )


@contextmanager
def trainer_in_a_round(runtime: Runtime, config: Config, steps: int = 1) -> Iterator[Trainer]:
    """A trainer on made data, its first round begun; the data go at the end. Collective.

    steps  of the round, where its batches are drawn ahead
    """
    comm = runtime.comm
    with tempfile.TemporaryDirectory() as folder:
        shared = Path(comm.bcast(folder))
        on_root(comm, lambda: make_data(config, shared / "data", ROWS))
        trainer = make_trainer(runtime, config, Dataset.open(shared / "data"), shared)
        trainer.begin_round(steps)
        yield trainer
        comm.Barrier()


def timed(comm: "MPI.Comm", body: Callable[[], object]) -> float:
    """Seconds of `body` on this rank, which all ranks begin together. Collective."""
    comm.Barrier()
    begin = time.perf_counter()
    body()
    return time.perf_counter() - begin

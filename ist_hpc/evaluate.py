"""`python -m ist_hpc.evaluate`: a checkpoint on a data set, at any number of ranks."""

import argparse
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ist_hpc import __version__
from ist_hpc.common.commandline import Parser, add_version, count_from, given_path
from ist_hpc.common.errors import InputError
from ist_hpc.common.files import exists_error, followed, hidden_beside, put_in_place, refuse_target
from ist_hpc.config.keys import MOST_TOP, RuntimeConfig, subnets_of
from ist_hpc.runtime.ending import run
from ist_hpc.runtime.launch import AgreedInputError, Runtime, check_on_all, launch, on_root, say

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ist_hpc.checkpoint.read import Checkpoint, OpenCheckpoint
    from ist_hpc.common.hdf5_writing import Hdf5Output
    from ist_hpc.config.keys import EvaluateConfig
    from ist_hpc.data.images import Scaling
    from ist_hpc.data.shards import Dataset
    from ist_hpc.runtime.meters import Meter
    from ist_hpc.training.full_network import HomeNetwork

_PROGRAM = "python -m ist_hpc.evaluate"
_DESCRIPTION = """\
Evaluate a checkpoint on a data set and print rows and metrics: accuracy and loss for classes; P@k,
nDCG@k and PSP@k for sets of labels. Any number of ranks will do, whatever number trained it: each
holds its part of the network. The batch-norm statistics are those that the checkpoint has, so a
prediction depends on its own row only.
"""
_EPILOG = f"""\
CKPT is a checkpoint's folder, the checkpoint.h5 in it, or a run's folder (its newest checkpoint).

examples:
  {_PROGRAM} runs/a --data data/digits
  mpirun -np 4 {_PROGRAM} runs/a --data data/speech --predictions out.h5
  srun --mpi=pmix {_PROGRAM} runs/a --data /scratch/mine --split train

FILE of --predictions is HDF5, in the order of the data set's rows, with the checkpoint and data
named in its attributes. For classes: `logits` [rows, classes] float32, `labels` and `predicted`
[rows] int64. For sets of labels: `predicted` [rows, k] int64, best first, and their `logits`
[rows, k] float32; -1 and -inf where there are fewer labels than k. k is the largest of --top.
exit code 2, and one line that says what, for files that are damaged or do not fit each other.
"""

FORMAT = "ist_hpc predictions"
FORMAT_VERSION = 1
_CHUNK_BYTES = 1 << 20


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog=_PROGRAM,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint", type=given_path, metavar="CKPT", help="checkpoint or run folder"
    )
    parser.add_argument(
        "--data",
        type=given_path,
        metavar="DIR",
        required=True,
        help="folder of shards to evaluate on",
    )
    parser.add_argument("--split", default="test", metavar="NAME", help="test (default) or train")
    parser.add_argument(
        "--predictions",
        type=given_path,
        metavar="FILE",
        help="write every row's outputs to this file",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="let --predictions replace its FILE"
    )
    parser.add_argument(
        "--batch-rows",
        type=count_from(1),
        metavar="N",
        help="rows evaluated at a time; default: `evaluate.batch_rows` of the checkpoint",
    )
    parser.add_argument(
        "--top",
        type=_top,
        nargs="+",
        metavar="K",
        help="k of P@k and the others; default: `evaluate.top` of the checkpoint",
    )
    parser.add_argument(
        "--assign",
        choices=("rows", "files"),
        default="rows",
        help="rows (default): every rank can read all shards; files: rank r reads those whose "
        "number modulo the ranks is r, which other nodes need not have",
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where to compute (default cpu)"
    )
    add_version(parser)
    arguments = parser.parse_args(argv)
    if arguments.overwrite and not arguments.predictions:
        raise AgreedInputError("--overwrite is of --predictions FILE, which is not given")
    return arguments


def _top(text: str) -> int:
    found = count_from(1)(text)
    if found > MOST_TOP:
        raise argparse.ArgumentTypeError(f"must be at most {MOST_TOP}, got {text!r}")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Parse arguments, start MPI, evaluate. Returns the exit code."""
    return launch("evaluate", lambda: _arguments(argv), _evaluate, watched=True)


def _evaluate(runtime: Runtime, arguments: argparse.Namespace) -> int:
    """Check everything, then evaluate and print. Collective."""
    from ist_hpc.checkpoint.read import resolve

    comm, target = runtime.comm, arguments.predictions
    if target:
        on_root(comm, lambda: refuse_target(target, "--predictions", arguments.overwrite))
    folder = on_root(comm, lambda: resolve(arguments.checkpoint))

    # After what can be refused without torch, which takes seconds to load.
    from ist_hpc.checkpoint import restore
    from ist_hpc.common.names import spoken
    from ist_hpc.runtime import devices
    from ist_hpc.runtime.meters import Meter
    from ist_hpc.runtime.watchdog import Watchdog

    runtime, meter = runtime.with_threads(0), Meter()
    silence_s = RuntimeConfig().silence_s
    with Watchdog(comm, meter, silence_s, lambda why: say(f"evaluate: failed: {why}")):
        saved = restore.check(comm, folder)
        device = devices.choose(comm, arguments.device)
        loaded = check_on_all(comm, lambda: _load(runtime, arguments, saved, device))
        check_on_all(comm, lambda: _check_shards(loaded.dataset, arguments, runtime))
        with meter.timing("evaluate"):
            result = _predict(runtime, arguments, loaded, meter)
    if runtime.rank == 0:
        print(f"checkpoint:  {saved.folder}")
        print(f"data:        {arguments.data}, {arguments.split}")
        print(f"rows:        {loaded.dataset.rows(arguments.split)}")
        for metric, value in result.items():
            print(f"{f'{spoken(metric)}:':12} {value:.4f}")
        if target:
            print(f"predictions: {target}")
    return 0


@dataclass(frozen=True)
class _Loaded:
    """The data set, how its rows are scaled, and the network as this rank holds it.

    attributes  of a file of predictions: what they were computed from
    """

    dataset: "Dataset"
    scaling: "Scaling | None"
    network: "HomeNetwork"
    evaluate: "EvaluateConfig"
    attributes: dict[str, Any]


def _load(
    runtime: Runtime,
    arguments: argparse.Namespace,
    saved: "Checkpoint",
    device: "torch.device",
) -> _Loaded:
    """Open the data, and read this rank's home blocks and no more. Local; `InputError`."""
    from ist_hpc.checkpoint import restore
    from ist_hpc.data.images import scaling_of
    from ist_hpc.data.shards import Dataset
    from ist_hpc.models import networks
    from ist_hpc.training.full_network import HomeNetwork, metrics_for

    dataset = Dataset.open(arguments.data)
    if arguments.top and not dataset.sparse:
        raise InputError(f"--top is of sets of labels; {arguments.data} has one class a row")
    with saved.opened() as opened:
        _check_fit(dataset, arguments.split, opened)
        scaling = scaling_of(opened.config.data, dataset)
        data = opened.data
        subnets = subnets_of(opened.config, opened.progress.ranks)
        model = networks.build(
            opened.config.model, data.features, data.outputs, data.sparse, subnets
        )
        networks.refuse_other_rows(model, dataset.feature_shape, dataset.path)
        restored = restore.restore(opened, model, (), (), runtime.rank, runtime.ranks)
    weights = {spec.key: restored.state[spec.key].place("home") for spec in model.specs}
    there = {key: weight.to(device) for key, weight in (weights | restored.shared).items()}
    network = HomeNetwork(runtime.comm, model, there, restored.statistics)
    evaluate = replace(
        opened.config.evaluate,
        batch_rows=arguments.batch_rows or opened.config.evaluate.batch_rows,
        top=arguments.top or opened.config.evaluate.top,
    )
    metrics_for(dataset, evaluate)  # refuses propensities that cannot be
    return _Loaded(dataset, scaling, network, evaluate, _attributes(arguments, saved, opened))


def _check_fit(dataset: "Dataset", split: str, opened: "OpenCheckpoint") -> None:
    """Raise `InputError` unless the data set has rows that the model was made for. Local."""
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


def _check_shards(dataset: "Dataset", arguments: argparse.Namespace, runtime: Runtime) -> None:
    """Check this rank's part of the split's shards; the ranks together check all. Local.

    Under `--assign files` these are the shards that the rank must have.
    """
    for index in range(runtime.rank, len(dataset.shards[arguments.split]), runtime.ranks):
        dataset.check_shard(arguments.split, index)


def _attributes(
    arguments: argparse.Namespace, saved: "Checkpoint", opened: "OpenCheckpoint"
) -> dict[str, Any]:
    from ist_hpc.checkpoint.read import MANIFEST
    from ist_hpc.common.files import sha256_of
    from ist_hpc.data.shard_meta import META_FILE

    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "package_version": __version__,
        "checkpoint": str(saved.folder.resolve()),
        "checkpoint_manifest_sha256": sha256_of(saved.folder / MANIFEST),
        "round": opened.progress.round,
        "data": str(arguments.data.resolve()),
        "data_meta_sha256": sha256_of(arguments.data / META_FILE),
        "split": arguments.split,
    }


def _predict(
    runtime: Runtime, arguments: argparse.Namespace, loaded: _Loaded, meter: "Meter"
) -> dict[str, float]:
    """Evaluate the split, a batch at a time, and write what rank 0 is asked to. Collective."""
    from ist_hpc.data.rows import CommonRows
    from ist_hpc.training.full_network import metrics_for

    comm, dataset = runtime.comm, loaded.dataset
    rows = CommonRows(comm, dataset, arguments.split, arguments.assign, loaded.scaling)
    metrics = metrics_for(dataset, loaded.evaluate)
    with contextlib.ExitStack() as stack:
        writer = None
        if arguments.predictions and runtime.rank == 0:
            columns = _columns(dataset, loaded.evaluate)
            writer = _Predictions(arguments, rows.rows, columns, loaded.attributes)
            stack.enter_context(writer)
        check_on_all(comm, lambda: writer.begin() if writer else None)
        for start, batch in loaded.network.predict(rows, loaded.evaluate.batch_rows, metrics):
            meter.beat()
            if writer:
                writer.add(start, batch)
        result = metrics.result()
        check_on_all(comm, lambda: writer.finish(result) if writer else None)
    return result


_Column = tuple[str, tuple[int, ...], str, str]
"""Name, shape of a row, type and meaning of a dataset of predictions."""


def _columns(dataset: "Dataset", evaluate: "EvaluateConfig") -> list[_Column]:
    if dataset.sparse:
        k = (max(evaluate.top),)
        return [
            ("predicted", k, "i8", "labels with the largest outputs, best first; -1: none"),
            ("logits", k, "f4", "their outputs; -inf: none"),
        ]
    return [
        ("logits", (dataset.outputs,), "f4", "outputs of the network, before softmax"),
        ("labels", (), "i8", "classes as the data set has them"),
        ("predicted", (), "i8", "class of the largest output"),
    ]


class _Predictions:
    """A file of predictions, on rank 0: written beside, a batch at a time; `finish` names it.

    Methods raise `InputError` where the file cannot be written.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        rows: int,
        columns: Sequence[_Column],
        attributes: dict[str, Any],
    ) -> None:
        self._target, self._overwrite = followed(arguments.predictions), arguments.overwrite
        self._rows, self._columns = rows, columns
        self._attributes = attributes
        self._beside = hidden_beside(self._target)
        self._output: Hdf5Output | None = None

    def __enter__(self) -> "_Predictions":
        return self

    def __exit__(self, *_: object) -> None:
        if self._output is not None:
            self._output.abandon()
        self._beside.unlink(missing_ok=True)

    def begin(self) -> None:
        """Make the file, with nothing in it."""
        import numpy as np

        from ist_hpc.common.hdf5_writing import Hdf5Output

        with self._reporting():
            self._output = Hdf5Output(self._beside)
            file = self._output.file
            file.attrs.update(self._attributes)
            for name, shape, kind, about in self._columns:
                row_bytes = np.dtype(kind).itemsize * max(1, int(np.prod(shape)))
                chunk = (min(self._rows, max(1, _CHUNK_BYTES // row_bytes)), *shape)
                dataset = file.create_dataset(
                    name, (self._rows, *shape), kind, chunks=chunk, fletcher32=True
                )
                dataset.attrs["about"] = about

    def add(self, start: int, batch: "Mapping[str, Tensor]") -> None:
        """Write the rows from `start` on: a tensor for each column."""
        assert self._output is not None
        with self._reporting():
            for name, *_ in self._columns:
                values = batch[name]
                self._output.file[name][start : start + len(values)] = values.numpy()
            self._output.check()

    def finish(self, result: dict[str, float]) -> None:
        """Add the metrics, flush to disk and give the file its name."""
        assert self._output is not None
        with self._reporting():
            self._output.file.attrs.update(result)
            self._output.close()
            put_in_place(self._beside, self._target, self._overwrite)

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except FileExistsError:
            raise exists_error(self._target, "--predictions") from None
        except (OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"--predictions {self._target}: cannot be written ({reason})"
            ) from None


if __name__ == "__main__":
    run("evaluate", main)

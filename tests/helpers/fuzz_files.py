"""Damaged checkpoints and shards: python tests/helpers/fuzz_files.py --cases 10000 --seed 1

Every case is a copy of a checkpoint of two ranks, or of a data set, mutated. A shard that was
written anew (other shapes, types, links, attributes, or another shard) has also checksums made to
fit, so that only what is in it can tell: users write data sets themselves. Bytes changed by one who
makes the checksums fit are left out: HDF5 itself can loop on them for ever, in heaps that have no
checksum of their own.

A case must be refused with an `InputError` or read as what it was: never a wrong number, another
exception, a crash or a hang. Where the checksums were made to fit, h5py alone says what is right:
files of the same structure, with other values only where any will do, must be read, and as exactly
what is in them; all others must be refused. Cases run in processes of their own, so that a crash of
HDF5 is seen; a failure prints the case, which `--only SEED:CASE` makes again.
"""

import argparse
import functools
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ist_hpc.checkpoint import restore
from ist_hpc.checkpoint.folder import Checkpoint
from ist_hpc.checkpoint.read import DataShape
from ist_hpc.common.errors import InputError
from ist_hpc.config import loading
from ist_hpc.config.keys import Config
from ist_hpc.data.csr import Csr
from ist_hpc.data.shards import Dataset, DatasetWriter
from ist_hpc.models import networks, optimizer
from tests.helpers.launching import run_ranks
from tests.helpers.mutations import MUTATIONS, fit_meta, rewrite, swap
from tests.helpers.plain_reading import Values, plain_checkpoint, plain_dataset, require_same

CASES_A_PROCESS = 250
LIMIT_S = 120.0
RANKS = 3  # that read; two wrote

# What the package reads.


@functools.cache
def _run(made: Path) -> tuple[Config, DataShape]:
    """Of the run that made the checkpoint: a resume takes nothing of this from the checkpoint."""
    config = loading.load(made / "run/config.yaml")
    return config, DataShape.of(Dataset.open(made / "dense"))


def read_checkpoint(folder: Path, made: Path) -> Values:
    """Progress and every tensor, as a resume on other ranks reads them: checked first."""
    config, data = _run(made)
    saved = Checkpoint(folder)
    names = sorted(saved.files)
    saved.check_files(names)
    model = networks.build(config.model, data.features, data.outputs, data.sparse)
    rule = optimizer.build(config.optimizer)
    slots, shared_slots = rule.slot_specs(model.specs), rule.shared_slot_specs(model.shared)
    with saved.opened() as opened:
        restore.check_model(opened, config, data)
        parts = [
            restore.restore(opened, model, slots, shared_slots, rank, RANKS)
            for rank in range(RANKS)
        ]
        found: dict[str, Any] = vars(opened.progress) | {
            "metric": opened.metric,
            "classes": list(opened.data.classes),
        }
    for group, specs in (("parameters", model.specs), ("optimizer", slots)):
        for spec in specs:
            blocks = [part.state[spec.key].place("home").numpy() for part in parts]
            found[f"{group}/{spec.key}"] = np.concatenate(blocks)
    for key in parts[0].statistics:
        for number, what in enumerate(("mean", "variance")):
            blocks = [part.statistics[key][number].numpy() for part in parts]
            found[f"statistics/{key}.{what}"] = np.concatenate(blocks)
    found |= {f"parameters/{key}": tensor.numpy() for key, tensor in parts[0].shared.items()}
    found |= {f"optimizer/{key}": tensor.numpy() for key, tensor in parts[0].shared_slots.items()}
    return found


def read_dataset(folder: Path, made: Path) -> Values:
    """Every row of every split, read as training does: checked first."""
    found: dict[str, Any] = {}
    with Dataset.open(folder) as dataset:
        for split, shards in dataset.shards.items():
            for index in range(len(shards)):
                dataset.check_shard(split, index, checksum=True)
            features, labels = dataset.read(split, 0, dataset.rows(split))
            for name, part in (("features", features), ("labels", labels)):
                if isinstance(part, Csr):
                    found[f"{split}/{name}/lengths"] = np.diff(part.indptr)
                    found[f"{split}/{name}/indices"] = part.indices
                    found[f"{split}/{name}/data"] = part.values
                else:
                    found[f"{split}/{name}"] = part
        found["label_counts"] = dataset.label_counts()
    return found


def make(folder: Path) -> None:
    """The whole files: a `checkpoint` of two ranks, and data sets `dense` and `sparse`."""
    rng = np.random.default_rng(0)
    splits = (("train", 60), ("test", 20))
    for kind, width, classes in (("dense", 5, 4), ("sparse", 50, 12)):
        with DatasetWriter(
            folder / kind,
            name="fuzz",
            kind=kind,
            feature_shape=(width,),
            feature_dtype="float32",
            classes=classes,
            shard_rows=30,
        ) as writer:
            for split, rows in splits:
                if kind == "dense":
                    features = rng.random((rows, width), dtype=np.float32)
                    writer.append(split, features, rng.integers(classes, size=rows))
                else:
                    features, labels = (
                        _sparse(rng, rows, entries, columns, values)
                        for entries, columns, values in ((6, width, True), (2, classes, False))
                    )
                    writer.append(split, features, labels)
    words = ["-m", "ist_hpc.train", "--runs", folder, "--name", "run", "--set"]
    settings = ["data.path=dense", "model.hidden=[9,7]", "train.epochs=null", "train.rounds=3"]
    settings += ["optimizer.momentum=0.9", "data.batch_size=8"]
    settings += ["model.output_norm=none", "model.output_bias=true"]  # for tensors that are shared
    run_ranks(2, [*words, *settings], folder)
    shutil.copytree(folder / "run/checkpoints/round-00000003", folder / "checkpoint")


def _sparse(rng: np.random.Generator, rows: int, entries: int, width: int, values: bool) -> Csr:
    columns = [np.sort(rng.choice(width, entries, replace=False)) for _ in range(rows)]
    indptr = np.arange(0, rows * entries + 1, entries, dtype=np.int64)
    numbers = rng.random(rows * entries, dtype=np.float32) + 1 if values else None
    return Csr(indptr, np.concatenate(columns).astype(np.int32), numbers, width)


@dataclass(frozen=True)
class Kind:
    """What is made and mutated: its folder, and how it is read, by the package and by h5py.

    fit  makes its checksums fit, where that is tried
    """

    name: str
    read: Callable[[Path, Path], Values]
    plain: Callable[[Path, Path], Values]
    fit: Callable[[Path], None] | None = None


KINDS = (
    Kind("checkpoint", read_checkpoint, plain_checkpoint),
    Kind("dense", read_dataset, plain_dataset, fit_meta),
    Kind("sparse", read_dataset, plain_dataset, fit_meta),
)


def read_whole(made: Path) -> dict[str, Values]:
    """All that was made, as it is before anything is done to it."""
    whole = {kind.name: kind.read(made / kind.name, made) for kind in KINDS}
    for kind in KINDS:
        require_same(whole[kind.name], kind.plain(made / kind.name, made))
    return whole


def check(made: Path, whole: Mapping[str, Values], seed: int, case: int, place: Path) -> str:
    """Make and read one case; how it ended. Raises AssertionError where it must not end so."""
    rng = random.Random(f"{seed}:{case}")
    kind = KINDS[case % len(KINDS)]
    folder = place / kind.name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(made / kind.name, folder)
    mutation, path = rng.choice(MUTATIONS), rng.choice(sorted(folder.iterdir()))
    mutation(path, rng)
    fitted, is_list = False, path.suffix == ".json"  # of the files; itself it has no checksum
    if kind.fit and mutation in (rewrite, swap):
        fitted = is_list
        if not fitted and rng.random() < 0.7:
            kind.fit(folder)
            fitted = True
    try:
        was_read = judge(kind, folder, made, whole, fitted, must_read=not is_list)
    except AssertionError as error:
        raise AssertionError(f"{mutation.__name__} of {path.name}: {error}") from None
    return f"{kind.name} {'read' if was_read else 'refused'}"


def judge(
    kind: Kind,
    folder: Path,
    made: Path,
    whole: Mapping[str, Values],
    fitted: bool,
    must_read: bool = True,
) -> bool:
    """Whether the folder is read, and not refused. Raises AssertionError if that is wrong.

    fitted     its checksums were made to fit, so that other values may be in it
    must_read  if it is valid, and fitted
    """
    expected, problem = whole[kind.name], ""
    if fitted:
        try:
            expected = kind.plain(folder, made)
        except Exception as error:  # whatever h5py and JSON raise: it is no such folder
            problem = f"{type(error).__name__}: {error}"
    try:
        found = kind.read(folder, made)
    except InputError as error:
        if fitted and must_read and not problem:
            raise AssertionError(f"is valid, and refused: {error}") from None
        return False
    assert not problem, f"was read, though {problem}"
    require_same(found, expected)
    return True


def work(made: str, seed: int, cases: range, answers: Any) -> None:
    """Cases in a process of their own; puts (case, outcome) or (case, failure)."""
    folder = Path(made)
    whole = read_whole(folder)
    with tempfile.TemporaryDirectory() as place:
        for case in cases:
            answers.put((case, "begun", ""))
            try:
                answers.put((case, "ended", check(folder, whole, seed, case, Path(place))))
            except BaseException as error:  # whatever it is: it must not have been raised
                answers.put((case, "failed", f"{type(error).__name__}: {error}"))
                return


def fuzz(made: Path, cases: int, seed: int, report: bool = False) -> Counter[str]:
    """Run the cases; how many ended in which way. Raises AssertionError that names a case."""
    context, outcomes, begin_s = (
        multiprocessing.get_context("spawn"),
        Counter[str](),
        time.monotonic(),
    )
    for start in range(0, cases, CASES_A_PROCESS):
        part = range(start, min(start + CASES_A_PROCESS, cases))
        answers = context.SimpleQueue()
        worker = context.Process(target=work, args=(str(made), seed, part, answers))
        worker.start()
        worker_end_s, last = time.monotonic() + LIMIT_S, start
        while worker.is_alive() or not answers.empty():
            if answers.empty():
                if time.monotonic() > worker_end_s:
                    worker.kill()
                    raise AssertionError(f"case {seed}:{last} hangs")
                time.sleep(0.01)
                continue
            last, state, what = answers.get()
            assert state != "failed", f"case {seed}:{last}: {what}"
            outcomes[what] += state == "ended"
        worker.join()
        assert worker.exitcode == 0, f"case {seed}:{last}: exit code {worker.exitcode}"
        if report:
            seconds = time.monotonic() - begin_s
            print(f"fuzz_files: {part.stop} cases, {seconds:.0f} s", flush=True)
    del outcomes[""]
    assert sum(outcomes.values()) == cases
    return outcomes


def main() -> int:
    """Parse arguments and run; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="SEED:CASE")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        make(folder)
        if args.only:
            seed, case = map(int, args.only.split(":"))
            whole = read_whole(folder)
            (folder / "case").mkdir()
            print(check(folder, whole, seed, case, folder / "case"))
            return 0
        try:
            outcomes = fuzz(folder, args.cases, args.seed, report=True)
        except AssertionError as error:
            print(f"fuzz_files: FAILED: {error}\nrepeat it with --only SEED:CASE", file=sys.stderr)
            return 1
    print("fuzz_files: ok: " + ", ".join(f"{n} {what}" for what, n in sorted(outcomes.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())

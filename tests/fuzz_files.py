"""Hostile checkpoints and shards: python tests/fuzz_files.py --cases 10000 --seed 1

Every case is a copy of a checkpoint of two ranks, or of a data set, mutated; where a file was
written anew (other shapes, types, links, attributes, or another rank's file) also with checksums
made to fit, so that only what is in it can tell. Bytes changed by one who makes the checksums fit
are left out: HDF5 itself can loop on them for ever, in heaps that have no checksum of their own.

A case must be refused with an `InputError` or read as what it was: never a wrong number, another
exception, a crash or a hang. Where the checksums were made to fit, h5py alone says what is right:
files of the same structure, with other values only where any will do, must be read, and as exactly
what is in them; all others must be refused. Cases run in processes of their own, so that a crash of
HDF5 is seen; a failure prints the case, which `--only SEED:CASE` makes again.
"""

import argparse
import contextlib
import functools
import hashlib
import json
import multiprocessing
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ist_hpc import checkpoint, models, optimizer
from ist_hpc import config as configuration
from ist_hpc.checkpoint_read import Checkpoint, DataShape
from ist_hpc.csr import Csr
from ist_hpc.errors import InputError
from ist_hpc.shards import Dataset, DatasetWriter
from tests.launching import run_ranks

CASES_A_PROCESS = 250
LIMIT_S = 120.0
RANKS = 3  # that read; two wrote

Values = Mapping[str, Any]


# What the package reads.


@functools.cache
def _run(made: Path) -> tuple[configuration.Config, DataShape]:
    """Of the run that made the checkpoint: a resume takes nothing of this from the checkpoint."""
    config = configuration.load(made / "run/config.yaml")
    return config, DataShape.of(Dataset.open(made / "dense"))


def read_checkpoint(folder: Path, made: Path) -> Values:
    """Progress and every tensor, as a resume on other ranks reads them: checked first."""
    config, data = _run(made)
    saved = Checkpoint(folder)
    names = sorted(saved.files)
    saved.check_files(names)
    saved.check_parts(names)
    model = models.build(config.model, data.features, data.outputs, data.sparse)
    rule = optimizer.build(config.optimizer)
    slots, shared_slots = rule.slot_specs(model.specs), rule.shared_slot_specs(model.shared)
    with saved.opened() as opened:
        checkpoint.check_model(opened, config, data)
        parts = [
            checkpoint.restore(opened, model, slots, shared_slots, rank, RANKS)
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


# What is right, from h5py alone.


def _is_count(value: Any) -> bool:
    return isinstance(value, np.integer) and 0 <= value <= 2**53


def _is_list_of_names(value: Any) -> bool:
    try:
        names = json.loads(value)
    except (ValueError, TypeError, RecursionError):
        return False
    return isinstance(names, list) and len(names) in (0, 4) and {type(n) for n in names} <= {str}


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[a-z0-9._]+", value) is not None


FREE: Mapping[str, Callable[[Any], bool]] = {
    "steps": _is_count,
    "samples": _is_count,
    "stream_rows": _is_count,
    "best": lambda value: isinstance(value, np.floating) and -1 <= value <= 1,
    "owes_evaluation": lambda value: isinstance(value, np.bool_),
    "metric": lambda value: _is_word(value) and value[0].isalpha(),
    "package_version": _is_word,
    "classes": _is_list_of_names,
}
"""Attributes of checkpoint.h5 that nothing else in a checkpoint or a run contradicts."""
FREE_KEYS = ("name", "feature_description", "made_by")
"""The same of meta.json."""


def structure(path: Path) -> dict[str, object]:
    """Every link of an HDF5 file, and what is there: of datasets all but the values."""
    return _structure(path, hashlib.sha256(path.read_bytes()).digest())


@functools.lru_cache(100)  # few of the files of a case are mutated
def _structure(path: Path, digest: bytes) -> dict[str, object]:
    found: dict[str, object] = {}

    def visit(group: h5py.Group, prefix: str) -> None:
        for key in group:
            name, link = prefix + key, group.get(key, getlink=True)
            item = group[key] if isinstance(link, h5py.HardLink) else None
            if isinstance(item, h5py.Group):
                kept = ("encoding-type", "encoding-version", "shape")  # of sparse rows
                found[name] = [repr(item.attrs.get(kind)) for kind in kept]
                visit(item, f"{name}/")
            elif isinstance(item, h5py.Dataset):
                sources = item.virtual_sources() if item.is_virtual else ()
                found[name] = (
                    *(item.shape, item.dtype.str, item.chunks, item.fletcher32, item.external),
                    *(h5py.h5o.get_info(item.id).rc, [_origin(source) for source in sources]),
                )
            else:
                found[name] = f"{type(link).__name__}, {type(item).__name__}"

    with h5py.File(path) as file:
        visit(file, "")
    return found


def _origin(source: Any) -> tuple[object, ...]:
    """Where the rows of a virtual dataset are, and where it takes them from."""
    there, bounds = source.src_space, None
    if there.get_select_type() != h5py.h5s.SEL_ALL:
        bounds = there.get_select_bounds()
    return source.file_name, source.dset_name, source.vspace.get_select_bounds(), bounds


def require_structure(folder: Path, source: Path) -> None:
    """Raise AssertionError unless the HDF5 files differ from those of `source` in values only."""
    names = [path.name for path in sorted(source.glob("*.h5"))]
    assert [path.name for path in sorted(folder.glob("*.h5"))] == names, "other files"
    for name in names:
        same = structure(folder / name) == structure(source / name)
        assert same, f"{name} has another structure"


def plain_checkpoint(folder: Path, made: Path) -> Values:
    """What a resume must read: the rank files' rows one after the other, the shared tensors.

    Raises AssertionError for what is no checkpoint of the run.
    """
    source = made / "checkpoint"
    require_structure(folder, source)
    manifests = [json.loads((at / "manifest.json").read_text()) for at in (folder, source)]
    assert manifests[0]["files"].keys() == manifests[1]["files"].keys(), "lists other files"
    for path in sorted(source.glob("*.h5")):
        with h5py.File(path) as whole, h5py.File(folder / path.name) as file:
            assert file.attrs.keys() == whole.attrs.keys(), f"{path.name}: other attributes"
            for key, was in whole.attrs.items():
                free = path.name == "checkpoint.h5" and key in FREE
                value = file.attrs[key]
                good = FREE[key](value) if free else type(value) is type(was) and value == was
                assert good, f"{path.name}: `{key}` is {value!r:.80}"
    with contextlib.ExitStack() as stack:
        main = stack.enter_context(h5py.File(folder / "checkpoint.h5"))
        parts = [stack.enter_context(h5py.File(path)) for path in sorted(folder.glob("rank-*.h5"))]
        found = {
            name: np.concatenate([part[name][()] for part in parts]) for name in datasets(parts[0])
        }
        found |= {name: main[name][()] for name in datasets(main) if name not in found}
        counts = ("round", "steps", "samples", "stream_rows", "ranks", "best")
        found |= {key: main.attrs[key] for key in (*counts, "owes_evaluation", "metric")}
        return found | {"classes": json.loads(main.attrs["classes"])}


def plain_dataset(folder: Path, made: Path) -> Values:
    """The rows of every shard, one after the other.

    Raises AssertionError for what is not as meta.json was, but for words in it.
    """
    require_structure(folder, made / folder.name)
    whole, content = (_schema(at / "meta.json") for at in (made / folder.name, folder))
    if "label_counts" not in content:  # they may be left out
        whole.pop("label_counts", None)
    assert json.dumps(content) == json.dumps(whole), "meta.json says something else"
    found: dict[str, Any] = {"label_counts": None}
    for split, shards in content["shards"].items():
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(h5py.File(folder / shard["file"])) for shard in shards]
            for name in datasets(files[0]):
                parts = [file[name][()] for file in files]
                if name.endswith("indptr"):
                    name = name.replace("indptr", "lengths")
                    parts = [np.diff(part) for part in parts]
                found[f"{split}/{name}"] = np.concatenate(parts)
        if content["kind"] == "sparse":
            assert (found[f"{split}/labels/data"] == 1).all()
            found[f"{split}/labels/data"] = None
    if "label_counts" in content:
        with h5py.File(folder / content["label_counts"]["file"]) as file:
            found["label_counts"] = file["train"][()]
    return found


def _schema(path: Path) -> dict[str, Any]:
    """A meta.json without what may change."""
    content = json.loads(path.read_text(encoding="utf-8"))
    for key in FREE_KEYS:
        del content[key]
    for entry in _entries(content):
        del entry["bytes"], entry["sha256"]
    return content


def datasets(file: h5py.File) -> list[str]:
    names: list[str] = []
    file.visititems(
        lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None
    )
    return names


def require_same(found: Values, expected: Values) -> None:
    """Raise AssertionError for the first value that differs, in its type or at all."""
    assert found.keys() == expected.keys(), f"other names: {found.keys() ^ expected.keys()}"
    for key, wanted in expected.items():
        got, wanted = np.asarray(found[key]), np.asarray(wanted)
        same = got.dtype == wanted.dtype and np.array_equal(got, wanted)
        assert same, f"{key} differs"


# What is done to a file.


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def truncate(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: rng.choice((0, 1, len(data) - 1, rng.randrange(len(data))))])


def zero(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    start = rng.randrange(len(data))
    stop = min(len(data), start + rng.choice((1, 8, 512, 4096)))
    data[start:stop] = bytes(stop - start)
    path.write_bytes(data)


def scramble(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    start = rng.randrange(len(data))
    stop = min(len(data), start + rng.choice((2, 16, 256)))
    data[start:stop] = rng.randbytes(stop - start)
    path.write_bytes(data)


def extend(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes() + rng.randbytes(rng.choice((1, 100, 5000))))


def remove(path: Path, rng: random.Random) -> None:
    path.unlink()


def be_a_folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def swap(path: Path, rng: random.Random) -> None:
    """Two files of one kind change places."""
    others = [other for other in sorted(path.parent.iterdir()) if other.suffix == path.suffix]
    other = rng.choice(others)
    first, second = path.read_bytes(), other.read_bytes()
    path.write_bytes(second)
    other.write_bytes(first)


def rewrite(path: Path, rng: random.Random) -> None:
    """A dataset gets another shape, type or origin, or is missing; an attribute another value."""
    if path.suffix != ".h5":
        edit_json(path, rng)
        return
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name))
        what = rng.choice(("data", "data", "missing", "attribute", "attribute", "link", "group"))
        if what == "attribute":
            holders = [holder for holder in (file, *map(file.get, names)) if len(holder.attrs)]
            edit_attribute(rng.choice((file, *holders)), rng)
            return
        name = rng.choice(names)
        if what == "data" and isinstance(file[name], h5py.Dataset):
            edit_dataset(file, name, rng)
        elif what == "link":
            edit_link(file, name, rng)
        else:
            del file[name]
            if what == "group":
                file.create_group(name)


def edit_attribute(holder: h5py.HLObject, rng: random.Random) -> None:
    """One attribute gets another value, or goes."""
    keys = list(holder.attrs)
    if not keys:
        return
    key = rng.choice(keys)
    if rng.random() < 0.1:
        del holder.attrs[key]
    else:
        holder.attrs[key] = rng.choice(ODD)


def edit_dataset(file: h5py.File, name: str, rng: random.Random) -> None:
    """A dataset gets another shape or type, or its values from elsewhere."""
    was = file[name]
    what = rng.choice(("shape", "type", "elsewhere"))
    if was.is_virtual and rng.random() < 0.7:
        remap(file, name, rng)
        return
    values = np.zeros(was.shape, "f4") if was.is_virtual else was[()]
    options = {"chunks": True, "fletcher32": True} if was.fletcher32 else {}
    del file[name]
    if what == "shape":
        if rng.random() < 0.1:  # more than there is memory for, of which nothing is stored
            file.create_dataset(name, (2**40, *values.shape), values.dtype)
            return
        shape = [max(1, size + rng.choice((-1, 1))) for size in values.shape]
        file.create_dataset(name, data=np.resize(values, shape), **options)
    elif what == "type":
        kinds = [kind for kind in ("f8", "i4", "S3", "f2", ">f4") if values.dtype != kind]
        file.create_dataset(name, data=np.zeros(values.shape, rng.choice(kinds)), **options)
    elif rng.random() < 0.5:
        place = [("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
        file.create_dataset(name, values.shape, values.dtype, external=place)
    else:
        layout = h5py.VirtualLayout(values.shape, values.dtype)
        layout[...] = h5py.VirtualSource(rng.choice(SOURCES), name, values.shape)
        file.create_virtual_dataset(name, layout, fillvalue=0)


SOURCES = (".", "rank-0000.h5", "rank-0001.h5", "/nowhere.h5")


def remap(file: h5py.File, name: str, rng: random.Random) -> None:
    """A virtual dataset of the same shape takes other rows, or the same ones from elsewhere."""
    shape, dtype = file[name].shape, file[name].dtype
    sources = file[name].virtual_sources()
    bounds = [source.vspace.get_select_bounds() for source in sources]
    rows = [high[0] - low[0] + 1 for low, high in bounds]
    origins = [(source.file_name, source.dset_name) for source in sources]
    alike = [other for other in datasets(file) if other != name and file[other].shape == shape]
    offset = 0
    what = rng.choice(("files", "file", "name", "order", "gap", "offset", "stored"))
    if what == "stored":
        values = file[name][()]
        del file[name]
        file.create_dataset(name, data=values)
        return
    if what == "files":
        origins.reverse()
    elif what == "file":
        origins[0] = (rng.choice((*SOURCES, "./rank-0000.h5")), name)
    elif what == "name":
        other = rng.choice(alike or ["parameters"])
        origins = [(place, other) for place, _ in origins]
    elif what == "order":
        origins.reverse()
        rows.reverse()
    elif what == "gap":
        origins.pop()
    else:
        offset = 1
    del file[name]
    layout, start = h5py.VirtualLayout(shape, dtype), 0
    for (place, there), count in zip(origins, rows, strict=False):
        origin = h5py.VirtualSource(place, there, (count + offset, *shape[1:]))
        layout[start : start + count] = origin[offset:] if offset else origin
        start += count
    file.create_virtual_dataset(name, layout, fillvalue=np.nan)


def edit_link(file: h5py.File, name: str, rng: random.Random) -> None:
    """A name leads elsewhere: to nothing, to another file, or to another dataset of its shape."""
    shape = getattr(file[name], "shape", None)
    alike = [other for other in datasets(file) if other != name and file[other].shape == shape]
    links: list[Any] = [h5py.SoftLink("/" + name), h5py.ExternalLink("/etc/passwd", "/")]
    if not (Path(file.filename).parent / "meta.json").exists():  # shards are read through links
        links += [h5py.ExternalLink(other, name) for other in SOURCES[1:]]
        links += [h5py.SoftLink("/" + other) for other in alike]
        links += [file[other] for other in alike]
    link = rng.choice(links)
    del file[name]
    file[name] = link


ODD: list[Any] = [
    -1,
    0,
    1,
    7,
    2**31,
    2**62,
    -(2**63),
    np.uint64(2**64 - 1),
    0.5,
    float("nan"),
    float("inf"),
    float("-inf"),
    1 + 1j,
    "",
    "x",
    "2",
    "null",
    "[]",
    '["a", "b", "c", "d"]',
    "[" * 50_000,
    True,
    False,
    b"\xff",
    np.void(b"abc"),
    h5py.Empty("f4"),
    [],
    [1],
    [1, 2],
]
ODD_JSON: list[Any] = [
    -1,
    0,
    1,
    2**31,
    10**400,
    0.5,
    "",
    "../x",
    "x",
    None,
    True,
    [],
    {},
    [1],
    {"a": 1},
]


def edit_json(path: Path, rng: random.Random) -> None:
    """One value somewhere in a JSON file becomes another, goes, or is nested without end."""
    content = json.loads(path.read_text(encoding="utf-8"))
    where, key = content, rng.choice(list(content))
    while isinstance(where[key], (dict, list)) and where[key] and rng.random() < 0.8:
        where = where[key]
        key = rng.choice(list(where)) if isinstance(where, dict) else rng.randrange(len(where))
    action = rng.random()
    if action < 0.2:
        del where[key]
    elif action < 0.9:
        where[key] = rng.choice(ODD_JSON)
    else:
        path.write_text("[" * rng.choice((10, 100_000)), encoding="utf-8")
        return
    path.write_text(json.dumps(content), encoding="utf-8")


MUTATIONS = (flip, truncate, zero, scramble, extend, remove, be_a_folder, swap, *[rewrite] * 6)


def fit_manifest(folder: Path) -> None:
    """Make the checkpoint's manifest fit its files."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for name, entry in content["files"].items():
        if (folder / name).is_file():
            entry.update(_fit(folder / name))
    path.write_text(json.dumps(content), encoding="utf-8")


def fit_meta(folder: Path) -> None:
    """Make a data set's meta.json fit its files."""
    path = folder / "meta.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for entry in _entries(content):
        if (folder / entry["file"]).is_file():
            entry.update(_fit(folder / entry["file"]))
    path.write_text(json.dumps(content), encoding="utf-8")


def _entries(content: dict[str, Any]) -> list[dict[str, Any]]:
    """What a meta.json says of each file."""
    entries = [entry for shards in content["shards"].values() for entry in shards]
    return entries + ([content["label_counts"]] if "label_counts" in content else [])


def _fit(path: Path) -> dict[str, object]:
    data = path.read_bytes()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def make(folder: Path) -> None:
    """The whole files: a `checkpoint` of two ranks, and data sets `dense` and `sparse`."""
    rng = np.random.default_rng(0)
    splits = (("train", 60), ("test", 20))
    with DatasetWriter(
        folder / "dense",
        name="fuzz",
        kind="dense",
        feature_shape=(5,),
        feature_dtype="float32",
        classes=4,
        shard_rows=30,
    ) as writer:
        for split, rows in splits:
            features = rng.random((rows, 5), dtype=np.float32)
            writer.append(split, features, rng.integers(4, size=rows))
    with DatasetWriter(
        folder / "sparse",
        name="fuzz",
        kind="sparse",
        feature_shape=(50,),
        feature_dtype="float32",
        classes=12,
        shard_rows=30,
    ) as writer:
        for split, rows in splits:
            writer.append(split, _sparse(rng, rows, 6, 50, True), _sparse(rng, rows, 2, 12, False))
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
    """What is made and mutated: its folder, and how it is read, by the package and by h5py."""

    name: str
    read: Callable[[Path, Path], Values]
    plain: Callable[[Path, Path], Values]
    fit: Callable[[Path], None]


KINDS = (
    Kind("checkpoint", read_checkpoint, plain_checkpoint, fit_manifest),
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
    fitted = mutation in (rewrite, swap) and rng.random() < 0.7
    if fitted:
        try:
            kind.fit(folder)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            fitted = False  # what was mutated is the list itself
    is_list = path.suffix == ".json"  # of the files; itself it has no checksum
    fitted = fitted or (is_list and mutation is rewrite)
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

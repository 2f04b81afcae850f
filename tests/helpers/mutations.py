"""Mutations of checkpoints and shards, and checksums made to fit them."""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tests.helpers.plain_reading import datasets, entries


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


def edit_link(file: h5py.File, name: str, rng: random.Random) -> None:
    """A name leads elsewhere: to nothing, to another file, or to another dataset of its shape."""
    shape = getattr(file[name], "shape", None)
    alike = [other for other in datasets(file) if other != name and file[other].shape == shape]
    links: list[Any] = [h5py.SoftLink("/" + name), h5py.ExternalLink("/etc/passwd", "/")]
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
    for entry in entries(content):
        if (folder / entry["file"]).is_file():
            entry.update(_fit(folder / entry["file"]))
    path.write_text(json.dumps(content), encoding="utf-8")


def _fit(path: Path) -> dict[str, object]:
    data = path.read_bytes()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

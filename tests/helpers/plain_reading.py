"""What checkpoints and data sets hold, from h5py alone: a judge of what the package reads."""

import contextlib
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

Values = Mapping[str, Any]


FREE_KEYS = ("name", "feature_description", "made_by")
"""What nothing else in a data set contradicts, in meta.json."""


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
                found[name] = (
                    *(item.shape, item.dtype.str, item.chunks, item.fletcher32, item.external),
                    *(h5py.h5o.get_info(item.id).rc, item.is_virtual),
                )
            else:
                found[name] = f"{type(link).__name__}, {type(item).__name__}"

    with h5py.File(path) as file:
        visit(file, "")
    return found


def require_structure(folder: Path, source: Path) -> None:
    """Raise AssertionError unless the HDF5 files differ from those of `source` in values only."""
    names = [path.name for path in sorted(source.glob("*.h5"))]
    assert [path.name for path in sorted(folder.glob("*.h5"))] == names, "other files"
    for name in names:
        same = structure(folder / name) == structure(source / name)
        assert same, f"{name} has another structure"


def plain_checkpoint(folder: Path, made: Path) -> Values:
    """What a resume must read: the rank files' rows one after the other, the shared tensors."""
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
            for file in files:
                told = file.attrs["split"]
                assert isinstance(told, str), "of no split"
                assert told == split, "of another split"
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
    for entry in entries(content):
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


def entries(content: dict[str, Any]) -> list[dict[str, Any]]:
    """What a meta.json says of each file."""
    entries = [entry for shards in content["shards"].values() for entry in shards]
    return entries + ([content["label_counts"]] if "label_counts" in content else [])

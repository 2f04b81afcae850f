"""What `meta.json` of a data set says: its schema, its checks, reading and writing it.

docs/data-format.md describes every key for users. Reading checks all of it before anything else
trusts it, and opens no HDF5 file; every complaint is an `InputError` that names the file, the key,
what stands there and what is allowed.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ist_hpc.errors import InputError

META_FILE = "meta.json"
FORMAT = "ist_hpc-data"
FORMAT_VERSION = 1
KINDS = ("dense",)
FEATURE_DTYPES = ("float32", "uint8")
SPLITS = ("train", "test")

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHARD_FILE = re.compile(r"[\w-][\w.-]*\.h5")  # a plain name: meta.json cannot point elsewhere
_KEYS = {
    "format": str,
    "format_version": int,
    "kind": str,
    "name": str,
    "feature_shape": list,
    "feature_dtype": str,
    "feature_description": str,
    "classes": list,
    "rows": dict,
    "made_by": dict,
    "shards": dict,
}
_MADE_BY_KEYS = {"command": str, "parameters": dict, "package_version": str}
_SHARD_KEYS = {"file": str, "rows": int, "bytes": int, "sha256": str}
_JSON_NAMES = {str: "a string", int: "an integer", list: "a list", dict: "an object"}


@dataclass(frozen=True)
class Shard:
    """One HDF5 file of a split: its name in the folder, rows, size in bytes and SHA-256 (hex)."""

    file: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Meta:
    """The content of a valid `meta.json`; `shards` maps a split to its shards in row order."""

    name: str
    feature_shape: tuple[int, ...]
    feature_dtype: str
    feature_description: str
    classes: tuple[str, ...]
    made_by: Mapping[str, Any]
    shards: Mapping[str, tuple[Shard, ...]]

    def to_json(self) -> str:
        """The text of `meta.json`. Raises TypeError where `made_by` is not JSON."""
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "kind": "dense",
            "name": self.name,
            "feature_shape": list(self.feature_shape),
            "feature_dtype": self.feature_dtype,
            "feature_description": self.feature_description,
            "classes": list(self.classes),
            "rows": {split: sum(s.rows for s in shards) for split, shards in self.shards.items()},
            "made_by": dict(self.made_by),
            "shards": {s: [vars(shard) for shard in shards] for s, shards in self.shards.items()},
        }
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def load_meta(folder: Path) -> Meta:
    """Read and check `folder/meta.json`; raises InputError, see the module."""
    path = folder / META_FILE
    content = _object(path, "", _load_json(folder, path), _KEYS)
    # The format comes first: of a file of another kind or version no other key need make sense.
    _check(path, "format", content["format"], content["format"] == FORMAT, f'"{FORMAT}"')
    version = content["format_version"]
    _check(
        path,
        "format_version",
        version,
        version == FORMAT_VERSION,
        f"{FORMAT_VERSION}, the only one that this version of ist_hpc reads",
    )
    _check(path, "kind", content["kind"], content["kind"] in KINDS, " or ".join(KINDS))
    _check_features(path, content)
    _check_classes(path, content["classes"])
    _object(path, "made_by.", content["made_by"], _MADE_BY_KEYS, extra_keys=True)
    shards = _shards(path, content["shards"])
    rows = {split: sum(shard.rows for shard in of_split) for split, of_split in shards.items()}
    _check(path, "rows", content["rows"], content["rows"] == rows, f"the sum over shards, {rows}")
    return Meta(
        name=content["name"],
        feature_shape=tuple(content["feature_shape"]),
        feature_dtype=content["feature_dtype"],
        feature_description=content["feature_description"],
        classes=tuple(content["classes"]),
        made_by=content["made_by"],
        shards=shards,
    )


def _load_json(folder: Path, path: Path) -> object:
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "no such folder"
        raise InputError(f"no data at {folder} ({what}); {_how_to_make(folder)}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"no data at {folder}: the folder has no {META_FILE}; {_how_to_make(folder)}"
        ) from None
    except (OSError, UnicodeError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}: not valid JSON ({error}); the file is damaged or was edited by hand: "
            "copy it again or make the data set again with python -m ist_hpc.prepare"
        ) from error


def _how_to_make(folder: Path) -> str:
    # Only the digits need no more than a folder to be made; every other set has its own arguments.
    if folder.name == "digits":
        return f"make it with: python -m ist_hpc.prepare digits --output {folder}"
    beside = []
    if folder.parent.is_dir():
        beside = sorted(str(meta.parent) for meta in folder.parent.glob(f"[!.]*/{META_FILE}"))
    found = f" (data sets beside it: {', '.join(beside[:8])})" if beside else ""
    return f"correct the path{found}, or make it: python -m ist_hpc.prepare --help"


def _object(
    path: Path, prefix: str, value: object, keys: Mapping[str, type], extra_keys: bool = False
) -> dict[str, Any]:
    """`value` as an object that has exactly `keys` (or more, if allowed), each of its type."""
    where = prefix.rstrip(".") or "the file"
    if not isinstance(value, dict):
        raise InputError(f"{path}: `{where}` must be an object (got {_short(value)})")
    unknown = [key for key in value if key not in keys and not extra_keys]
    for key, kind in keys.items():
        if key not in value:
            near = get_close_matches(key, unknown, n=1)
            hint = f"; is `{prefix}{near[0]}` a misspelling of it?" if near else ""
            raise InputError(f"{path}: key `{prefix}{key}` is missing{hint}")
        # type(), not isinstance(): JSON's true and false are no integers here.
        _check(path, prefix + key, value[key], type(value[key]) is kind, _JSON_NAMES[kind])
    if unknown:
        raise InputError(
            f"{path}: unknown key `{prefix}{unknown[0]}`; allowed: {', '.join(keys)} "
            "(notes of your own belong in `made_by`)"
        )
    return value


def _check(path: Path, key: str, value: object, good: bool, allowed: str) -> None:
    if not good:
        raise InputError(f"{path}: `{key}` must be {allowed} (got {_short(value)})")


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def _check_features(path: Path, content: Mapping[str, Any]) -> None:
    shape, dtype = content["feature_shape"], content["feature_dtype"]
    good = bool(shape) and all(type(size) is int and size >= 1 for size in shape)
    _check(path, "feature_shape", shape, good, "a list of one or more integers >= 1")
    _check(path, "feature_dtype", dtype, dtype in FEATURE_DTYPES, " or ".join(FEATURE_DTYPES))


def _check_classes(path: Path, classes: list[object]) -> None:
    good = bool(classes) and all(isinstance(name, str) for name in classes)
    good = good and len(set(classes)) == len(classes)
    _check(path, "classes", classes, good, "a list of one or more different strings")


def _shards(path: Path, content: Mapping[str, object]) -> dict[str, tuple[Shard, ...]]:
    good = bool(content) and all(split in SPLITS for split in content)
    _check(path, "shards", list(content), good, f"an object with keys {' and/or '.join(SPLITS)}")
    shards: dict[str, tuple[Shard, ...]] = {}
    for split, listed in content.items():
        key = f"shards.{split}"
        good = isinstance(listed, list) and bool(listed)
        _check(path, key, listed, good, "a list of one or more shards")
        assert isinstance(listed, list)
        shards[split] = tuple(_shard(path, f"{key}[{i}].", item) for i, item in enumerate(listed))
    times = Counter(shard.file for of_split in shards.values() for shard in of_split)
    file, most = times.most_common(1)[0]
    if most > 1:
        raise InputError(f"{path}: `shards` lists {file} {most} times")
    return shards


def _shard(path: Path, prefix: str, value: object) -> Shard:
    item = _object(path, prefix, value, _SHARD_KEYS)
    shard = Shard(**item)
    plain = _SHARD_FILE.fullmatch(shard.file) is not None
    _check(path, f"{prefix}file", shard.file, plain, "a file name such as train-0000.h5")
    _check(path, f"{prefix}rows", shard.rows, shard.rows >= 1, ">= 1; an empty shard has no use")
    _check(path, f"{prefix}bytes", shard.bytes, shard.bytes >= 1, ">= 1")
    good = _SHA256.fullmatch(shard.sha256) is not None
    _check(path, f"{prefix}sha256", shard.sha256, good, "64 hexadecimal digits (0-9, a-f)")
    return shard

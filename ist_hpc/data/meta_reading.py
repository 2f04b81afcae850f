"""Reads `meta.json` of a data set.

All of it is checked before anything else trusts it, and no HDF5 file is opened; every error is an
`InputError` that names the file, the key, its value and what is allowed.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ist_hpc.common.disk.names import quoted
from ist_hpc.common.errors import InputError
from ist_hpc.data.shard_meta import (
    FEATURE_DTYPES,
    FORMAT,
    FORMAT_VERSION,
    KINDS,
    META_FILE,
    MOST_COLUMNS,
    SPLITS,
    Meta,
    Shard,
    SideFile,
)

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PLAIN_FILE = re.compile(r"[\w-][\w.-]*\.h5")  # a plain name: meta.json cannot point elsewhere
_KEYS = {
    "format": str,
    "format_version": int,
    "kind": str,
    "name": str,
    "feature_shape": list,
    "feature_dtype": str,
    "feature_description": str,
    "classes": object,  # a list of names, or their number
    "rows": dict,
    "made_by": dict,
    "shards": dict,
}
_MADE_BY_KEYS = {"command": str, "parameters": dict, "package_version": str}
_SHARD_KEYS = {"file": str, "rows": int, "bytes": int, "sha256": str}
_OPTIONAL_KEYS = {"label_counts": dict}
_SIDE_FILE_KEYS = {"file": str, "bytes": int, "sha256": str}
_JSON_NAMES = {str: "a string", int: "an integer", list: "a list", dict: "an object"}


def load_meta(folder: Path) -> Meta:
    """Read and check `folder/meta.json`; raises InputError, see the module."""
    path = folder / META_FILE
    content = _object(path, "", _load_json(folder, path), _KEYS, _OPTIONAL_KEYS)
    # The format comes first: in a file of another kind or version other keys need not make sense.
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
    _object(path, "made_by.", content["made_by"], _MADE_BY_KEYS, others=True)
    shards = _shards(path, content["shards"])
    rows = {split: sum(shard.rows for shard in of_split) for split, of_split in shards.items()}
    _check(path, "rows", content["rows"], content["rows"] == rows, f"the sum over shards, {rows}")
    names = content["classes"] if isinstance(content["classes"], list) else []
    return Meta(
        kind=content["kind"],
        name=content["name"],
        feature_shape=tuple(content["feature_shape"]),
        feature_dtype=content["feature_dtype"],
        feature_description=content["feature_description"],
        classes=tuple(names),
        outputs=len(names) or content["classes"],
        made_by=content["made_by"],
        shards=shards,
        label_counts=_label_counts(path, content, shards),
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
    if folder.name == "digits" and _is_free(folder):
        return f"make it with: python -m ist_hpc.prepare digits --output {quoted(folder)}"
    beside = []
    if folder.parent.is_dir():
        beside = sorted(str(meta.parent) for meta in folder.parent.glob(f"[!.]*/{META_FILE}"))
    found = f" (data sets beside it: {', '.join(beside[:8])})" if beside else ""
    return f"correct the path{found}, or make it: python -m ist_hpc.prepare --help"


def _is_free(folder: Path) -> bool:
    """Whether a data set may be written there, as nothing else is in the way."""
    try:
        return not any(folder.iterdir())
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _object(
    path: Path,
    prefix: str,
    value: object,
    keys: Mapping[str, type],
    optional: Mapping[str, type] = MappingProxyType({}),
    others: bool = False,
) -> dict[str, Any]:
    """`value` as an object that has all `keys` and may have `optional` ones, each of its type.

    It may have others only if allowed. The type `object` means any.
    """
    where = prefix.rstrip(".") or "the file"
    if not isinstance(value, dict):
        raise InputError(f"{path}: `{where}` must be an object (got {_short(value)})")
    allowed = {**keys, **optional}
    unknown = [key for key in value if key not in allowed and not others]
    for key in keys:
        if key not in value:
            near = get_close_matches(key, unknown, n=1)
            hint = f"; is `{prefix}{near[0]}` a misspelling of it?" if near else ""
            raise InputError(f"{path}: key `{prefix}{key}` is missing{hint}")
    for key, kind in allowed.items():
        if key in value and kind is not object:
            # type(), not isinstance(): JSON's true and false are no integers here.
            _check(path, prefix + key, value[key], type(value[key]) is kind, _JSON_NAMES[kind])
    if unknown:
        raise InputError(
            f"{path}: unknown key `{prefix}{unknown[0]}`; allowed: {', '.join(allowed)} "
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
    shape, dtype, kind = content["feature_shape"], content["feature_dtype"], content["kind"]
    good = bool(shape) and all(type(size) is int and size >= 1 for size in shape)
    allowed = "a list of one or more integers >= 1"
    if kind == "sparse":
        good = good and len(shape) == 1 and shape[0] <= MOST_COLUMNS
        allowed = f"a list of one integer, 1 to {MOST_COLUMNS}, in a sparse data set"
    _check(path, "feature_shape", shape, good, allowed)
    dtypes = FEATURE_DTYPES[kind]
    _check(path, "feature_dtype", dtype, dtype in dtypes, " or ".join(dtypes))


def _check_classes(path: Path, classes: object) -> None:
    if isinstance(classes, list):
        good = bool(classes) and all(isinstance(name, str) for name in classes)
        good = good and len(set(classes)) == len(classes)
    else:
        good = type(classes) is int and 1 <= classes <= MOST_COLUMNS
    allowed = f"a list of one or more different strings, or how many there are, 1 to {MOST_COLUMNS}"
    _check(path, "classes", classes, good, allowed)


def _label_counts(
    path: Path, content: Mapping[str, Any], shards: Mapping[str, tuple[Shard, ...]]
) -> SideFile | None:
    if "label_counts" not in content:
        return None
    if content["kind"] != "sparse" or "train" not in shards:
        raise InputError(
            f"{path}: `label_counts` is for sparse data sets with train rows; remove the key"
        )
    prefix = "label_counts."
    side = SideFile(**_object(path, prefix, content["label_counts"], _SIDE_FILE_KEYS))
    _check_file(path, prefix, side.file, side.bytes, side.sha256)
    if any(side.file == shard.file for of_split in shards.values() for shard in of_split):
        raise InputError(f"{path}: `label_counts.file` is {side.file}, which `shards` lists too")
    return side


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
    _check(path, f"{prefix}rows", shard.rows, shard.rows >= 1, ">= 1; an empty shard has no use")
    _check_file(path, prefix, shard.file, shard.bytes, shard.sha256)
    return shard


def _check_file(path: Path, prefix: str, file: str, size_bytes: int, sha256: str) -> None:
    plain = _PLAIN_FILE.fullmatch(file) is not None
    _check(path, f"{prefix}file", file, plain, "a file name such as train-0000.h5")
    _check(path, f"{prefix}bytes", size_bytes, size_bytes >= 1, ">= 1")
    good = _SHA256.fullmatch(sha256) is not None
    _check(path, f"{prefix}sha256", sha256, good, "64 hexadecimal digits (0-9, a-f)")

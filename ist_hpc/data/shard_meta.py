"""The contents of a data set's `meta.json`: its records and its text.

docs/data-format.md describes every key for users; `meta_reading` reads and checks them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ist_hpc.common.disk.files import json_text
from ist_hpc.common.errors import InputError

META_FILE = "meta.json"
FORMAT = "ist_hpc-data"
FORMAT_VERSION = 1
KINDS = ("dense", "sparse")
FEATURE_DTYPES = {"dense": ("float32", "uint8"), "sparse": ("float32",)}
_ITEM_BYTES = {"float32": 4, "uint8": 1}
_ENTRY_BYTES = 8  # in a sparse row on disk; an entry of its labels has 5
_POINTER_BYTES = 16  # of a sparse row, in addition to its entries
MOST_COLUMNS = 2**31 - 1  # in a sparse row, and of unnamed labels: indices are int32
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Shard:
    """One HDF5 file of a split: its name in the folder, rows, size in bytes and SHA-256 (hex)."""

    file: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class SideFile:
    """An HDF5 file beside the shards: its name, size in bytes and SHA-256 (hex)."""

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Schema:
    """The form of a row of a data set.

    kind           "dense": an array of features and one class. "sparse": features and a set of
                   labels, both as the columns that are not zero
    feature_shape  shape of one row; [width] if sparse
    feature_dtype  "float32"; for dense features also "uint8"
    classes        names, () if they have none
    outputs        number of classes or labels, named or not
    """

    kind: str
    feature_shape: tuple[int, ...]
    feature_dtype: str
    feature_description: str
    classes: tuple[str, ...]
    outputs: int

    @property
    def features(self) -> int:
        """Numbers in one row's features, zeros included."""
        return math.prod(self.feature_shape)

    @property
    def sparse(self) -> bool:
        """Whether the kind is "sparse"."""
        return self.kind == "sparse"

    def check(self) -> None:
        """Raise InputError unless a data set can have this form."""
        if self.kind not in KINDS:
            raise InputError(f"kind must be {' or '.join(KINDS)} (got {self.kind})")
        dtypes, shape = FEATURE_DTYPES[self.kind], self.feature_shape
        if self.feature_dtype not in dtypes:
            allowed = " or ".join(dtypes)
            raise InputError(f"feature_dtype must be {allowed} (got {self.feature_dtype})")
        if not shape or min(shape) < 1:
            raise InputError(f"feature_shape must be one or more sizes >= 1 (got {shape})")
        if self.sparse and (len(shape) > 1 or shape[0] > MOST_COLUMNS):
            raise InputError(
                f"feature_shape of a sparse data set must be one size, 1 to {MOST_COLUMNS} "
                f"(got {shape})"
            )
        if not all(isinstance(name, str) for name in self.classes):
            raise InputError("classes must be strings; for numbers, [str(n) for n in ...]")
        if self.outputs < 1 or 0 < len(self.classes) != len(set(self.classes)):
            raise InputError("classes must be one or more different names, or how many there are")
        if self.outputs > MOST_COLUMNS:
            raise InputError(f"classes must be at most {MOST_COLUMNS} (got {self.outputs})")


@dataclass(frozen=True, kw_only=True)
class Meta(Schema):
    """The content of a valid `meta.json`.

    shards        the shards of each split, in row order
    label_counts  the file with the number of train rows per label; sparse sets only
    """

    name: str
    made_by: Mapping[str, Any]
    shards: Mapping[str, tuple[Shard, ...]]
    label_counts: SideFile | None = None

    def row_bytes(self, split: str) -> int:
        """Approximate bytes in memory of a row of `split`, from `meta.json` alone.

        Dense: features as they are stored and an int64 label. Sparse: the average size on disk.
        """
        if not self.sparse:
            return _ITEM_BYTES[self.feature_dtype] * self.features + 8
        shards = self.shards[split]
        return -(-sum(shard.bytes for shard in shards) // sum(shard.rows for shard in shards))

    def window_bytes(self, ranks: int, most_bytes: int) -> int:
        """Maximum of bytes of a rank's window: all its training rows, if they fit."""
        rows = sum(shard.rows for shard in self.shards["train"])
        return min(most_bytes, -(-rows // ranks) * self.row_bytes("train"))

    def row_entries(self, split: str) -> float:
        """Average number of non-zeros in a sparse row of `split`, from its size on disk.

        Somewhat too large, since the bytes of its labels count as those of features.
        """
        return max(1.0, (self.row_bytes(split) - _POINTER_BYTES) / _ENTRY_BYTES)

    def to_json(self) -> str:
        """The text of `meta.json`. Raises TypeError if `made_by` is not JSON."""
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "name": self.name,
            "feature_shape": list(self.feature_shape),
            "feature_dtype": self.feature_dtype,
            "feature_description": self.feature_description,
            "classes": list(self.classes) if self.classes else self.outputs,
            "rows": {split: sum(s.rows for s in shards) for split, shards in self.shards.items()},
            "made_by": dict(self.made_by),
            "shards": {s: [vars(shard) for shard in shards] for s, shards in self.shards.items()},
        }
        if self.label_counts is not None:
            content["label_counts"] = vars(self.label_counts)
        return json_text(content) + "\n"

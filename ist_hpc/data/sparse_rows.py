"""Batches of sparse rows for the networks: features with values, or sets of labels."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ist_hpc.data.csr import Csr

_VALUE_BYTES, _COLUMN_BYTES = 4, 8  # float32 and int64


@dataclass(frozen=True, eq=False)
class SparseRows:
    """A batch of sparse rows, on one device.

    offsets  int64 [rows + 1]: row i has the entries offsets[i] to offsets[i + 1]
    columns  int64 [entries], ascending in a row
    values   float32 [entries]; None if every value is one: sets of labels
    width    columns of the whole matrix
    """

    offsets: Tensor
    columns: Tensor
    values: Tensor | None
    width: int

    @staticmethod
    def of(csr: Csr) -> "SparseRows":
        """The same rows as tensors on the CPU."""
        values = None if csr.values is None else torch.from_numpy(csr.values)
        offsets, columns = torch.from_numpy(csr.indptr), torch.from_numpy(csr.indices)
        return SparseRows(offsets, columns.to(torch.int64), values, csr.columns)

    @staticmethod
    def of_classes(classes: Tensor, width: int) -> "SparseRows":
        """Classes, int64 [rows], as sets of one label."""
        offsets = torch.arange(len(classes) + 1, device=classes.device)
        return SparseRows(offsets, classes, None, width)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.offsets) - 1

    def to(self, device: torch.device, non_blocking: bool = False) -> "SparseRows":
        """The same rows on a device."""

        def there(part: Tensor) -> Tensor:
            return part.to(device, non_blocking=non_blocking)

        values = None if self.values is None else there(self.values)
        return SparseRows(there(self.offsets), there(self.columns), values, self.width)

    @cached_property
    def counts(self) -> Tensor:
        """The number of entries in each row; int64 [rows]."""
        return self.offsets.diff()

    @cached_property
    def row_of_entry(self) -> Tensor:
        """The row of each entry; int64 [entries]."""
        rows = torch.arange(len(self), device=self.columns.device)
        return torch.repeat_interleave(rows, self.counts, output_size=len(self.columns))


Rows = Tensor | SparseRows
"""Features: float32 [rows, width], or sparse. Labels: one class per row, int64 [rows], or sets."""

Batch = tuple[Rows, Rows]
"""(features, labels)."""


def rows_bytes(rows: int, width: int, entries: float | None) -> int:
    """Approximate bytes of the features of `rows` rows, before any are allocated.

    width    numbers in a dense row
    entries  average number in a sparse row, a column and a value each; None for dense rows
    """
    of_row = width * _VALUE_BYTES if entries is None else entries * (_COLUMN_BYTES + _VALUE_BYTES)
    return round(rows * of_row)


def to_device(rows: Rows, device: torch.device) -> Rows:
    """The batch on the device; itself if already there. Does not wait for the GPU's work so far."""
    return rows.to(device, non_blocking=True)

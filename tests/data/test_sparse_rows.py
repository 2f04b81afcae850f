"""What rows take in memory."""

import numpy as np
import torch

from ist_hpc.data.csr import Csr
from ist_hpc.data.dense import DenseStore
from ist_hpc.data.sparse_rows import SparseRows, rows_bytes


def test_bytes_of_dense_rows_are_those_of_their_features():
    for dtype in (np.float32, np.uint8):
        stored = np.ones((7, 3, 4), dtype=dtype), np.zeros(7, dtype=np.int64)
        assert rows_bytes(7, 12, None) == DenseStore.batch([stored])[0].nbytes


def test_bytes_of_sparse_rows_are_those_of_their_entries():
    indptr, indices = np.arange(0, 21, 5), np.tile(np.arange(5, dtype=np.int32), 4)
    rows = SparseRows.of(Csr(indptr, indices, np.ones(20, dtype=np.float32), 9))
    assert isinstance(rows.values, torch.Tensor)
    assert rows_bytes(4, 9, 5.0) == rows.columns.nbytes + rows.values.nbytes

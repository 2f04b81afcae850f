"""HDF5 files on a disk that fills up: complete, or an OSError."""

import subprocess
import sys

import numpy as np
import pytest

from ist_hpc.common.disk.hdf5_writing import written

# A limit of a file's size is refused by the system as a full disk is, byte by byte.
_WRITE = """
import errno, resource, sys
from pathlib import Path
import h5py, numpy as np
from ist_hpc.common.disk.hdf5_writing import written
path, first, step, count = Path(sys.argv[1]), *map(int, sys.argv[2:])
for limit in range(first, first + step * count, step):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        with written(path) as file:
            file.attrs["made"] = "by a test"
            for i in range(5):
                values = np.full(30_000, i + 1.0, np.float32)
                file.create_dataset(f"parameters/{i}", data=values, chunks=(4096,), fletcher32=True)
                file.create_dataset(f"statistics/{i}", data=np.ones(7))
    except OSError as error:
        assert (error.errno, error.filename) == (errno.EFBIG, str(path)), error
        print("refused")
        continue
    with h5py.File(path) as file:
        assert all((file[f"parameters/{i}"][:] == i + 1).all() for i in range(5))
    print("written")
"""


@pytest.mark.parametrize(
    ("first", "step", "count"),
    [(0, 11_111, 70), (655_000, 250, 120)],
    ids=["all sizes", "the last bytes"],
)
def test_what_is_refused_is_an_error_that_names_the_file(tmp_path, first, step, count):
    words = [sys.executable, "-c", _WRITE, tmp_path / "a.h5", *map(str, (first, step, count))]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    outcomes = done.stdout.split()
    assert len(outcomes) == count
    assert outcomes == sorted(outcomes)  # from some size on all of it fits
    assert set(outcomes) == {"refused", "written"}


def test_an_error_of_the_caller_is_not_hidden(tmp_path):
    with pytest.raises(ZeroDivisionError), written(tmp_path / "a.h5") as file:
        file.create_dataset("x", data=np.arange(1 / 0))

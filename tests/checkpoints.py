"""Comparing checkpoints as anyone can who has h5py, without the package."""

from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt


def newest(run: Path) -> Path:
    """The newest checkpoint of a run."""
    return max((run / "checkpoints").glob("round-*"))


def tensors(folder: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Every dataset of a checkpoint in whole."""
    found: dict[str, npt.NDArray[np.float32]] = {}
    with h5py.File(folder / "checkpoint.h5") as file:

        def keep(key: str, item: h5py.HLObject) -> None:
            if isinstance(item, h5py.Dataset):
                found[key] = item[()]

        file.visititems(keep)
    return found


def same_tensors(one: Path, other: Path) -> bool:
    """Whether two checkpoints have the same tensors, to the last bit."""
    first, second = tensors(one), tensors(other)
    assert first
    assert first.keys() == second.keys()
    return all(
        np.array_equal(values.view(np.int32), second[key].view(np.int32))
        for key, values in first.items()
    )

"""Comparing checkpoints as anyone can who has h5py, without the package."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt


def newest(run: Path) -> Path:
    """The newest checkpoint of a run."""
    return max((run / "checkpoints").glob("round-*"))


def as_if_killed(run: Path, copy: Path, rounds: int) -> None:
    """A copy of a finished run as if it had been killed with a checkpoint of so many rounds.

    The rounds after it are in the metrics already, as they are when a run is killed.
    """
    shutil.copytree(run, copy)
    for checkpoint in sorted((copy / "checkpoints").iterdir()):
        if checkpoint.name > f"round-{rounds:08d}":
            shutil.rmtree(checkpoint)
    assert newest(copy).name == f"round-{rounds:08d}"
    (copy / "summary.json").unlink()
    (copy / "STATUS").write_text("running\n", encoding="utf-8")


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

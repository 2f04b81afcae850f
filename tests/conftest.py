"""What tests of several files share: a small run that was trained once."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

from tests.helpers.launching import run_ranks

# The same examples each time: a change is judged by what it changes. `make fuzz` searches on.
settings.register_profile("repeatable", derandomize=True)
settings.register_profile("search", max_examples=3000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture(scope="module")
def own_hosts(worker_id: str) -> Iterator[None]:
    """What `bench/hosts.sh` makes are hosts of this worker's own: others may have theirs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOSTS_NAME", f"tests-{worker_id}")
        yield


_FIRST = (
    *(
        "tests/slurm/test_slurm.py",
        "tests/checkpoint/test_save_faults.py",
        "tests/runtime/test_stopping.py",
    ),
    *(
        "tests/bench/test_gpu_kit.py",
        "tests/setup/test_wheelhouse.py",
        "tests/training/test_faults.py",
    ),
    *(
        "tests/training/test_divergence.py",
        "tests/commands/test_evaluate.py",
        "tests/commands/test_train.py",
    ),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first, so that no worker is left alone with it at the end."""

    def place(item: pytest.Item) -> int:
        found = [i for i, name in enumerate(_FIRST) if item.nodeid.startswith(name)]
        return found[0] if found else len(_FIRST)

    items.sort(key=place)


@dataclass(frozen=True)
class TrainedRun:
    """A finished run on the digits; tests that change files work on a copy.

    data        folder of shards: 64 features, 10 classes, 359 test rows
    folder      the run's folder
    checkpoint  the folder of its newest checkpoint, written by 2 ranks after 4 rounds
    """

    data: Path
    folder: Path
    checkpoint: Path


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> TrainedRun:
    """A perceptron of odd widths, 24 and 17, trained for 4 rounds with momentum on 2 ranks."""
    from ist_hpc.prepare.digits import prepare_digits

    place = tmp_path_factory.mktemp("trained")
    prepare_digits(place / "digits")
    train(place, "small", "optimizer.momentum=0.9")
    folder = place / "runs" / "small"
    return TrainedRun(place / "digits", folder, folder / "checkpoints" / "round-00000004")


@pytest.fixture
def place(trained: TrainedRun, tmp_path: Path) -> Path:
    """A folder with the digits, to train and to spoil in."""
    shutil.copytree(trained.data, tmp_path / "digits")
    return tmp_path


def train(place: Path, name: str, *settings: str, ranks: int = 2) -> None:
    """Train on `place`/digits; the quickstart's configuration, smaller."""
    small = ["data.path=digits", "model.hidden=[24,17]", "train.rounds=4", "optimizer.lr=0.05"]
    arguments = ["-m", "ist_hpc.train", "--name", name, "--set", *small, *settings]
    run_ranks(ranks, arguments, cwd=place)

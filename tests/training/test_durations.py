"""Warnings of rounds and checkpoints that take longer than the limits of a run allow."""

import logging

import pytest

from ist_hpc.config.keys import RuntimeConfig
from ist_hpc.exchange.placement import TensorSpec
from ist_hpc.training.durations import Durations, assumed_checkpoint_s


@pytest.fixture
def warnings(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("ist_hpc"), "propagate", True)
    return caplog


def durations(rank: int = 0, checkpoint_s: float = 1.0, **limits: float) -> Durations:
    return Durations(checkpoint_s, RuntimeConfig(**limits), rank)


def test_a_checkpoint_is_first_guessed_from_its_size():
    specs = [TensorSpec("fc.weight", (1000, 500), ("hidden", None))] * 2
    assert assumed_checkpoint_s(specs, ranks=4) == pytest.approx(0.02)


def test_what_fits_is_not_mentioned(warnings):
    found = durations(lead_time_s=60, silence_s=60)
    found.add_round(40)
    found.add_checkpoint(20)
    assert warnings.messages == []


def test_a_round_and_a_checkpoint_must_fit_into_the_lead_time(warnings):
    found = durations(lead_time_s=60, silence_s=600)
    found.add_round(50)
    found.add_round(10)
    found.add_checkpoint(20)
    found.add_checkpoint(90)
    (warning,) = warnings.messages
    assert warning.startswith("a round takes 50 s and a checkpoint about 20 s, but the warning")
    assert "only 60 s before the kill" in warning


def test_no_lead_time_is_no_limit(warnings):
    durations(lead_time_s=0, silence_s=600).add_round(1e6)
    assert warnings.messages == []


def test_a_checkpoint_must_take_less_than_half_the_time_of_silence(warnings):
    found = durations(lead_time_s=0, silence_s=10)
    found.add_checkpoint(5)
    found.add_checkpoint(6)
    found.add_checkpoint(7)
    (warning,) = warnings.messages
    assert warning.startswith("a checkpoint takes about 6 s; a rank that is silent for 10 s")


def test_a_guess_warns_with_the_first_round(warnings):
    durations(checkpoint_s=400, lead_time_s=0, silence_s=600).add_round(1)
    assert len(warnings.messages) == 1


def test_only_rank_0_warns(warnings):
    found = durations(rank=1, lead_time_s=1, silence_s=10)
    found.add_round(50)
    found.add_checkpoint(50)
    assert warnings.messages == []

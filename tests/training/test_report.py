"""The rows and the summary of a run, made from readings of the meters."""

from types import SimpleNamespace

import numpy as np
import pytest

from ist_hpc.checkpoint.read import Progress
from ist_hpc.config import loading
from ist_hpc.runtime.meters import KINDS, Reading
from ist_hpc.runtime.run_folder.folder import RunFolder
from ist_hpc.training.report import Report
from ist_hpc.training.schedule import Schedule

PROGRESS = Progress(round=3, steps=15, samples=250, ranks=2, best=0.75)


def reading(seconds: float = 1.0) -> Reading:
    """Of two ranks, each of which spent so many seconds on every kind."""
    rank = [*[seconds] * len(KINDS), 6.0, 4, 100, 200, 300.0, 50.0, 7.0, 0.0, 0.0]
    return Reading(np.array([rank, rank]))


def comm(rank: int) -> SimpleNamespace:
    return SimpleNamespace(Get_rank=lambda: rank, Get_size=lambda: 2, bcast=lambda own: own)


@pytest.fixture
def folder(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.create(resume=False)
    return run


@pytest.fixture
def schedule():
    return Schedule(loading.load(None), train_rows=100, ranks=2)


POSITION = {"round": 3, "steps": 15, "samples": 250, "epoch": 2.5}
SPENT = {"seconds": dict.fromkeys(KINDS, 1.0), "bytes_sent": 200, "bytes_received": 400}
SPENT["bytes_averaged"] = 600


def test_rows_say_where_the_run_is_and_what_was_spent(folder, schedule):
    report = Report(comm(0), folder, schedule, on_gpu=False)
    done = report.add_round(PROGRESS, reading(), lr=0.1, given_up=False)
    skipped = report.add_round(PROGRESS, reading(), lr=0.1, given_up=True)
    saved = report.add_visit(PROGRESS, reading(), test=None)
    tested = report.add_visit(PROGRESS, reading(), test={"accuracy": 0.5}, test_rows=90)
    assert done == {"kind": "round", **POSITION, "loss": 1.5, "lr": 0.1, **SPENT}
    assert skipped == done | {"skipped": True}
    assert saved == {"kind": "save", **POSITION, **SPENT, "peak_rss_mib": [50.0, 50.0]}
    found = {"test": {"accuracy": 0.5}, "test_rows": 90}
    assert tested == saved | {"kind": "evaluation", **found}
    assert list(folder.metrics.rows()) == [done, skipped, saved, tested]


def test_the_summary_counts_earlier_starts_and_each_reading_once(folder, schedule):
    Report(comm(0), folder, schedule, on_gpu=True).add_round(PROGRESS, reading(8.0), 0.1, False)
    report = Report(comm(0), folder, schedule, on_gpu=True)
    report.add_round(PROGRESS, reading(), lr=0.1, given_up=False)
    report.add_visit(PROGRESS, reading(), test=None)
    summary = report.write_summary(
        PROGRESS,
        reading(),
        algorithm="ist",
        test={"accuracy": 0.5},
        metric="accuracy",
        wall_s=1.23456,
        saved=folder.checkpoints / "round-00000003",
    )
    assert summary["seconds"] == dict.fromkeys(KINDS, 11.0)
    assert summary["bytes"] == {"sent": 800, "received": 1600, "averaged": 2400}
    assert summary["epochs"] == 2.5
    assert summary["best"] == {"accuracy": 0.75}
    assert summary["wall_s_of_last_start"] == 1.235
    assert summary["peak_gpu_mib"] == [7.0, 7.0]
    assert (folder.path / "summary.json").is_file()


def test_only_rank_0_writes(folder, schedule):
    ranks = comm(1)
    ranks.bcast = lambda own: folder.metrics.totals()
    report = Report(ranks, folder, schedule, on_gpu=False)
    assert report.add_round(PROGRESS, reading(), lr=0.1, given_up=False)["round"] == 3
    assert list(folder.metrics.rows()) == []

"""`show RUN`: a run's state in a screen, from its files alone."""

import fcntl
import json
import shutil
import time

import pytest

from ist_hpc import show
from ist_hpc.checkpoint import run_facts
from ist_hpc.checkpoint.run_facts import describe_run


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained.folder, tmp_path / "run")


def facts(run, now_s=None):
    """What is shown, by its name."""
    first, *lines = describe_run(run, now_s)
    assert first == str(run)
    return {line[2:12].strip(): line[13:] for line in lines}


def test_a_finished_run_in_a_screen(run, capsys):
    shown = facts(run)
    assert shown["status"] == "finished"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    last = [row for row in rows if row["kind"] == "round"][-1]
    assert f"round {last['round']}" in shown["progress"]
    best = max(row["test"]["accuracy"] for row in rows if "test" in row)
    assert f"{best:.4f}" in " ".join(shown.values())
    assert "round-00000004" in shown["saved"]
    assert show.main([str(run)]) == 0
    assert len(capsys.readouterr().out.splitlines()) <= 24


@pytest.mark.parametrize("status", ["starting", "running"])
def test_a_run_that_was_killed_says_so(run, status):
    (run / "STATUS").write_text(f"{status}\n", encoding="utf-8")
    assert facts(run)["status"].startswith("ended without a word: killed")


def test_a_run_that_runs_says_who_it_is(run):
    (run / "STATUS").write_text("running\n", encoding="utf-8")
    with (run / ".lock").open("w+", encoding="utf-8") as lock:
        lock.write("process 1 on node7\n")
        lock.flush()
        held_by_another(lock)
        assert "process 1 on node7" in facts(run, time.time() + 60)["status"]


def held_by_another(lock):
    """POSIX locks do not keep their own process out, so a child holds it for the test."""
    import os

    ready, told = os.pipe()
    if not os.fork():
        fcntl.lockf(lock, fcntl.LOCK_EX)
        os.write(told, b"x")
        time.sleep(5)
        os._exit(0)
    os.read(ready, 1)


def test_a_row_that_is_being_written_is_left_out(run):
    whole = facts(run, 0.0)
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
        metrics.write('{"kind": "round", "round": 99, "st')
    assert facts(run, 0.0)["progress"] == whole["progress"]


def test_a_run_json_that_cannot_be_read_is_one_line(run, capsys):
    (run / "run.json").write_text('{"starts": 3}', encoding="utf-8")
    assert show.main([str(run)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "run.json" in line


def test_a_checkpoint_that_the_run_removes_meanwhile_is_left_out(run, monkeypatch):
    listed = [run / "checkpoints" / "round-00000009", run / "checkpoints" / "round-00000004"]
    monkeypatch.setattr(run_facts, "newest_first", lambda checkpoints: listed)
    saved = facts(run)["saved"]
    assert "round-00000004" in saved
    assert "round-00000009" not in saved

"""What a run folder's STATUS says at the end."""

import signal
from pathlib import Path

import pytest

from ist_hpc.runtime.launch import AgreedInputError, AgreedRunError
from ist_hpc.runtime.run_folder.folder import RunFolder
from ist_hpc.runtime.run_folder.outcome import record_failure, record_stop


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """That this process is in."""
    made = RunFolder(tmp_path / "one")
    made.create(resume=False)
    made.lock()
    made.start = made.lock_line
    made.set_status("running")
    return made


@pytest.mark.parametrize(
    ("is_saved", "or_beside", "status", "advice"),
    [
        (True, False, "saved after round 3", "the same command with --resume goes on"),
        (False, False, "before its first round", "the same command with --resume goes on"),
        (True, True, "saved after round 3", "the same command with --resume --name one goes on"),
    ],
)
def test_a_stop_says_what_goes_on(folder, capsys, is_saved, or_beside, status, advice):
    folder.or_beside = or_beside
    record_stop(folder, signal.SIGUSR1, 3, is_saved)
    assert folder.status() == f"stopped: SIGUSR1, {status}"
    assert capsys.readouterr().err.endswith(f"train: stopped: SIGUSR1, {status}; {advice}\n")


@pytest.mark.parametrize(
    ("rank", "error", "status"),
    [
        (0, AgreedRunError("a loss\n is not finite"), "failed: a loss is not finite"),
        (1, AgreedRunError("a loss is not finite"), "running"),
        (1, AgreedInputError("no rows"), "running"),
        (0, KeyboardInterrupt("interrupted twice"), "stopped: interrupted twice"),
        (2, MemoryError(), "failed: rank 2: MemoryError"),
    ],
)
def test_an_error_of_all_ranks_is_written_by_rank_0(folder, rank, error, status):
    record_failure(folder, rank, error)
    assert folder.status() == status


def test_the_signal_of_a_launcher_hides_no_failure(folder):
    record_failure(folder, 1, ValueError("a bug"))
    record_failure(folder, 0, KeyboardInterrupt("SIGTERM"))
    assert folder.status() == "failed: rank 1: a bug"


def test_a_start_that_is_not_in_the_folder_writes_nothing(folder):
    folder.start = ""
    record_failure(folder, 0, AgreedRunError("late"))
    assert folder.status() == "running"

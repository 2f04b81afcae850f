"""One run on a real Slurm cluster through all that ends a job."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.helpers import slurm_cluster as slurm
from tests.helpers.checkpoints import newest, same_tensors
from tests.helpers.job_site import (
    AMAZON_CPU,
)
from tests.helpers.launching import ROOT
from tests.helpers.slurm_cluster import HOSTS, NODES, ONE_A_NODE, SMALL

pytestmark = pytest.mark.long


class TestFaults:
    """One run through all that ends a job: each ends as docs/reliability.md says, in its bound.

    Each job goes on where the one before it was ended; at last the run is compared with one that
    nothing interrupted.
    """

    LONG = (
        *("--set", *SMALL, "train.epochs=null", "train.rounds=100000", "train.local_steps=5"),
        *("evaluate.every_epochs=0", "checkpoint.every_rounds=10"),
    )

    def test_a_run_goes_on_through_all_of_them(self, healed, shards, tmp_path):
        self.folder, self.shards = tmp_path, shards
        self.the_time_is_over_and_the_job_queues_itself_again()
        self.scancel_leaves_it_saved()
        self.it_is_queued_again_a_bounded_number_of_times()
        self.a_rank_is_killed_in_training()
        self.a_rank_is_killed_in_an_exchange()
        self.a_rank_is_killed_in_a_save()
        self.a_node_is_cut_off()

        goal = self.newest() // 10 * 10 + 10
        slurm.end(tmp_path, self.submit(f"train.rounds={goal}"))
        whole = tmp_path / "whole"
        whole.mkdir()
        words = [*self.LONG, f"train.rounds={goal}"]
        slurm.end(whole, slurm.submit(AMAZON_CPU, whole, *words, DATA=str(shards)))
        assert newest(whole / "runs/small").name == f"round-{goal:08d}"
        assert same_tensors(newest(tmp_path / "runs/small"), newest(whole / "runs/small"))
        assert slurm.rounds(tmp_path) == list(range(1, goal + 1))

    def submit(self, *more: str, fresh: bool = False, **settings: str) -> str:
        """Submit the run over all nodes, begun or gone on with."""
        ours = {"DATA": str(self.shards), **settings}
        return slurm.submit(AMAZON_CPU, self.folder, *self.LONG, *more, fresh=fresh, **ours)

    def started(self, *more: str, fresh: bool = False, **settings: str) -> str:
        """A job that has trained some rounds beyond the newest checkpoint."""
        reached, job = self.newest() + 15, self.submit(*more, fresh=fresh, **settings)
        slurm.wait_until(lambda: max(slurm.rounds(self.folder), default=0) > reached)
        return job

    def newest(self) -> int:
        """The round of the newest checkpoint."""
        found = (self.folder / "runs/small/checkpoints").glob("round-*")
        return max((int(path.name.removeprefix("round-")) for path in found), default=0)

    def before(self) -> str:
        """How the run ended before its last start."""
        return str(slurm.starts(self.folder)[-1]["before"])

    def the_time_is_over_and_the_job_queues_itself_again(self) -> None:
        """The warning is Slurm's own, half a minute after each start.

        By the time that this sees it, the next start may have trained, saved and been warned, too.
        """
        options = [*ONE_A_NODE, f"--nodes={NODES}", "--time=1", "--signal=B:USR1@30"]
        data = str(self.shards)
        job = slurm.submit(AMAZON_CPU, self.folder, *self.LONG, options=options, DATA=data)
        printed = self.folder / f"{job}.out"
        slurm.wait_until(lambda: slurm.rounds(self.folder))
        with slurm.within(60, "the time limit (1 minute): saved and requeued"):
            slurm.wait_until(
                lambda: "the time is over and the run saved" in printed.read_text(), 60
            )
        slurm.wait_until(lambda: len(slurm.starts(self.folder)) >= 2)
        again = slurm.starts(self.folder)[1]
        saved = re.fullmatch(r"stopped: SIGUSR1, saved after round (\d+)", str(again["before"]))
        assert saved
        # more than once where a start takes longer than the warning leaves it
        assert int(again["slurm"]["SLURM_RESTART_COUNT"]) >= 1
        slurm.wait_until(lambda: f"from round {saved[1]}" in printed.read_text())
        slurm.wait_until(lambda: slurm.status(self.folder) == "running", 60)
        slurm.on_h1("scancel", job)
        slurm.end(self.folder, job, "CANCELLED")

    def scancel_leaves_it_saved(self) -> None:
        job = self.started()
        with slurm.within(60, "scancel: saved and ended"):
            slurm.on_h1("scancel", job)
            slurm.end(self.folder, job, "CANCELLED")
        assert slurm.status(self.folder) == f"stopped: SIGTERM, saved after round {self.newest()}"

    def it_is_queued_again_a_bounded_number_of_times(self) -> None:
        job = self.started(MAX_REQUEUES="0")
        assert self.before().startswith("stopped: SIGTERM, saved after round")
        slurm.on_h1("scancel", "--batch", "--signal=USR1", job)
        assert "requeued 0 times already" in slurm.end(self.folder, job, "FAILED")
        assert slurm.status(self.folder) == f"stopped: SIGUSR1, saved after round {self.newest()}"

    def a_rank_is_killed_in_training(self) -> None:
        job = self.started(fresh=True)
        with slurm.within(60, "a rank killed in training: job ended"):
            subprocess.run(["kill", "-9", _rank_process(self.folder, 2)], check=True)
            slurm.end(self.folder, job, "FAILED")
        assert slurm.status(self.folder) == "running"

    def a_rank_is_killed_in_an_exchange(self) -> None:
        saved = self.newest()
        self.kill_in("exchange")
        assert "ended without a word" in self.before()
        assert saved <= self.newest() <= max(slurm.rounds(self.folder))

    def a_rank_is_killed_in_a_save(self) -> None:
        """In the second save of a start: the first is what it leaves."""
        first = self.newest() // 10 * 10 + 10
        self.kill_in("save")
        assert max(slurm.rounds(self.folder)) == first + 10
        assert self.newest() == first

    def kill_in(self, moment: str) -> None:
        site = self.folder / "site"
        site.mkdir(exist_ok=True)
        (site / "sitecustomize.py").write_text(
            "from tests.helpers.killing import in_a_slurm_step\nin_a_slurm_step()\n",
            encoding="utf-8",
        )
        ours = {"PYTHONPATH": f"{site}:{ROOT}", "KILL_RANK": "2", "KILL_IN": moment}
        starts, reached = len(slurm.starts(self.folder)), self.newest() + 10
        job = self.submit(fresh=True, **ours)  # forks have read their site's settings before
        slurm.wait_until(lambda: len(slurm.starts(self.folder)) > starts)
        slurm.wait_until(lambda: max(slurm.rounds(self.folder)) > reached)
        with slurm.within(60, f"a rank killed in {moment}: job ended"):
            slurm.end(self.folder, job, "FAILED")
        assert "Killed" in (self.folder / f"{job}.out").read_text(encoding="utf-8")

    def a_node_is_cut_off(self) -> None:
        """Slurm hears of it later (SlurmdTimeout): the survivors end after the time of silence."""
        job = self.started("runtime.silence_s=8")
        survivors = [_rank_process(self.folder, rank) for rank in (0, 1, 3)]
        with slurm.within(30, "a node cut off, silence_s 8: survivors ended"):
            subprocess.run([HOSTS, "cut", "h3"], check=True, timeout=20)
            slurm.wait_until(lambda: not any(map(_is_alive, survivors)), 40)
        assert slurm.status(self.folder).startswith("failed: rank")
        printed = self.folder / f"{job}.out"
        said = re.compile(r"train: failed: rank \d of 4 on h[124] has made no progress in")
        slurm.wait_until(lambda: said.search(printed.read_text(encoding="utf-8")), 30)
        with slurm.within(60, "the same: Slurm has ended the job, the node is still away"):
            slurm.wait_until(lambda: slurm.state(job) not in ("RUNNING", "COMPLETING"), 60)
        subprocess.run([HOSTS, "heal", "h3"], check=True, timeout=20)
        slurm.on_h1("scancel", job, check=False)  # Slurm may have queued it again itself
        slurm.wait_until(slurm.every_node_is_idle)


def _is_alive(process: str) -> bool:
    """Whether it still computes or waits; a zombie does not."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def _rank_process(folder: Path, rank: int) -> str:
    """The process of a rank of the run in `folder`."""
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            words = environ.read_bytes().split(b"\0")
            command = (environ.parent / "cmdline").read_bytes()
        except OSError:
            continue
        of_rank = f"SLURM_PROCID={rank}".encode() in words
        if of_rank and str(folder).encode() in command and b"ist_hpc.train" in command:
            name = (environ.parent / "comm").read_text().strip()
            if name.startswith("python"):
                return environ.parent.name
    raise AssertionError(f"no process of rank {rank}")

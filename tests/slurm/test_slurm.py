"""The batch templates on a real Slurm cluster: one machine's network namespaces are its nodes."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
import wave
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.checkpoints import newest, same_tensors
from tests.helpers.job_site import (
    AMAZON,
    AMAZON_CPU,
    RESIST,
    SCALING,
    SPEECH,
    TEMPLATE_PATHS,
    VGG11,
)
from tests.helpers.launching import ROOT

pytestmark = pytest.mark.long

HOSTS = str(ROOT / "bench" / "hosts.sh")
NODES = 4

_DAEMONS = ("slurmctld", "slurmd", "munged", "ip", "tc")
_LIMIT_S = 120.0
_GPUS_LEFT_OUT = ["--gpus-per-node=0"]
_ONE_A_NODE = ["--ntasks-per-node=1", "--cpus-per-task=1", "--mem=1500M"]
_SMALL = ["model.inputs=null", "model.outputs=null", "model.hidden=[32]"]
_SMALL += ["data.batch_size=32", "data.verify=false"]


@pytest.fixture(scope="module")
def cluster(own_hosts: None) -> Iterator[None]:
    """Four nodes, h1 to h4, of a Slurm cluster of their own."""
    missing = [name for name in _DAEMONS if not shutil.which(name)]
    if os.geteuid() != 0 or missing:
        pytest.skip(
            "a Slurm cluster needs root, iproute2 (ip, tc), slurm-wlm, munge and libpmix-dev; "
            f"missing: {', '.join(missing) or 'root'}"
        )
    subprocess.run([HOSTS, "up", str(NODES), "1gbit"], check=True, timeout=60)
    try:
        subprocess.run([HOSTS, "slurm"], check=True, timeout=60)
        _wait_until(_every_node_is_idle, _LIMIT_S)  # hosts.sh waits for one only
        yield
    finally:
        subprocess.run([HOSTS, "down"], check=True, timeout=90)


@pytest.fixture
def healed(cluster: None) -> Iterator[None]:
    """The cluster, whose nodes are brought back after the test."""
    yield
    for number in range(1, NODES + 1):
        subprocess.run([HOSTS, "heal", f"h{number}"], check=True, timeout=20)
    _wait_until(_every_node_is_idle, _LIMIT_S)


def _every_node_is_idle() -> bool:
    return _on_h1("sinfo", "-h", "-N", "-o", "%t").split() == ["idle"] * NODES


def _on_h1(*command: str, check: bool = True, **settings: str) -> str:
    # PMIX_MCA_psec: Open MPI's wheel has no munge in its PMIx, and would say so on every rank
    ours = {"PMIX_MCA_psec": "native", "VENV": sys.prefix, "OMPI_ALLOW_RUN_AS_ROOT": "1"}
    ours["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
    environment = {**os.environ, **ours, **settings}
    done = subprocess.run(
        [HOSTS, "on", "h1", *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0 or not check, done.stderr
    return done.stdout + (done.stderr if not check else "")


def _wait_until(is_so: Callable[[], object], limit_s: float) -> None:
    end_s = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < end_s, f"not within {limit_s:g} s"
        time.sleep(0.2)


def _submit(
    template: Path,
    folder: Path,
    *arguments: str,
    options: Sequence[str] = (*_ONE_A_NODE, f"--nodes={NODES}"),
    **settings: str,
) -> str:
    """Submit a template with its data and runs in `folder`; the job's number."""
    ours = {
        "DEVICE": "cpu",
        "DATA": str(folder / "data"),
        "RUNS": str(folder / "runs"),
        "NAME": "small",
    }
    gpus = _GPUS_LEFT_OUT if "--gpus" in template.read_text(encoding="utf-8") else []
    words = [*gpus, *options, f"--output={folder}/%j.out", str(template), *arguments]
    return _on_h1("sbatch", "--parsable", *words, **{**ours, **settings}).strip()


def _state(job: str) -> str:
    found = re.search(r"JobState=(\w+)", _on_h1("scontrol", "show", "job", job))
    assert found is not None
    return found[1]


def _end(folder: Path, job: str, state: str = "COMPLETED") -> str:
    """Wait for the end of a job, which must be in this state; what it printed."""
    _wait_until(lambda: _state(job) not in ("PENDING", "RUNNING", "COMPLETING"), _LIMIT_S)
    printed = (folder / f"{job}.out").read_text(encoding="utf-8")
    assert _state(job) == state, printed
    return printed


def _rounds(folder: Path) -> list[int]:
    path = folder / "runs/small/metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [row["round"] for row in map(json.loads, lines) if row["kind"] == "round"]


def _starts(folder: Path) -> list[dict[str, object]]:
    run = folder / "runs/small/run.json"
    starts: list[dict[str, object]] = json.loads(run.read_text(encoding="utf-8"))["starts"]
    return starts


def _status(folder: Path, name: str = "small") -> str:
    return (folder / f"runs/{name}/STATUS").read_text(encoding="utf-8").strip()


def _write_text(folder: Path) -> str:
    """Rows in the repository's format whose labels can be read off their features."""
    folder.mkdir()
    for split, rows, seed in (("train", 2000, 1), ("test", 200, 2)):
        random = np.random.default_rng(seed)
        lines = [f"{rows} 90 40"]
        for _ in range(rows):
            labels = sorted(random.choice(40, 2, replace=False).tolist())
            features = [*labels, *(label + 40 for label in labels)]
            values = random.uniform(0.5, 1, len(features))
            pairs = sorted(zip(features, values, strict=True))
            words = " ".join(f"{f}:{v:.4f}" for f, v in pairs)
            lines.append(f"{','.join(map(str, labels))} {words}")
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder)


@pytest.fixture(scope="module")
def shards(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made data of Amazon-670k's kind, as shards."""
    folder = tmp_path_factory.mktemp("slurm")
    text = _write_text(folder / "text")
    words = ["prepare", "xmc", "--train", f"{text}/train.txt", "--test", f"{text}/test.txt"]
    words[0] = "ist_hpc.prepare"
    subprocess.run(
        [sys.executable, "-m", *words, "--output", folder / "data"],
        check=True,
        timeout=60,
        capture_output=True,
    )
    return folder / "data"


@pytest.mark.parametrize("template", TEMPLATE_PATHS, ids=lambda path: path.name)
def test_slurm_would_take_the_template(cluster, template):
    gpus = _GPUS_LEFT_OUT if "--gpus" in template.read_text(encoding="utf-8") else []
    small = [*gpus, f"--nodes={NODES}", "--cpus-per-task=1", "--mem=4G"]
    assert "to start at" in _on_h1("sbatch", "--test-only", *small, str(template), check=False)
    too_many = [*gpus, f"--nodes={NODES + 1}"]
    assert "not available" in _on_h1("sbatch", "--test-only", *too_many, str(template), check=False)


def test_submit_checks_and_queues(cluster, shards, tmp_path):
    words = ["--nodes=2", *_ONE_A_NODE, f"--output={tmp_path}/%j.out", "--parsable", "--"]
    ours = {"DATA": str(shards), "RUNS": str(tmp_path / "runs"), "NAME": "small"}
    printed = _on_h1(
        *("slurm/submit.sh", "--template", "slurm/amazon670k_cpu.sbatch"),
        *("configs/amazon670k.yaml", *words, "--set", *_SMALL, "train.rounds=1"),
        **ours,
    )
    assert "2 ranks" in printed
    assert "2 rank(s)" in _end(tmp_path, printed.split()[-1])


def test_from_text_to_a_finished_run_over_all_nodes_and_on(cluster, tmp_path):
    text = _write_text(tmp_path / "text")
    options = [*_ONE_A_NODE, f"--nodes={NODES}"]
    job = _submit(
        *(AMAZON_CPU, tmp_path, "--set", *_SMALL, "train.rounds=2"), TEXT=text, options=options
    )
    printed = _end(tmp_path, job)
    assert "2000 train and 200 test rows" in printed  # of the conversion
    assert "memory of a rank at its peak" in printed  # of the plan
    assert f"{NODES} rank(s)" in printed
    assert "ist_hpc " in printed  # of the versions
    assert _status(tmp_path) == "finished"
    assert newest(tmp_path / "runs/small").name == "round-00000002"
    assert _starts(tmp_path)[0]["slurm"]["SLURM_JOB_ID"] == job

    shutil.rmtree(tmp_path / "text")  # the shards are there: no text is needed any more
    job = _submit(AMAZON_CPU, tmp_path, "--set", *_SMALL, "train.rounds=4", options=options)
    assert "from round 2" in _end(tmp_path, job)
    assert len(_starts(tmp_path)) == 2
    assert _rounds(tmp_path) == [1, 2, 3, 4]


@pytest.mark.parametrize("launcher", ["srun", "mpirun"])
def test_the_gpu_template_on_nodes_without(cluster, shards, tmp_path, launcher):
    options = ["--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1", "--mem=3G"]
    words = ["--set", *_SMALL, "train.rounds=2"]
    ours = {"DATA": str(shards), "LAUNCHER": launcher}
    job = _submit(AMAZON, tmp_path, *words, options=options, **ours)
    assert "4 rank(s)" in _end(tmp_path, job)
    assert _status(tmp_path) == "finished"


def test_vgg11_and_resist_from_images_to_finished_runs(cluster, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    random = np.random.default_rng(0)
    for split, rows in (("train", 60), ("test", 20)):
        pixels = random.integers(0, 256, (rows, 3072), dtype=np.uint8)
        classes = random.integers(0, 3, rows).tolist()
        content = {"data": pixels, "fine_labels": classes, "coarse_labels": classes}
        (folder / split).write_bytes(pickle.dumps(content, protocol=2))
    names = {"fine_label_names": ["a", "b", "c"], "coarse_label_names": ["a", "b", "c"]}
    (folder / "meta").write_bytes(pickle.dumps(names, protocol=2))
    small = ["model.outputs=null", "model.channels=[4,4,4,4,4,4,4,4]", "model.hidden=[8]"]
    small += ["data.batch_size=8", "train.rounds=2", "train.local_steps=2"]
    options = [*_ONE_A_NODE, "--nodes=2"]
    job = _submit(VGG11, tmp_path, "--set", *small, options=options, IMAGES=str(folder))
    printed = _end(tmp_path, job)
    assert "60 train and 20 test images" in printed
    assert "to average shared weights" in printed  # of the plan
    assert _status(tmp_path) == "finished"
    summary = json.loads((tmp_path / "runs/small/summary.json").read_text(encoding="utf-8"))
    assert summary["bytes"]["averaged"] > 0

    small = ["model.outputs=null", "model.channels=[4,4,4,4]", "model.sections=[1,1,4,1]"]
    small += ["data.batch_size=8", "train.epochs=null", "train.rounds=2", "train.local_steps=2"]
    words = ["--set", *small, "model.min_blocks=2"]
    job = _submit(RESIST, tmp_path, *words, options=options, NAME="blocks")
    assert "2 rank(s)" in _end(tmp_path, job)
    assert _status(tmp_path, "blocks") == "finished"


def test_speech_from_recordings_and_the_scaling_study_after_it(cluster, tmp_path):
    random = np.random.default_rng(0)
    for word in ("yes", "no"):
        (tmp_path / "recordings" / word).mkdir(parents=True)
        for speaker in range(40):
            path = tmp_path / "recordings" / word / f"{speaker:08x}_nohash_0.wav"
            with wave.open(str(path), "wb") as file:
                file.setparams((1, 2, 16000, 16000, "NONE", "not compressed"))
                file.writeframes(random.integers(-999, 999, 16000, dtype=np.int16).tobytes())
    small = ["model.outputs=null", "model.hidden=[16,16]", "data.batch_size=8"]
    options = [*_ONE_A_NODE, "--nodes=2"]
    words = ["--set", *small, "train.epochs=null", "train.rounds=2"]
    ours = {"RECORDINGS": str(tmp_path / "recordings")}
    assert "2 rank(s)" in _end(tmp_path, _submit(SPEECH, tmp_path, *words, options=options, **ours))
    assert _status(tmp_path) == "finished"

    words = ["--set", *small, "--steps", "5", "--repeats", "1"]
    ours = {"METHODS": "ist:5 local_sgd:5"}
    for ranks in (1, 2):
        options = [*_ONE_A_NODE, f"--nodes={ranks}", f"--array={ranks}"]
        job = _submit(SCALING, tmp_path, *words, options=options, **ours)
        _end(tmp_path, job)
        found = tmp_path / f"runs/scaling/ranks-{ranks}/scaling.csv"
        assert len(found.read_text(encoding="utf-8").splitlines()) == 1 + ranks
    folders = [str(tmp_path / f"runs/scaling/ranks-{ranks}") for ranks in (1, 2)]
    done = subprocess.run(
        [sys.executable, "-m", "ist_hpc.plot", *folders, "--table"],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert re.search(r"\| ist:5 +\| +2 \|", done.stdout)


def test_in_a_shell_of_salloc_the_ranks_are_those_of_the_allocation(cluster, shards, tmp_path):
    """It has no SLURM_NTASKS there, as --ntasks is not given."""
    ours = {"DATA": str(shards), "RUNS": str(tmp_path / "runs"), "NAME": "small"}
    words = ["--set", *_SMALL, "train.epochs=null", "train.rounds=1"]
    shell = ["salloc", "--nodes=2", "--mem=1500M", "bash", str(AMAZON_CPU)]
    assert ", 2 ranks on h" in _on_h1(*shell, *words, **ours)
    assert _status(tmp_path) == "finished"


def test_a_task_of_an_array_is_queued_again_without_the_others(cluster, shards, tmp_path):
    """The last one, whose SLURM_JOB_ID is the array's own number, by which all would go."""
    words = ["--set", *_SMALL, "train.epochs=null", "train.rounds=100000", "train.local_steps=5"]
    options = [*_ONE_A_NODE, "--nodes=1", "--array=0-1"]
    ours = {"DATA": str(shards), "NAME": ""}
    array = _submit(
        *(AMAZON_CPU, tmp_path, *words, "evaluate.every_epochs=0"), options=options, **ours
    )
    runs = [tmp_path / f"runs/amazon670k_cpu-{task}/metrics.jsonl" for task in (0, 1)]
    _wait_until(lambda: all(path.exists() and path.read_text() for path in runs), _LIMIT_S)
    job = json.loads((runs[1].parent / "run.json").read_text())["starts"][0]["slurm"]
    assert job["SLURM_JOB_ID"] == array
    _on_h1("scancel", "--batch", "--signal=USR1", f"{array}_1")
    _wait_until(lambda: _restarts(f"{array}_1") == 1, _LIMIT_S)
    assert (runs[1].parent / "requeues").read_text() == f"{array}_1 1\n"
    rounds = len(runs[0].read_text().splitlines())
    _wait_until(lambda: len(runs[0].read_text().splitlines()) > rounds + 5, _LIMIT_S)
    assert (_state(f"{array}_0"), _restarts(f"{array}_0")) == ("RUNNING", 0)
    _on_h1("scancel", array)
    _wait_until(lambda: not _on_h1("squeue", "--noheader"), _LIMIT_S)


def test_jobs_that_begin_without_shards_take_what_another_makes(cluster, tmp_path):
    """One converts, here one that has come to a halt; the others wait, until their time is over."""
    text = _write_text(tmp_path / "text")
    data = tmp_path / "data"
    words = ["xmc", "--train", f"{text}/train.txt", "--test", f"{text}/test.txt"]
    converter = subprocess.Popen(
        [sys.executable, "-c", _HALT, *words, "--output", str(data)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        _wait_until(lambda: _state_of_process(converter.pid) == "T", _LIMIT_S)
        words = ["--set", *_SMALL, "train.epochs=null", "train.rounds=2"]
        options = [*_ONE_A_NODE, "--nodes=1"]
        jobs = {
            name: _submit(AMAZON_CPU, tmp_path, *words, options=options, NAME=name, TEXT=text)
            for name in ("small", "wide", "gone")
        }
        printed = {name: tmp_path / f"{job}.out" for name, job in jobs.items()}
        for path in printed.values():
            _wait_until(
                lambda path=path: path.exists() and "waiting for it" in path.read_text(), _LIMIT_S
            )
        _on_h1("scancel", jobs["gone"])
        _end(tmp_path, jobs["gone"], "CANCELLED")
        _on_h1("scancel", "--batch", "--signal=USR1", jobs["small"])
        _wait_until(lambda: _restarts(jobs["small"]) == 1, _LIMIT_S)
        assert "the time is over before training began; requeued" in printed["small"].read_text()
        assert (tmp_path / "runs/small/requeues").read_text() == f"{jobs['small']} 1\n"
    finally:
        converter.send_signal(signal.SIGCONT)
    made, _ = converter.communicate(timeout=60)
    assert "2000 train and 200 test rows" in made
    for name in ("wide", "small"):
        assert "2000 train and 200 test rows of" not in _end(tmp_path, jobs[name])
        assert _status(tmp_path, name) == "finished"


# A converter that stops, as Ctrl-Z stops it, when it has begun to write.
_HALT = """
import os, signal, sys
from ist_hpc.data import shard_writer
from ist_hpc.prepare.__main__ import main
enter = shard_writer.DatasetWriter.__enter__
def halt(writer):
    entered = enter(writer)
    os.kill(os.getpid(), signal.SIGSTOP)
    return entered
shard_writer.DatasetWriter.__enter__ = halt
sys.exit(main(sys.argv[1:]))
"""


def _state_of_process(process: int) -> str:
    stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    return stat.rpartition(")")[2].split()[0]


def _restarts(job: str) -> int:
    found = re.search(r"Restarts=(\d+)", _on_h1("scontrol", "show", "job", job))
    assert found is not None
    return int(found[1])


@contextmanager
def _within(bound_s: float, case: str) -> Iterator[None]:
    """Fail unless the block takes less; FAULT_TIMES names a file that gets a line of each."""
    begin_s = time.monotonic()
    yield
    took_s = time.monotonic() - begin_s
    if times := os.environ.get("FAULT_TIMES"):
        with Path(times).open("a", encoding="utf-8") as file:
            file.write(f"{case}: {took_s:.1f} s, bound {bound_s:g} s\n")
    assert took_s < bound_s, case


def test_under_mpirun_a_run_that_is_saved_is_queued_again(healed, shards, tmp_path):
    """Which is not when mpirun ends: 50 s after ranks that ended with a code of their own."""
    options = ["--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1", "--mem=3G"]
    words = ["--set", *_SMALL, "train.epochs=null", "train.rounds=100000", "train.local_steps=5"]
    ours = {"DATA": str(shards), "LAUNCHER": "mpirun"}
    job = _submit(AMAZON, tmp_path, *words, "evaluate.every_epochs=0", options=options, **ours)
    printed = tmp_path / f"{job}.out"
    _wait_until(lambda: max(_rounds(tmp_path), default=0) > 5, _LIMIT_S)
    with _within(30, "under mpirun, Slurm's warning: saved and requeued"):
        _on_h1("scancel", "--batch", "--signal=USR1", job)
        _wait_until(lambda: "the run saved; requeued" in printed.read_text(), 60)
    _wait_until(lambda: len(_starts(tmp_path)) == 2, _LIMIT_S)
    before = re.fullmatch(
        r"stopped: SIGUSR1, saved after round (\d+)", _starts(tmp_path)[1]["before"]
    )
    assert before
    _wait_until(lambda: max(_rounds(tmp_path)) > int(before[1]) + 5, _LIMIT_S)
    with _within(60, "under mpirun, `scancel`: saved and ended"):
        _on_h1("scancel", job)
        _end(tmp_path, job, "CANCELLED")
    assert _status(tmp_path).startswith("stopped: SIGTERM, saved after round")


class TestFaults:
    """One run through all that ends a job: each ends as docs/reliability.md says, in its bound.

    Each job goes on where the one before it was ended; at last the run is compared with one that
    nothing interrupted.
    """

    LONG = (
        *("--set", *_SMALL, "train.epochs=null", "train.rounds=100000", "train.local_steps=5"),
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
        _end(tmp_path, self.submit(f"train.rounds={goal}"))
        whole = tmp_path / "whole"
        whole.mkdir()
        words = [*self.LONG, f"train.rounds={goal}"]
        _end(whole, _submit(AMAZON_CPU, whole, *words, DATA=str(shards)))
        assert newest(whole / "runs/small").name == f"round-{goal:08d}"
        assert same_tensors(newest(tmp_path / "runs/small"), newest(whole / "runs/small"))
        assert _rounds(tmp_path) == list(range(1, goal + 1))

    def submit(self, *more: str, options: Sequence[str] = (), **settings: str) -> str:
        """Submit the run over all nodes, begun or gone on with."""
        options = [*_ONE_A_NODE, f"--nodes={NODES}", *options]
        ours = {"DATA": str(self.shards), **settings}
        return _submit(AMAZON_CPU, self.folder, *self.LONG, *more, options=options, **ours)

    def started(self, *more: str, options: Sequence[str] = (), **settings: str) -> str:
        """A job that has trained some rounds beyond the newest checkpoint."""
        rounds, job = self.newest() + 15, self.submit(*more, options=options, **settings)
        _wait_until(lambda: max(_rounds(self.folder), default=0) > rounds, _LIMIT_S)
        return job

    def newest(self) -> int:
        """The round of the newest checkpoint."""
        found = (self.folder / "runs/small/checkpoints").glob("round-*")
        return max((int(path.name.removeprefix("round-")) for path in found), default=0)

    def before(self) -> str:
        """How the run ended before its last start."""
        return str(_starts(self.folder)[-1]["before"])

    def the_time_is_over_and_the_job_queues_itself_again(self) -> None:
        """The warning is Slurm's own, half a minute after each start.

        By the time that this sees it, the next start may have trained, saved and been warned, too.
        """
        job = self.submit(options=["--time=1", "--signal=B:USR1@30"])
        printed = self.folder / f"{job}.out"
        _wait_until(lambda: _rounds(self.folder), _LIMIT_S)
        with _within(60, "the time limit (1 minute): saved and requeued"):
            _wait_until(lambda: "the time is over and the run saved" in printed.read_text(), 60)
        _wait_until(lambda: len(_starts(self.folder)) >= 2, _LIMIT_S)
        again = _starts(self.folder)[1]
        saved = re.fullmatch(r"stopped: SIGUSR1, saved after round (\d+)", str(again["before"]))
        assert saved
        # more than once where a start takes longer than the warning leaves it
        assert int(again["slurm"]["SLURM_RESTART_COUNT"]) >= 1
        _wait_until(lambda: f"from round {saved[1]}" in printed.read_text(), _LIMIT_S)
        _wait_until(lambda: _status(self.folder) == "running", 60)
        _on_h1("scancel", job)
        _end(self.folder, job, "CANCELLED")

    def scancel_leaves_it_saved(self) -> None:
        job = self.started()
        with _within(60, "scancel: saved and ended"):
            _on_h1("scancel", job)
            _end(self.folder, job, "CANCELLED")
        assert _status(self.folder) == f"stopped: SIGTERM, saved after round {self.newest()}"

    def it_is_queued_again_a_bounded_number_of_times(self) -> None:
        job = self.started(MAX_REQUEUES="0")
        assert self.before().startswith("stopped: SIGTERM, saved after round")
        _on_h1("scancel", "--batch", "--signal=USR1", job)
        assert "requeued 0 times already" in _end(self.folder, job, "FAILED")
        assert _status(self.folder) == f"stopped: SIGUSR1, saved after round {self.newest()}"

    def a_rank_is_killed_in_training(self) -> None:
        job = self.started()
        with _within(60, "a rank killed in training: job ended"):
            subprocess.run(["kill", "-9", _rank_process(self.folder, 2)], check=True)
            _end(self.folder, job, "FAILED")
        assert _status(self.folder) == "running"

    def a_rank_is_killed_in_an_exchange(self) -> None:
        saved = self.newest()
        self.kill_in("exchange")
        assert "ended without a word" in self.before()
        assert saved <= self.newest() <= max(_rounds(self.folder))

    def a_rank_is_killed_in_a_save(self) -> None:
        """In the second save of a start: the first is what it leaves."""
        first = self.newest() // 10 * 10 + 10
        self.kill_in("save")
        assert max(_rounds(self.folder)) == first + 10
        assert self.newest() == first

    def kill_in(self, moment: str) -> None:
        site = self.folder / "site"
        site.mkdir(exist_ok=True)
        (site / "sitecustomize.py").write_text(
            "from tests.helpers.killing import in_a_slurm_step\nin_a_slurm_step()\n",
            encoding="utf-8",
        )
        ours = {"PYTHONPATH": f"{site}:{ROOT}", "KILL_RANK": "2", "KILL_IN": moment}
        starts, rounds = len(_starts(self.folder)), self.newest() + 10
        job = self.submit(**ours)
        _wait_until(
            lambda: len(_starts(self.folder)) > starts and max(_rounds(self.folder)) > rounds,
            _LIMIT_S,
        )
        with _within(60, f"a rank killed in {moment}: job ended"):
            _end(self.folder, job, "FAILED")
        assert "Killed" in (self.folder / f"{job}.out").read_text(encoding="utf-8")

    def a_node_is_cut_off(self) -> None:
        """Slurm hears of it later (SlurmdTimeout): the survivors end after the time of silence."""
        job = self.started("runtime.silence_s=8")
        survivors = [_rank_process(self.folder, rank) for rank in (0, 1, 3)]
        with _within(30, "a node cut off, silence_s 8: survivors ended"):
            subprocess.run([HOSTS, "cut", "h3"], check=True, timeout=20)
            _wait_until(lambda: not any(map(_is_alive, survivors)), 40)
        assert _status(self.folder).startswith("failed: rank")
        printed = self.folder / f"{job}.out"
        said = re.compile(r"train: failed: rank \d of 4 on h[124] has made no progress in")
        _wait_until(lambda: said.search(printed.read_text(encoding="utf-8")), 30)
        with _within(60, "the same: Slurm has ended the job, the node is still away"):
            _wait_until(lambda: _state(job) not in ("RUNNING", "COMPLETING"), 60)
        subprocess.run([HOSTS, "heal", "h3"], check=True, timeout=20)
        _on_h1("scancel", job, check=False)  # Slurm may have queued it again itself
        _wait_until(_every_node_is_idle, _LIMIT_S)


_CHECK_TWICE = "set -m; for i in 1 2; do python -m ist_hpc.check --alone || exit; done; true"


@pytest.mark.parametrize("mpi", ["none", "pmix"])
def test_a_shell_in_a_step_is_one_rank_and_its_step_lives_on(cluster, tmp_path, mpi):
    """Each program starts MPI alone; joining the step's MPI a second time would end the step."""
    path = f"PATH={Path(sys.executable).parent}:{os.environ['PATH']}"
    step = ["env", path, "OMP_NUM_THREADS=1", "srun", f"--mpi={mpi}", "-n1", "--pty", "bash", "-c"]
    printed = _on_h1(*step, _CHECK_TWICE)
    assert printed.count("check: ok") == 2
    assert "build" not in printed


def test_tasks_without_pmix_are_refused_once_and_before_mpi_starts(cluster, tmp_path):
    train = [sys.executable, "-m", "ist_hpc.train", "--runs", str(tmp_path)]
    for mpi in ("none", "pmi2"):
        printed = _on_h1("srun", f"--mpi={mpi}", "-n2", *train, check=False)
        lines = [line for line in printed.splitlines() if not line.startswith("srun: ")]
        assert len(lines) == 1, printed
        assert "train: error: Slurm started 2 tasks but each is alone in MPI; start it" in lines[0]
        assert "exit code 2" in printed.lower()
    assert not list(tmp_path.iterdir())


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

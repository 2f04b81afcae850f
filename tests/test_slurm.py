"""The batch templates on a real Slurm cluster: one machine's network namespaces are its nodes."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.launching import ROOT

HOSTS = str(ROOT / "bench" / "hosts.sh")
AMAZON, VGG11 = (ROOT / "slurm" / name for name in ("amazon670k.sbatch", "vgg11.sbatch"))
TEMPLATES = sorted((ROOT / "slurm").glob("*.sbatch"))
_DAEMONS = ("slurmctld", "slurmd", "munged", "ip", "tc")
_LIMIT_S = 120.0
_ON_TWO_NODES = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0"]
_SMALL = "model.inputs=null model.outputs=null model.hidden=[32] data.batch_size=32 data.verify=no"


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_the_options_are_ahead_of_the_first_command(template):
    """Slurm reads #SBATCH lines up to the first command and leaves out later ones, silently."""
    lines = template.read_text(encoding="utf-8").splitlines()
    commands = [i for i, line in enumerate(lines) if line and not line.startswith("#")]
    options = [i for i, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert options[-1] < commands[0]
    words = [lines[i].split() for i in options]
    assert all(len(line) == 2 and re.fullmatch(r"--[a-z-]+(=\S+)?", line[1]) for line in words)
    names = {line[1].partition("=")[0] for line in words}
    assert {"--nodes", "--ntasks-per-node", "--requeue", "--time"} <= names
    assert not names & {"--account", "--partition", "--qos"}  # of one site only


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_bash_accepts_the_template(template):
    done = subprocess.run(
        ["bash", "-n", template], capture_output=True, text=True, timeout=20, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("template", "variable", "file", "address"),
    [
        (AMAZON, "TEXT", "train.txt", "http://manikvarma.org/downloads/XC/XMLRepository.html"),
        (VGG11, "IMAGES", "train", "https://www.cs.toronto.edu/~kriz/cifar.html"),
    ],
    ids=["amazon670k", "vgg11"],
)
def test_without_data_it_says_where_to_get_them(tmp_path, template, variable, file, address):
    settings = {variable: str(tmp_path / "source"), "DATA": str(tmp_path / "data")}
    done = _in_bash(template, settings)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert line.startswith(f"{template.stem}: error: ")
    assert str(tmp_path / "source" / file) in line
    assert address in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_without_an_environment_it_says_so(tmp_path, template):
    done = _in_bash(template, {"VENV": str(tmp_path / "none")})
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert "make setup" in line


def _in_bash(template: Path, settings: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """A template in a plain shell, as far as it comes before it needs Slurm."""
    environment = {**os.environ, "VENV": sys.prefix, **settings}
    return subprocess.run(
        ["bash", template],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def cluster(hosts_to_itself: None) -> Iterator[None]:
    """Two nodes, h1 and h2, of a Slurm cluster of their own."""
    missing = [name for name in _DAEMONS if not shutil.which(name)]
    if os.geteuid() != 0 or missing:
        pytest.skip(
            "a Slurm cluster needs root, iproute2 (ip, tc), slurm-wlm, munge and libpmix-dev; "
            f"missing: {', '.join(missing) or 'root'}"
        )
    subprocess.run([HOSTS, "up", "2", "1gbit"], check=True, timeout=60)
    try:
        subprocess.run([HOSTS, "slurm"], check=True, timeout=60)
        yield
    finally:
        subprocess.run([HOSTS, "down"], check=True, timeout=90)


def _on_h1(*command: str, **settings: str) -> str:
    # PMIX_MCA_psec: Open MPI's wheel has no munge in its PMIx, and would say so on every rank
    environment = {**os.environ, "PMIX_MCA_psec": "native", "VENV": sys.prefix, **settings}
    done = subprocess.run(
        [HOSTS, "on", "h1", *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _wait_until(is_so: Callable[[], bool], limit_s: float) -> None:
    end_s = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < end_s, f"not within {limit_s:g} s"
        time.sleep(0.2)


def _submit(template: Path, folder: Path, **settings: str) -> str:
    """Submit a template with its data and runs in `folder`; the job's number."""
    ours = {
        "DEVICE": "cpu",
        "DATA": str(folder / "data"),
        "RUNS": str(folder / "runs"),
        "NAME": "small",
    }
    options = [*_ON_TWO_NODES, "--cpus-per-task=1", "--mem=3G", f"--output={folder}/%j.out"]
    return _on_h1("sbatch", "--parsable", *options, str(template), **ours, **settings).strip()


def _finish(folder: Path, job: str) -> str:
    """Wait for a job and return what it printed; fails the test unless its exit code is 0."""
    _wait_until(lambda: _state(job) not in ("PENDING", "RUNNING", "COMPLETING"), _LIMIT_S)
    printed = (folder / f"{job}.out").read_text(encoding="utf-8")
    assert _state(job) == "COMPLETED", printed
    return printed


def _state(job: str) -> str:
    found = re.search(r"JobState=(\w+)", _on_h1("scontrol", "show", "job", job))
    assert found is not None
    return found[1]


def _write_text(path: Path, rows: int, seed: int) -> None:
    """Rows in the repository's format whose labels can be read off their features."""
    random = np.random.default_rng(seed)
    lines = [f"{rows} 90 40"]
    for _ in range(rows):
        labels = sorted(random.choice(40, 2, replace=False).tolist())
        features = [*labels, *(label + 40 for label in labels)]
        values = random.uniform(0.5, 1, len(features))
        pairs = sorted(zip(features, values, strict=True))
        lines.append(",".join(map(str, labels)) + " " + " ".join(f"{f}:{v:.4f}" for f, v in pairs))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _starts(folder: Path) -> int:
    return len(json.loads((folder / "runs/small/run.json").read_text(encoding="utf-8"))["starts"])


def _rounds(folder: Path) -> list[int]:
    lines = (folder / "runs/small/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [row["round"] for row in rows if row["kind"] == "round"]


def test_slurm_runs_the_template_from_text_to_a_finished_run_and_goes_on(cluster, tmp_path):
    text = str(tmp_path / "text")
    (tmp_path / "text").mkdir()
    _write_text(tmp_path / "text" / "train.txt", 2000, seed=1)
    _write_text(tmp_path / "text" / "test.txt", 200, seed=2)

    printed = _finish(
        tmp_path, _submit(AMAZON, tmp_path, TEXT=text, EXTRA=f"{_SMALL} train.rounds=2")
    )
    assert "2000 train and 200 test rows" in printed  # of the conversion
    assert "memory of a rank at its peak" in printed  # of the plan
    assert "2 rank(s)" in printed
    assert (tmp_path / "runs/small/STATUS").read_text(encoding="utf-8") == "finished\n"
    assert (tmp_path / "runs/small/checkpoints/round-00000002").is_dir()

    shutil.rmtree(tmp_path / "text")  # the shards are there: no text is needed any more
    printed = _finish(
        tmp_path, _submit(AMAZON, tmp_path, TEXT=text, EXTRA=f"{_SMALL} train.rounds=4")
    )
    assert "from round 2" in printed
    assert _starts(tmp_path) == 2
    assert (tmp_path / "runs/small/checkpoints/round-00000004").is_dir()
    rounds = _rounds(tmp_path)
    assert len(rounds) == len(set(rounds)) == 4


def test_slurm_runs_vgg11_from_images_to_a_finished_run(cluster, tmp_path):
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
    small = "model.outputs=null model.channels=[4,4,4,4,4,4,4,4] model.hidden=[8] data.batch_size=8"
    extra = f"{small} train.rounds=2 train.local_steps=2"
    printed = _finish(tmp_path, _submit(VGG11, tmp_path, IMAGES=str(folder), EXTRA=extra))
    assert "60 train and 20 test images" in printed
    assert "to average shared weights" in printed  # of the plan
    assert (tmp_path / "runs/small/STATUS").read_text(encoding="utf-8") == "finished\n"
    summary = json.loads((tmp_path / "runs/small/summary.json").read_text(encoding="utf-8"))
    assert summary["bytes"]["averaged"] > 0

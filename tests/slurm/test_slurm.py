"""The batch templates on a real Slurm cluster, from data to finished runs."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import slurm_cluster as slurm
from tests.helpers.checkpoints import newest
from tests.helpers.job_site import (
    AMAZON,
    AMAZON_CPU,
    RESIST,
    SCALING,
    SPEECH,
    TEMPLATE_PATHS,
    VGG11,
)
from tests.helpers.slurm_cluster import GPUS_LEFT_OUT, NODES, ONE_A_NODE, SMALL

pytestmark = pytest.mark.long


@pytest.mark.parametrize("template", TEMPLATE_PATHS, ids=lambda path: path.name)
def test_slurm_would_take_the_template(cluster, template):
    gpus = GPUS_LEFT_OUT if "--gpus" in template.read_text(encoding="utf-8") else []
    small = [*gpus, f"--nodes={NODES}", "--cpus-per-task=1", "--mem=4G"]
    assert "to start at" in slurm.on_h1("sbatch", "--test-only", *small, str(template), check=False)
    too_many = [*gpus, f"--nodes={NODES + 1}"]
    assert "not available" in slurm.on_h1(
        "sbatch", "--test-only", *too_many, str(template), check=False
    )


def test_submit_checks_and_queues(cluster, shards, tmp_path):
    words = ["--nodes=2", *ONE_A_NODE, f"--output={tmp_path}/%j.out", "--parsable", "--"]
    ours = {"DATA": str(shards), "RUNS": str(tmp_path / "runs"), "NAME": "small"}
    printed = slurm.on_h1(
        *("slurm/submit.sh", "--template", "slurm/amazon670k_cpu.sbatch"),
        *("configs/amazon670k.yaml", *words, "--set", *SMALL, "train.rounds=1"),
        fresh=True,
        **ours,
    )
    assert "2 ranks" in printed
    assert "2 rank(s)" in slurm.end(tmp_path, printed.split()[-1])


def test_from_text_to_a_finished_run_over_all_nodes_and_on(cluster, tmp_path):
    text = slurm.write_text(tmp_path / "text")
    options = [*ONE_A_NODE, f"--nodes={NODES}"]
    job = slurm.submit(
        *(AMAZON_CPU, tmp_path, "--set", *SMALL, "train.rounds=2"), TEXT=text, options=options
    )
    printed = slurm.end(tmp_path, job)
    assert "2000 train and 200 test rows" in printed  # of the conversion
    assert "memory of a rank at its peak" in printed  # of the plan
    assert f"{NODES} rank(s)" in printed
    assert "ist_hpc " in printed  # of the versions
    assert slurm.status(tmp_path) == "finished"
    assert newest(tmp_path / "runs/small").name == "round-00000002"
    assert slurm.starts(tmp_path)[0]["slurm"]["SLURM_JOB_ID"] == job

    shutil.rmtree(tmp_path / "text")  # the shards are there: no text is needed any more
    job = slurm.submit(AMAZON_CPU, tmp_path, "--set", *SMALL, "train.rounds=4", options=options)
    assert "from round 2" in slurm.end(tmp_path, job)
    assert len(slurm.starts(tmp_path)) == 2
    assert slurm.rounds(tmp_path) == [1, 2, 3, 4]


@pytest.mark.parametrize("launcher", ["srun", "mpirun"])
def test_the_gpu_template_on_nodes_without(cluster, shards, tmp_path, launcher):
    options = ["--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1", "--mem=3G"]
    words = ["--set", *SMALL, "train.rounds=2"]
    ours = {"DATA": str(shards), "LAUNCHER": launcher}
    fresh = launcher == "mpirun"
    job = slurm.submit(AMAZON, tmp_path, *words, options=options, fresh=fresh, **ours)
    assert "4 rank(s)" in slurm.end(tmp_path, job)
    assert slurm.status(tmp_path) == "finished"


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
    options = [*ONE_A_NODE, "--nodes=2"]
    job = slurm.submit(VGG11, tmp_path, "--set", *small, options=options, IMAGES=str(folder))
    printed = slurm.end(tmp_path, job)
    assert "60 train and 20 test images" in printed
    assert "to average shared weights" in printed  # of the plan
    assert slurm.status(tmp_path) == "finished"
    summary = json.loads((tmp_path / "runs/small/summary.json").read_text(encoding="utf-8"))
    assert summary["bytes"]["averaged"] > 0

    small = ["model.outputs=null", "model.channels=[4,4,4,4]", "model.sections=[1,1,4,1]"]
    small += ["data.batch_size=8", "train.epochs=null", "train.rounds=2", "train.local_steps=2"]
    words = ["--set", *small, "model.min_blocks=2"]
    job = slurm.submit(RESIST, tmp_path, *words, options=options, NAME="blocks")
    assert "2 rank(s)" in slurm.end(tmp_path, job)
    assert slurm.status(tmp_path, "blocks") == "finished"


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
    options = [*ONE_A_NODE, "--nodes=2"]
    words = ["--set", *small, "train.epochs=null", "train.rounds=2"]
    ours = {"RECORDINGS": str(tmp_path / "recordings")}
    assert "2 rank(s)" in slurm.end(
        tmp_path, slurm.submit(SPEECH, tmp_path, *words, options=options, **ours)
    )
    assert slurm.status(tmp_path) == "finished"

    words = ["--set", *small, "--steps", "5", "--repeats", "1"]
    ours = {"METHODS": "ist:5 local_sgd:5"}
    for ranks in (1, 2):
        options = [*ONE_A_NODE, f"--nodes={ranks}", f"--array={ranks}"]
        job = slurm.submit(SCALING, tmp_path, *words, options=options, **ours)
        slurm.end(tmp_path, job)
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
    words = ["--set", *SMALL, "train.epochs=null", "train.rounds=1"]
    shell = ["salloc", "--nodes=2", "--mem=1500M", "bash", str(AMAZON_CPU)]
    assert ", 2 ranks on h" in slurm.on_h1(*shell, *words, **ours)
    assert slurm.status(tmp_path) == "finished"


_CHECK_TWICE = "set -m; for i in 1 2; do python -m ist_hpc.check --alone || exit; done; true"


@pytest.mark.parametrize("mpi", ["none", "pmix"])
def test_a_shell_in_a_step_is_one_rank_and_its_step_lives_on(cluster, tmp_path, mpi):
    """Each program starts MPI alone; joining the step's MPI a second time would end the step."""
    path = f"PATH={Path(sys.executable).parent}:{os.environ['PATH']}"
    step = ["env", path, "OMP_NUM_THREADS=1", "srun", f"--mpi={mpi}", "-n1", "--pty", "bash", "-c"]
    printed = slurm.on_h1(*step, _CHECK_TWICE)
    assert printed.count("check: ok") == 2
    assert "build" not in printed


def test_tasks_without_pmix_are_refused_once_and_before_mpi_starts(cluster, tmp_path):
    train = [sys.executable, "-m", "ist_hpc.train", "--runs", str(tmp_path)]
    for mpi in ("none", "pmi2"):
        printed = slurm.on_h1("srun", f"--mpi={mpi}", "-n2", *train, check=False)
        lines = [line for line in printed.splitlines() if not line.startswith("srun: ")]
        assert len(lines) == 1, printed
        assert "train: error: Slurm started 2 tasks but each is alone in MPI; start it" in lines[0]
        assert "exit code 2" in printed.lower()
    assert not list(tmp_path.iterdir())

"""The training command as users start it, and what it says to bad input."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

from ist_hpc.data.shards import DatasetWriter
from tests.conftest import train
from tests.helpers.launching import ROOT, one_error_line, run_python, run_ranks

pytestmark = pytest.mark.long


@pytest.fixture
def place(trained, tmp_path):
    """A folder with the digits and one finished run, to be spoilt."""
    shutil.copytree(trained.data, tmp_path / "digits")
    shutil.copytree(trained.folder, tmp_path / "runs" / "small")
    return tmp_path


SMALL = ["data.path=digits", "model.hidden=[24,17]", "train.rounds=4", "optimizer.momentum=0.9"]
SMALL += ["optimizer.lr=0.05"]


def refused(place, *settings, arguments=(), ranks=2, **options) -> str:
    """The one line with which training is refused; no run folder may be left behind."""
    before = sorted(place.rglob("*"))
    command = ["-m", "ist_hpc.train", *arguments, "--set", *SMALL, *settings]
    done = run_ranks(ranks, command, cwd=place, check=False, **options)
    line = one_error_line(done)
    assert line.startswith("train: error: ")
    assert sorted(place.rglob("*")) == before, "something was written"
    return line


class TestARun:
    def test_leaves_what_a_user_needs(self, trained):
        summary = json.loads((trained.folder / "summary.json").read_text())
        assert summary["ranks"] == 2
        assert summary["rounds"] == 4
        assert summary["steps"] == 40
        assert summary["samples"] == 40 * 2 * 32
        assert 0.3 < summary["test"]["accuracy"] <= summary["best"]["accuracy"] <= 1
        assert len(summary["peak_rss_mib"]) == 2
        assert (trained.folder / "STATUS").read_text() == "finished\n"
        start = json.loads((trained.folder / "run.json").read_text())["starts"][0]
        assert start["ranks"] == 2
        assert {"torch", "mpi4py", "horovod", "h5py"} <= set(start["versions"])
        rows = [json.loads(line) for line in (trained.folder / "metrics.jsonl").open()]
        rounds = [row for row in rows if row["kind"] == "round"]
        assert [row["round"] for row in rounds] == [1, 2, 3, 4]
        assert all(row["bytes_received"] == row["bytes_sent"] for row in rows)

    def test_ends_by_saying_where_the_result_is(self, place):
        command = ["-m", "ist_hpc.train", "--name", "b", "--set", *SMALL, "train.rounds=2"]
        done = run_ranks(2, command, cwd=place)
        accuracy, checkpoint, show = done.stdout.splitlines()
        assert accuracy.startswith("test accuracy: 0.")
        assert checkpoint == "checkpoint:    runs/b/checkpoints/round-00000002"
        assert show.endswith("python -m ist_hpc.show runs/b/checkpoints/round-00000002")
        assert "[rank 1" not in done.stderr  # only rank 0 speaks

    def test_quickstart_on_one_process_makes_its_data(self, tmp_path):
        arguments = ["-m", "ist_hpc.train", "--name", "q", "--set", "train.epochs=2"]
        done = run_python(arguments, cwd=tmp_path)
        assert done.stdout.startswith("test accuracy: 0.")
        assert (tmp_path / "runs/q/STATUS").read_text().strip() == "finished"
        assert (tmp_path / "data" / "digits" / "meta.json").is_file()
        assert json.loads((tmp_path / "runs/q/summary.json").read_text())["ranks"] == 1

    def test_trains_the_configured_epochs_with_a_short_last_round(self, place):
        train(place, "e", "train.rounds=null", "train.epochs=1", "train.local_steps=7", ranks=3)
        summary = json.loads((place / "runs/e/summary.json").read_text())
        assert summary["steps"] == -(-1438 // (3 * 32)) == 15
        assert summary["rounds"] == 3  # 7 + 7 + 1

    def test_help_teaches_and_is_quick(self, tmp_path):
        code = "import sys; from ist_hpc.train import main\ntry: main(['--help'])\n"
        code += "finally: assert not {'torch', 'mpi4py', 'h5py'} & set(sys.modules)"
        text = run_python(["-c", code], cwd=tmp_path, fresh=True).stdout
        assert "horovodrun -np 4" in text
        assert "optimizer.lr " in text


class TestBadInput:
    def test_a_wrong_configuration_is_refused_quickly(self, tmp_path):
        code = "import sys; from ist_hpc.train import main\ncode = main(['--set', 'a.b=1'])\n"
        code += "assert code == 2 and not {'torch', 'h5py'} & set(sys.modules)"
        assert "unknown key `a`" in run_python(["-c", code], cwd=tmp_path, fresh=True).stderr

    def test_in_a_job_s_log_the_refusal_has_its_time(self, tmp_path):
        words = ["-m", "ist_hpc.train", "--set", "a.b=1"]
        done = run_python(words, tmp_path, env={"SLURM_JOB_ID": "7"}, check=False)
        when = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
        assert re.match(rf"{when} train: error: unknown key `a`", one_error_line(done))

    @pytest.mark.parametrize(
        ("settings", "expected"),
        [
            (["optimizer.learning_rate=1"], "unknown key `optimizer.learning_rate` in --set"),
            (["optimiser.lr=1"], "did you mean `optimizer`?"),
            (["train.local_steps=many"], "`train.local_steps` must be a whole number, got 'many'"),
            (["data.path=nowhere"], "no data at nowhere"),
            (["model.inputs=63"], "digits has 64 features a row, `model.inputs` says 63"),
            (["model.hidden=[24,1]"], "axis `hidden2` has 1 units, too few for 2 ranks"),
        ],
    )
    def test_a_setting_that_cannot_be(self, place, settings, expected):
        assert expected in refused(place, *settings)

    def test_a_misspelt_key_in_a_file_is_named_with_its_line(self, place):
        (place / "c.yaml").write_text("data: {path: digits}\nmodel: {hidden: [8]}\ntrian: {}\n")
        line = refused(place, arguments=["--config", "c.yaml"])
        assert "unknown key `trian` in c.yaml, line 3; did you mean `train`?" in line

    def test_a_configuration_that_is_not_there(self, place):
        line = refused(place, arguments=["--config", "absent.yaml"])
        assert "absent.yaml: No such file or directory" in line

    def test_an_existing_run_without_resume(self, place):
        line = refused(place, arguments=["--name", "small"])
        assert "the run folder runs/small exists; go on with it by --resume" in line

    @pytest.mark.parametrize("name", ["..", "a/b", ".hidden"])
    def test_a_name_that_is_no_folder_name(self, place, name):
        line = refused(place, arguments=["--name", name, "--resume"])
        assert f"and underscores, a letter or digit first, got '{name}'; use --runs" in line

    def test_an_evaluation_larger_than_mpi_counts(self, place):
        """Refused before training; here with a limit that the digits reach."""
        script = "import sys; from ist_hpc.data import rows; rows._MOST_MPI_ELEMENTS = 20000\n"
        script += "from ist_hpc.train import main; sys.exit(main(sys.argv[1:]))"
        arguments = ["-c", script, "--name", "e", "--set", *SMALL]
        line = one_error_line(run_ranks(2, arguments, cwd=place, check=False))
        assert "set `evaluate.batch_rows` and `evaluate.calibration_rows` to at most 312" in line
        assert not (place / "runs/e").exists()

    def test_resume_without_a_name(self, place):
        assert "give its --name" in refused(place, arguments=["--resume"])

    def test_an_empty_shard(self, place):
        (place / "digits" / "train-0002.h5").write_bytes(b"")
        assert "digits/train-0002.h5: the file is empty" in refused(place)

    def test_a_missing_shard(self, place):
        (place / "digits" / "train-0003.h5").unlink()
        assert "digits/train-0003.h5" in refused(place)

    def test_a_shard_with_a_flipped_byte(self, place):
        path = place / "digits" / "train-0001.h5"
        damage(path)
        line = refused(place)
        assert "digits/train-0001.h5" in line
        assert "SHA-256" in line

    def test_a_flipped_byte_found_only_while_training_ends_the_job(self, place):
        """Without the check at the start: never a wrong number, and no hang."""
        damage(place / "digits" / "train-0001.h5")
        command = ["-m", "ist_hpc.train", "--name", "f", "--set", *SMALL, "data.verify=false"]
        done = run_ranks(2, command, cwd=place, check=False)
        assert done.returncode == 2
        assert "digits/train-0001.h5" in done.stderr
        assert "Traceback" not in done.stderr
        assert (place / "runs/f/STATUS").read_text().startswith("failed: rank ")
        assert not list((place / "runs/f/checkpoints").iterdir())

    def test_a_truncated_checkpoint(self, place):
        path = place / "runs/small/checkpoints/round-00000004/rank-0001.h5"
        path.write_bytes(path.read_bytes()[:-100])
        command = ["-m", "ist_hpc.train", "--name", "small", "--resume"]
        done = run_ranks(2, command, cwd=place, check=False)
        assert done.returncode == 2
        assert "rank-0001.h5" in done.stderr
        assert "move the folder away to start anew" in done.stderr
        assert (place / "runs/small/STATUS").read_text() == "finished\n"

    @pytest.mark.parametrize(
        ("setting", "expected"),
        [
            ("model.hidden=[24,18]", "`model.hidden` was [24, 17] there and is [24, 18] now"),
            ("optimizer.kind=adam", "`optimizer.kind` was sgd there and is adam now"),
            ("seed=5", "`seed` was 0 there and is 5 now"),
        ],
    )
    def test_a_checkpoint_of_another_model(self, place, setting, expected):
        settings = [setting, *(["optimizer.momentum=0"] if "adam" in setting else [])]
        assert expected in refused(place, *settings, arguments=["--name", "small", "--resume"])

    def test_data_of_another_width_than_the_checkpoint(self, place):
        shutil.rmtree(place / "digits")
        classes = [str(digit) for digit in range(10)]
        rows = np.zeros((8, 63), np.float32), np.zeros(8, np.int64)
        with DatasetWriter(
            place / "digits", name="d", feature_shape=(63,), classes=classes
        ) as writer:
            writer.append("train", *rows)
            writer.append("test", *rows)
        line = refused(place, arguments=["--name", "small", "--resume"])
        assert "`features a row` was 64 there and is 63 now" in line

    def test_mpi_without_thread_support(self, place):
        line = refused(place, env={"MPI4PY_RC_THREAD_LEVEL": "single"})
        assert "MPI_THREAD_MULTIPLE is needed" in line

    def test_horovodrun_on_the_gloo_controller(self, place):
        """As `horovodrun --gloo` starts its processes: alone in MPI, with these variables."""
        env = {"HOROVOD_CONTROLLER": "gloo", "HOROVOD_GLOO_RENDEZVOUS_ADDR": "127.0.0.1"}
        line = refused(place, env=env)
        assert "started by horovodrun on the Gloo controller" in line

    def test_slurm_tasks_that_are_alone_in_mpi(self, place):
        """As srun without --mpi=pmix starts them; under mpirun a rank may be alone in a step."""
        command, env = ["-m", "ist_hpc.train", "--set", *SMALL], {"SLURM_STEP_NUM_TASKS": "4"}
        line = one_error_line(run_python(command, place, env=env, check=False))
        assert "Slurm started 4 tasks but each is alone" in line
        assert "srun --mpi=pmix" in line

    def test_once_for_the_job_under_horovodrun(self, place):
        command = (
            "import sys; from horovod.runner.launch import run_commandline as r; sys.exit(r())"
        )
        arguments = ["-np", "2", "python", "-m", "ist_hpc.train", "--set", *SMALL, "seed=x"]
        done = run_python(["-c", command, *arguments], cwd=place, check=False)
        assert done.returncode != 0
        assert (done.stdout + done.stderr).count("train: error: `seed` must be") == 1


def damage(path) -> None:
    """Flip a byte within the first chunk of the features."""
    with h5py.File(path) as file:
        offset = file["features"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[offset + 40] ^= 4
    path.write_bytes(content)


class TestRanksThatSeeOtherThings:
    """As ranks on several nodes may: nothing may hang."""

    TRAIN = ("-m", "ist_hpc.train", "--name", "m", "--set", *SMALL)

    def mpmd(self, place, first, second, **options):
        """Two ranks that are started differently: lists of words before `python ...`."""
        command = ["-np", "1", *first, sys.executable, *self.TRAIN]
        command += [":", "-np", "1", *second, sys.executable, *self.TRAIN]
        script = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"
        mpirun = [ROOT / "tools" / "mpirun.sh", "--quiet", *command]
        return run_python(["-c", script, *mpirun], cwd=place, check=False, timeout_s=90, **options)

    def test_threads_set_on_one_rank_only(self, place):
        done = self.mpmd(place, [], ["env", "-u", "OMP_NUM_THREADS"])
        assert done.returncode == 0, done.stderr

    def test_a_bad_environment_on_another_rank_is_said_once(self, place):
        done = self.mpmd(place, [], ["env", "HDF5_VDS_PREFIX=/elsewhere"])
        assert "HDF5_VDS_PREFIX is set" in one_error_line(done)

    def test_a_run_folder_that_not_all_see(self, place):
        other = place / "other node"
        other.mkdir()
        shutil.copytree(place / "digits", other / "digits")
        done = self.mpmd(place, [], ["env", "-C", str(other)])
        assert "is not seen by every rank" in one_error_line(done)
        assert not (place / "runs" / "m").exists()


def test_interrupted_twice_it_ends_at_once(place):
    """Once: tests/runtime/test_stopping.py."""
    command = [sys.executable, "-m", "ist_hpc.train", "--name", "s", "--set", *SMALL]
    command += ["train.rounds=100000", "train.local_steps=100000", "evaluate.every_epochs=0"]
    process = subprocess.Popen(command, cwd=place, stderr=subprocess.PIPE, text=True)
    try:
        status = place / "runs/s/STATUS"
        end = time.monotonic() + 60
        while not status.exists():
            assert time.monotonic() < end, "the run did not start"
            time.sleep(0.1)
        time.sleep(1)
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
        _, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "train: stopped: " in stderr
    assert "Traceback" not in stderr
    assert status.read_text().startswith("stopped: ")


def test_a_loss_that_is_not_finite_is_written_as_null(place):
    command = ["-m", "ist_hpc.train", "--name", "n", "--set", *SMALL, "optimizer.lr=1e30"]
    done = run_ranks(2, command, cwd=place, check=False)
    assert done.returncode == 1
    assert done.stderr.count("is not finite") == 1
    rows = [json.loads(line) for line in (place / "runs/n/metrics.jsonl").open()]
    assert rows[-1]["loss"] is None


class TestARankThatRaises:
    SCRIPT = """
import sys
from ist_hpc.training.algorithms.ist import IndependentSubnets
from ist_hpc.train import main
whole = IndependentSubnets.step
def step(self, features, labels, lr, trained):
    if self.rank == 1 and trained == 7:
        raise ArithmeticError("the seventh step")
    return whole(self, features, labels, lr, trained)
IndependentSubnets.step = step
sys.exit(main(sys.argv[1:]))
"""

    def test_ends_the_whole_job_with_its_traceback(self, place):
        """The others wait for it in the exchange of the next round."""
        command = ["-c", self.SCRIPT, "--name", "r", "--set", *SMALL]
        done = run_ranks(3, command, cwd=place, check=False, timeout_s=60)
        assert done.returncode == 1
        assert "rank 1 of 3" in done.stderr
        assert done.stderr.count("Traceback (most recent call last)") == 1
        assert "ArithmeticError: the seventh step" in done.stderr
        status = (place / "runs/r/STATUS").read_text()
        assert status == "failed: rank 1: the seventh step\n"

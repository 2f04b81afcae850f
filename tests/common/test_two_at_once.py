"""Two of the same command at the same time: each ends with a right result, or with one line."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import pytest

from ist_hpc.common.disk.files import hidden_name
from ist_hpc.common.disk.locks import FileLock
from ist_hpc.data.meta_reading import load_meta
from ist_hpc.data.shards import Dataset
from tests.helpers.launching import ROOT, environment, run_python, run_ranks
from tests.helpers.small_runs import SMALL, command, wait_for

pytestmark = pytest.mark.long

DIGITS = ["-m", "ist_hpc.prepare", "digits", "--output", "x"]
MADE = ["-m", "ist_hpc.prepare", "synthetic", "--like", "delicious", "--output", "x"]
TRAIN = ["-m", "ist_hpc.train", "--set", "train.rounds=2", "train.local_steps=2"]
_LIMIT_S = 120


def at_once(commands, cwd, env=None):
    """(exit code, stdout, stderr) of each command; all are started before one is waited for."""
    started = [begun(words, cwd, env) for words in commands]
    ended = []
    try:
        for process in started:
            stdout, stderr = process.communicate(timeout=_LIMIT_S)
            ended.append((process.returncode, stdout, stderr))
    finally:
        for process in started:
            process.kill()
    for _, _, stderr in ended:
        assert "Traceback" not in stderr, stderr
    return ended


def begun(words, cwd, env=None):
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=cwd,
        env=environment(env or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def is_whole(folder, split="train"):
    dataset = Dataset.open(folder)
    for index in range(len(dataset.shards[split])):
        dataset.check_shard(split, index)
    return True


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@contextlib.contextmanager
def held(target):
    """The lock of a data set, held by another process: a fork of this one."""
    ready, told = os.pipe()
    end, release = os.pipe()
    child = os.fork()
    if not child:
        os.close(release)
        lock = FileLock(target.parent / hidden_name(target.name, "lock"))
        lock.take("process 7 on mars", no)
        os.write(told, b"x")
        os.read(end, 1)
        os._exit(0)
    os.close(end)
    os.read(ready, 1)
    try:
        yield child
    finally:
        os.close(release)
        os.waitpid(child, 0)


def no(owner, waited_s):
    raise AssertionError(owner)


class TestPreparing:
    @pytest.mark.parametrize("options", [[], ["--overwrite"], ["--if-missing"]])
    @pytest.mark.parametrize("before", [False, True])
    def test_one_converts_and_the_others_take_it(self, tmp_path, options, before):
        if before:
            run_python(DIGITS, tmp_path)
        first = (tmp_path / "x/meta.json").stat().st_ino if before else None
        ended = at_once([[*DIGITS, *options]] * 3, tmp_path)
        assert is_whole(tmp_path / "x")
        assert names_in(tmp_path) == ["x"]
        made = sum("wrote x" in stdout for _, stdout, _ in ended)
        if before and not options:
            assert [code for code, *_ in ended] == [2, 2, 2]
            assert all("x exists; give another" in stderr for *_, stderr in ended)
            assert made == 0
            return
        assert [code for code, *_ in ended] == [0, 0, 0], ended
        assert made == (0 if before and options == ["--if-missing"] else 1)
        others = [stdout for _, stdout, _ in ended if "wrote x" not in stdout]
        assert all(
            text.startswith("prepare: nothing to do: x is there, 1438 train and 359 test rows")
            for text in others
        )
        assert (first == (tmp_path / "x/meta.json").stat().st_ino) == (made == 0)

    def test_ranks_of_one_launch(self, tmp_path):
        for options in ([], ["--overwrite"], ["--if-missing"]):
            done = run_ranks(
                4, [*DIGITS, *options], tmp_path, fresh=True
            )  # by the parent it is one
            assert is_whole(tmp_path / "x")
            made = done.stdout.count("wrote x")
            assert made == (0 if options == ["--if-missing"] else 1)
            assert done.stdout.count("nothing to do") <= 1  # not once a rank
        assert names_in(tmp_path) == ["x"]

    def test_other_parameters_are_no_data_of_ones_own(self, tmp_path):
        ended = at_once([[*DIGITS, "--seed", str(seed)] for seed in (1, 2)], tmp_path)
        assert sorted(code for code, *_ in ended) == [0, 2]
        (refused,) = [stderr for code, _, stderr in ended if code]
        line = refused.splitlines()[-1]
        assert "x was made meanwhile with other parameters" in line
        assert "--overwrite" in line
        kept = load_meta(tmp_path / "x").made_by["parameters"]["seed"]
        done = run_python([*DIGITS, "--seed", str(3 - kept), "--overwrite"], tmp_path)
        assert "wrote x" in done.stdout  # what the line says leads somewhere
        ended = at_once([[*DIGITS, "--seed", str(s), "--overwrite"] for s in (4, 5)], tmp_path)
        assert [code for code, *_ in ended] == [0, 0]
        assert sum("wrote x" in stdout for _, stdout, _ in ended) == 2  # one after the other

    def test_if_missing_takes_another_ones(self, tmp_path):
        run_python([*DIGITS, "--seed", "5"], tmp_path)
        done = run_python([*DIGITS, "--if-missing"], tmp_path)
        assert done.stdout.count("\n") == 1
        assert "--seed 5" in done.stdout
        refused = run_python([*DIGITS, "--if-missing", "--overwrite"], tmp_path, check=False)
        assert refused.returncode == 2
        assert "give one of them" in refused.stderr
        (tmp_path / "x/meta.json").write_text("{}")
        refused = run_python([*DIGITS, "--if-missing"], tmp_path, check=False)
        assert refused.returncode == 2  # it is no data set that anyone could use
        assert "x/meta.json" in refused.stderr

    @pytest.mark.parametrize(
        ("number", "code", "said"),
        [
            (signal.SIGUSR1, 75, "prepare: stopped waiting: SIGUSR1; the same command goes on"),
            (signal.SIGINT, 130, "prepare: interrupted; nothing was written"),
            (signal.SIGTERM, 143, ""),
            (signal.SIGHUP, 129, ""),
        ],
    )
    def test_a_signal_ends_the_wait(self, tmp_path, number, code, said):
        with held(tmp_path / "x"):
            process = begun(DIGITS, tmp_path)
            line = process.stderr.readline()
            assert "x is being made by process 7 on mars, 0.0 MB so far" in line
            process.send_signal(number)
            _, stderr = process.communicate(timeout=_LIMIT_S)
            assert (process.returncode, stderr.strip()) == (code, said)
            assert names_in(tmp_path) == [".x.lock"]
        assert "wrote x" in run_python(DIGITS, tmp_path).stdout  # whose file that is, nobody has it
        assert names_in(tmp_path) == ["x"]

    @pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
    def test_who_converts_leaves_nothing(self, tmp_path, number):
        process = begun(MADE, tmp_path)
        wait_for(lambda: list(tmp_path.glob(".x.partial-*/*.h5")))
        process.send_signal(number)
        process.send_signal(number)  # impatience does not end the tidying up
        process.communicate(timeout=_LIMIT_S)
        assert process.returncode == 128 + number
        assert names_in(tmp_path) == []

    def test_nohup_and_a_warning_of_slurm_change_nothing(self, tmp_path):
        words = ["-c", "import signal, os, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); "]
        words[1] += f"os.execv(sys.executable, [sys.executable, *{MADE!r}])"
        process = begun(words, tmp_path)
        wait_for(lambda: list(tmp_path.glob(".x.partial-*/*.h5")))
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGUSR1)
        process.communicate(timeout=_LIMIT_S)
        assert process.returncode == 0
        assert is_whole(tmp_path / "x")

    def test_what_a_kill_left_is_cleared_by_the_next(self, tmp_path):
        process = begun(MADE, tmp_path)
        wait_for(lambda: list(tmp_path.glob(".x.partial-*/*.h5")))
        process.kill()
        process.communicate(timeout=_LIMIT_S)
        assert len(names_in(tmp_path)) == 2
        done = run_python(MADE, tmp_path)
        assert "removing" in done.stderr
        assert names_in(tmp_path) == ["x"]

    def test_a_lock_file_that_is_removed_mixes_nothing(self, tmp_path):
        """Then both convert, and the second takes what the first made."""
        first = begun(MADE, tmp_path)
        wait_for(lambda: list(tmp_path.glob(".x.partial-*/*.h5")))
        (tmp_path / ".x.lock").unlink()
        second = begun(MADE, tmp_path)
        ended = [(p.communicate(timeout=_LIMIT_S)[0], p.returncode) for p in (first, second)]
        assert [code for _, code in ended] == [0, 0]
        assert "nothing to do" in ended[0][0] or "nothing to do" in ended[1][0]
        assert is_whole(tmp_path / "x")
        assert names_in(tmp_path) == ["x"]


class TestTraining:
    def test_the_quickstart_in_an_empty_folder(self, tmp_path):
        """Its data are made once; and its two runs have two folders, in whatever second."""
        ended = at_once([TRAIN] * 3, tmp_path)
        assert [code for code, *_ in ended] == [0, 0, 0], ended
        assert is_whole(tmp_path / "data/digits")
        runs = names_in(tmp_path / "runs")
        assert len(runs) == 3
        for run in runs:
            assert (tmp_path / "runs" / run / "STATUS").read_text() == "finished\n"
            starts = json.loads((tmp_path / "runs" / run / "run.json").read_text())["starts"]
            assert len(starts) == 1
        assert names_in(tmp_path / "data") == ["digits"]

    def test_a_name_twice_is_one_run(self, tmp_path):
        run_python([*DIGITS[:-1], "digits"], tmp_path)
        words = command("a", *SMALL, "train.rounds=3")
        ended = at_once([words] * 2, tmp_path)
        assert sorted(code for code, *_ in ended) == [0, 2]
        (refused,) = [stderr for code, _, stderr in ended if code]
        assert "--resume, or give another --name" in refused.splitlines()[-1]
        assert (tmp_path / "runs/a/STATUS").read_text() == "finished\n"

    def test_a_resume_twice_is_one_run(self, tmp_path):
        run_python([*DIGITS[:-1], "digits"], tmp_path)
        words = command("a", *SMALL, "train.rounds=100000", resume=True)
        one = begun(words, tmp_path)
        wait_for(lambda: (tmp_path / "runs/a/metrics.jsonl").exists())
        other = run_python(words, tmp_path, check=False)
        assert other.returncode == 2
        assert "another run is writing into runs/a (process" in other.stderr.splitlines()[-1]
        one.send_signal(signal.SIGTERM)
        one.communicate(timeout=_LIMIT_S)
        assert one.returncode == 75


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("outputs")
    run_python([*DIGITS[:-1], "digits"], place)
    run_python(command("a", *SMALL, "train.rounds=3"), place)
    return place


class TestOutputs:
    @pytest.mark.parametrize(
        ("program", "option"), [("evaluate", "--predictions"), ("show", "--export")]
    )
    def test_a_file_is_written_by_one(self, place, program, option):
        words = ["-m", f"ist_hpc.{program}", "runs/a", option, f"{program}.out"]
        words += ["--data", "digits"] if program == "evaluate" else []
        ended = at_once([words] * 2, place)
        assert sorted(code for code, *_ in ended) == [0, 2], ended
        (refused,) = [stderr for code, _, stderr in ended if code]
        assert "the file exists; add --overwrite" in refused.splitlines()[-1]
        ended = at_once([[*words, "--overwrite"]] * 2, place)
        assert [code for code, *_ in ended] == [0, 0], ended
        assert [name for name in names_in(place) if name.startswith(".")] == []
        if program == "evaluate":
            with h5py.File(place / "evaluate.out") as file:
                assert len(file["logits"]) == 359

    def test_a_picture_is_one_of_them(self, place):
        pytest.importorskip("matplotlib")
        words = ["-m", "ist_hpc.plot", "runs/a", "--output", "a.png"]
        ended = at_once([words] * 2, place)
        assert [code for code, *_ in ended] == [0, 0], ended
        assert (place / "a.png").read_bytes().endswith(b"IEND\xaeB`\x82")
        assert [name for name in names_in(place) if name.startswith(".")] == []

    def test_a_study_is_conducted_by_one(self, place):
        words = ["-m", "ist_hpc.bench", "scaling", "--methods", "sgd", "--ranks", "1"]
        words += ["--output", "study", "--set", *SMALL, "train.rounds=2"]
        ended = at_once([words] * 2, place)
        codes = sorted(code for code, *_ in ended)
        assert codes in ([0, 0], [0, 2]), ended
        for code, _, stderr in ended:
            if code:
                assert "another study is at work in study" in stderr.splitlines()[-1]
                assert "process" in stderr.splitlines()[-1]
        before = (place / "study/scaling.csv").read_text()
        assert before.count("\nsgd,") == len(set(before.splitlines()[1:]))
        assert run_python(words, place).returncode == 0  # what the line says leads somewhere
        assert (place / "study/scaling.csv").read_text() == before


@pytest.mark.skipif(not shutil.which("unshare"), reason="makes other hosts of this one")
def test_processes_with_one_number_have_names_of_their_own(tmp_path):
    """As in containers, or on two hosts: each is the first process of its own."""
    program = "from pathlib import Path; import os, ist_hpc.common.disk.files as f; "
    program += "print(os.getpid(), f.hidden_beside(Path('x')))"
    words = ["unshare", "--pid", "--fork", sys.executable, "-c", program]
    said = []
    for _ in range(2):
        done = subprocess.run(
            words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode:
            pytest.skip(f"unshare is refused here: {done.stderr}")
        said.append(done.stdout.split())
    assert said[0][0] == said[1][0] == "1"
    assert said[0][1] != said[1][1]
    assert Path(said[0][1]).name.startswith(".x.partial-")

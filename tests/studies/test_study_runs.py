"""The studies as users start them: real runs under mpirun, stopped and gone on with."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ist_hpc import plot
from ist_hpc.studies.launches import HOSTS_SCRIPT
from tests.helpers.launching import ROOT, one_error_line, run_python

pytestmark = pytest.mark.long

ENVIRONMENT = {
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}
SETTINGS = ["data.path=digits", "model.hidden=[20]", "train.rounds=4", "evaluate.every_rounds=2"]


@pytest.fixture
def place(trained, tmp_path):
    shutil.copytree(trained.data, tmp_path / "digits")
    return tmp_path


def command(name, *options):
    arguments = ["-m", "ist_hpc.bench", name, "--config", ROOT / "configs/quickstart.yaml"]
    arguments += ["--ranks", "2", "--output", "study", *options, "--json", "--set", *SETTINGS]
    return [str(word) for word in arguments]


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_scaling_study_that_is_stopped_goes_on(place, capsys):
    options = ("--methods", "sgd", "ist:5", "--repeats", "1", "--steps", "8", "--warm-up", "3")
    scaling = command("scaling", *options)
    table = place / "study/scaling.csv"
    study = subprocess.Popen(
        [sys.executable, *scaling],
        cwd=place,
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 60
    while not table.exists() and study.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    study.send_signal(signal.SIGTERM)
    _, stderr = study.communicate(timeout=60)
    assert study.returncode == 130, stderr
    assert stderr.splitlines()[-1] == "bench: stopped: SIGTERM; the same command goes on"
    before = rows(table)
    assert [row["method"] for row in before] == ["sgd"]

    done = run_python(scaling, cwd=place)
    assert done.stderr.count(" done, ") == 1
    assert rows(table)[0] == {**before[0], **rows(table)[0]}  # not run again
    base, ist = json.loads(done.stdout)["summary"]
    assert (base["ranks"], ist["ranks"]) == (1, 2)
    assert base["speed_up"]["middle"] == 1
    assert ist["bytes_a_step"]["received"] > 0
    assert sum(ist["shares"].values()) == pytest.approx(1)
    (row,) = (row for row in rows(table) if row["method"] == "ist:5")
    assert (row["steps"], row["local_steps"], row["launch_steps"]) == ("10", "5", "15")
    assert not (place / "study/runs/ist-5-n2-0/checkpoints").exists()
    # epoch_s is that of all ranks: rows of an epoch over the samples of a step
    samples = 2 * int(row["batch_rows"])
    epoch_s = float(row["step_s"]) * int(row["train_rows"]) / samples
    assert float(row["epoch_s"]) == pytest.approx(epoch_s, rel=0.01)

    refused = run_python([*scaling[:-4], "optimizer.lr=0.5", *scaling[-4:]], cwd=place, check=False)
    assert "lr was 0.1, now 0.5" in one_error_line(refused)
    pytest.importorskip("matplotlib")
    assert plot.main([str(place / "study"), "--output", str(place / "a.png"), "--table"]) == 0
    assert "| ist:5 " in capsys.readouterr().out


def test_a_convergence_study_takes_more_seeds(place, capsys):
    options = ("--methods", "ist:5", "--seeds", "0")
    done = run_python(command("convergence", *options), cwd=place)
    (first,) = json.loads(done.stdout)["rows"]
    table = place / "study/convergence.csv"
    (place / "seconds.csv").write_text(
        "method,ranks,repeat,hosts,step_s,epoch_s\nist:5,2,0,1gbit,0.5,9\n"
    )
    more = command("convergence", "--seconds-from", "seconds.csv", *options, "1")
    done = run_python(more, cwd=place)
    assert done.stderr.count(" done, ") == 1
    figures = json.loads(done.stdout)
    assert figures["rows"][0] == first
    assert [row["seed"] for row in rows(table)] == ["0", "1"]
    (ist,) = figures["summary"]
    (common,) = (at for at in ist["to_level"] if at["level"] == figures["common_level"])
    assert common["steps"]["count"] == 2
    assert common["product_s"]["middle"] == pytest.approx(0.5 * common["steps"]["middle"])
    assert common["seconds"]["high"] < common["product_s"]["low"]
    assert {"train", "exchange", "evaluate", "save"} <= set(ist["shares"])

    pytest.importorskip("matplotlib")
    arguments = [str(place / "study"), "--x", "seconds", "bytes", "--table", "--seconds-from"]
    arguments += [str(place / "seconds.csv"), "--output", str(place / "a.png")]
    assert plot.main(arguments) == 0
    assert "PRODUCT of steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "magic"], "no method 'magic'"),
        (["--methods", "ist:5", "--set-for", "ddp", "a=1"], "--set-for wants METHOD"),
        (["--methods", "ist:5", "--set-for", "ist:5", "optimizer.lr=x"], "optimizer.lr"),
        (["--methods", "ist:5", "--launcher", "mpirun"], "with {ranks} in it"),
        (["--methods", "ist:5", "--hosts", "fast"], "--hosts wants none or a rate"),
        (["--methods", "ist:5", "--levels", "75"], "--levels are of 1"),
        (["--methods", "ist:5", "--seconds-from", "none.csv"], "cannot read none.csv"),
    ],
)
def test_bad_options_are_one_line_and_write_nothing(
    tmp_path, capsys, monkeypatch, options, message
):
    from ist_hpc.bench.__main__ import main

    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main(command("convergence", *options)[2:]) == 2
    finally:
        signal.signal(signal.SIGTERM, before)
    error = capsys.readouterr().err
    assert error.startswith("bench: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_a_study_whose_first_run_has_bad_input_ends(tmp_path):
    options = ("--methods", "sgd", "ist:5", "--launcher", "env RANKS={ranks}")
    done = run_python(command("scaling", *options), cwd=tmp_path, check=False)
    assert "digits" in one_error_line(done)


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("tc"),
    reason="network namespaces need root and iproute2 (ip, tc)",
)
def test_a_study_on_hosts_reads_their_interfaces_and_takes_them_down(place):
    options = ("--methods", "ist:5", "--repeats", "1", "--steps", "5", "--hosts", "1gbit")
    done = run_python(command("scaling", *options), cwd=place)
    (row,) = rows(place / "study/scaling.csv")
    assert row["hosts"] == "1gbit"
    assert int(row["launch_nic_bytes"]) > int(row["launch_counted_bytes"]) > 0
    assert json.loads(done.stdout)["summary"][0]["launch_nic_bytes"]["count"] == 1
    assert subprocess.run([HOSTS_SCRIPT, "on", "h1", "true"], check=False).returncode != 0

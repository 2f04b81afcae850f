"""`python -m ist_hpc.plot`: reading runs, grouping them, the table and the picture."""

import json
import re
import struct
import subprocess
import sys

import numpy as np
import pytest
import yaml

from ist_hpc import plot
from ist_hpc.common.errors import InputError
from ist_hpc.studies.plots import curves, draw
from ist_hpc.studies.plots import runs as plot_runs


def make_run(
    folder, name, accuracies=(0.5, 0.8, 0.7), ranks=4, steps=10, seed=0, data="data/x", **config
):
    """A run folder with an evaluation after every second round."""
    path = folder / name
    path.mkdir(parents=True)
    config = {"name": "tiny", "seed": seed, "data": {"path": data, "batch_size": 8}} | config
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "run.json").write_text(json.dumps({"starts": [{"ranks": 1}, {"ranks": ranks}]}))
    rows = []
    for index, accuracy in enumerate(accuracies):
        for number in (2 * index + 1, 2 * index + 2):
            at = {"round": number, "steps": number * steps, "samples": number * steps * ranks * 8}
            spent = {"train": 1.5, "exchange": 0.5}
            rows.append({"kind": "round", **at, "seconds": spent, "bytes_received": 1000})
        rows.append({"kind": "evaluation", **at, "test": {"accuracy": accuracy}})
    rows.append({"kind": "save", **at})
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(*paths, group=False, labels=()):
    return curves.curves([plot_runs.read_run(path) for path in paths], group, labels)


def test_what_is_waited_after_a_round_is_of_the_round():
    """It is known, and written, only with the next row."""
    at = {"steps": 1, "samples": 1, "bytes_received": 0, "test": {"accuracy": 0.5}}
    kinds = ["round", "round", "evaluation", "round", "save", "round", "evaluation"]
    waits = [100.0, 1.0, 2.0, 400.0, 3.0, 800.0, 4.0]  # before the first, after the first, ...
    rows = [
        {"kind": kind, "round": place, **at, "seconds": {"train": 10.0, "wait": wait}}
        for place, (kind, wait) in enumerate(zip(kinds, waits, strict=True))
    ]
    assert plot_runs.evaluations(rows, "accuracy")["seconds"].tolist() == [23, 50]


def refused(capsys, *arguments):
    """The one line that a bad command line gives."""
    assert plot.main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("plot: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def size_of_png(path):
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", content[16:24])


# Reading.


def test_points_of_a_run(tmp_path):
    run = plot_runs.read_run(make_run(tmp_path, "a"))
    assert run.ranks == 4
    assert {key: values.tolist() for key, values in run.points.items()} == {
        "steps": [20, 40, 60],
        "samples": [640, 1280, 1920],
        "seconds": [4, 8, 12],
        "bytes": [2000, 4000, 6000],
        "test": [0.5, 0.8, 0.7],
    }


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_that_is_still_being_written_is_left_out(tmp_path, cut):
    path = make_run(tmp_path, "a") / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"kind": "evaluation", "round": 8, "test": {"accuracy": 0.9}}'[:cut])
    assert plot_runs.read_metrics(path) == [json.loads(line) for line in whole.splitlines()]


def test_a_damaged_line_before_the_last_is_named(tmp_path):
    path = make_run(tmp_path, "a") / "metrics.jsonl"
    lines = path.read_text().splitlines()
    lines[2] = lines[2][:20]
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 3"):
        plot_runs.read_run(path.parent)


def test_a_row_of_another_version_is_named(tmp_path):
    path = make_run(tmp_path, "a") / "metrics.jsonl"
    path.write_text('{"kind": "evaluation", "round": 1}\n')
    with pytest.raises(InputError, match="row 1: KeyError 'test'"):
        plot_runs.read_run(path.parent)


def test_a_round_that_a_resume_evaluates_again_counts_once():
    row = {"kind": "evaluation", "round": 3, "steps": 30, "samples": 30}
    again = [row | {"test": {"accuracy": value}} for value in (0.1, 0.2)]
    assert plot_runs.evaluations(again, "accuracy")["test"].tolist() == [0.2]


# Groups.


def test_groups_are_runs_that_differ_in_seed_or_fold_only(tmp_path):
    runs = [
        make_run(tmp_path, "a"),
        make_run(tmp_path, "b", seed=1),
        make_run(tmp_path, "c", data="data/x-fold2"),
        make_run(tmp_path, "ranks", ranks=2),
        make_run(tmp_path, "lr", optimizer={"lr": 0.5}),
        make_run(tmp_path, "data", data="data/y"),
    ]
    grouped = read(*runs, group=True)
    assert [[run.path.name for run in curve.runs] for curve in grouped] == [
        ["a", "b", "c"],
        ["ranks"],
        ["lr"],
        ["data"],
    ]
    assert [curve.label for curve in grouped] == ["tiny, 4 ranks (3 runs)", "ranks", "lr", "data"]
    assert len(read(*runs)) == 6


def test_mean_and_band_of_a_group(tmp_path):
    first = make_run(tmp_path, "a", (0.5, 0.8, 0.7))
    second = make_run(tmp_path, "b", (0.7, 0.8, 0.9), seed=1)
    (curve,) = read(first, second, group=True)
    at, mean, low, high = curve.over("steps")
    assert at.tolist() == [20, 40, 60]
    np.testing.assert_allclose(mean, [0.6, 0.8, 0.8])
    np.testing.assert_allclose(low, [0.5, 0.8, 0.7])
    np.testing.assert_allclose(high, [0.7, 0.8, 0.9])


def test_runs_evaluated_at_different_steps_meet_on_straight_lines(tmp_path):
    first = make_run(tmp_path, "a", (0.0, 1.0), steps=10)
    second = make_run(tmp_path, "b", (0.5, 0.5), steps=15, seed=1)
    (curve,) = read(first, second, group=True)
    at, mean, low, _ = curve.over("steps")
    assert at.tolist() == [30, 40]  # where both have values
    np.testing.assert_allclose(mean, [0.5, 0.75])
    np.testing.assert_allclose(low, [0.5, 0.5])


def test_labels_are_one_a_curve(tmp_path):
    paths = [make_run(tmp_path, "a"), make_run(tmp_path, "b", seed=1)]
    assert [curve.label for curve in read(*paths, labels=["x", "y"])] == ["x", "y"]
    with pytest.raises(InputError, match="got 2 for 1 groups"):
        read(*paths, group=True, labels=["x", "y"])


# The table and the picture.


def test_table(tmp_path, capsys):
    first = make_run(tmp_path, "a|b")
    second = make_run(tmp_path, "c", (0.9,), ranks=1)
    started = make_run(tmp_path, "d", (0.9,), ranks=1)
    (started / "metrics.jsonl").unlink()
    assert plot.main(["--table", str(first), str(second), str(started)]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| a\\|b | 4 | 60 | 1,920 | 0.8000 | 0.7000 |",
        "| c | 1 | 20 | 160 | 0.9000 | 0.9000 |",
        "| d | 1 | - | - | - | - |",
    ]


def test_table_of_a_group(tmp_path):
    paths = [make_run(tmp_path, "a"), make_run(tmp_path, "b", (0.6, 0.6, 0.9), seed=1)]
    row = curves.table(read(*paths, group=True)).splitlines()[-1]
    assert row == (
        "| tiny, 4 ranks (2 runs) | 4 | 60 | 1,920 | 0.8500 (0.8000 to 0.9000) | "
        "0.8000 (0.7000 to 0.9000) |"
    )


@pytest.mark.parametrize("kinds", [["steps"], ["steps", "samples"], ["seconds", "bytes"]])
def test_the_picture_has_a_panel_for_each_x(tmp_path, kinds):
    pytest.importorskip("matplotlib")
    paths = [
        make_run(tmp_path, "a"),
        make_run(tmp_path, "b", (0.6, 0.6), seed=1),
        make_run(tmp_path, "c", ranks=1),
    ]
    output = tmp_path / "curves.png"
    arguments = ["--group", "--output", output, *paths, "--x", *kinds]
    assert plot.main([str(argument) for argument in arguments]) == 0
    width, height = size_of_png(output)
    assert width > 600 * len(kinds)
    assert height > 500
    figure = draw.draw(read(*paths, group=True), kinds)
    for axes in figure.axes:
        assert len(axes.lines) == 2
        assert len(axes.collections) == 1  # the band of the group
        assert axes.get_xlabel()
    assert figure.axes[0].get_ylabel() == "test accuracy (%)"


def test_short_numbers_and_units_on_the_axes():
    def axis(most, x):
        return draw._axis([np.array([1.0, most])], x)

    assert axis(900, "steps") == ("local steps of a rank", 1)
    assert axis(90000, "steps") == ("local steps of a rank (thousands)", 1000)
    assert axis(3e9, "bytes") == ("received by all ranks in rounds (GiB)", 2**30)
    assert axis(10, "bytes") == ("received by all ranks in rounds (bytes)", 1)
    assert axis(1200, "seconds") == ("time of training and exchanging (minutes)", 60)


def test_bad_input_is_one_line(tmp_path, capsys):
    run = make_run(tmp_path, "a")
    empty = make_run(tmp_path, "empty")
    (empty / "metrics.jsonl").write_text("")
    png = tmp_path / "x.png"
    assert "nothing to do" in refused(capsys, run)
    assert "must end with .png" in refused(capsys, run, "--output", tmp_path / "x.jpeg")
    assert "invalid choice: 'epochs'" in refused(capsys, run, "--output", png, "--x", "epochs")
    assert "is no run folder" in refused(capsys, tmp_path / "none", "--output", png)
    assert "has no evaluation yet" in refused(capsys, run, empty, "--output", png)
    assert "make it: mkdir -p" in refused(capsys, run, "--output", tmp_path / "none" / "x.png")
    (run / "run.json").write_text("{}")
    assert "does not say how many ranks" in refused(capsys, run, "--table")


def test_without_matplotlib_the_cure_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    error = refused(capsys, make_run(tmp_path, "a"), "--output", tmp_path / "x.png")
    assert "pip install 'ist_hpc[plot]'" in error


def test_help_loads_nothing_heavy():
    code = (
        "import sys\nfrom ist_hpc import plot\n"
        "try:\n    plot.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'mpi4py', 'matplotlib', 'h5py'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--group" in done.stdout


def test_runs_with_sets_of_labels_have_a_metric_of_their_own(tmp_path):
    """The first of their results, or the one that is asked for."""
    ranked = make_run(tmp_path, "ranked", [0.5, 0.75])
    text = (ranked / "metrics.jsonl").read_text(encoding="utf-8")
    both = '{"precision_at_1": \\1, "precision_at_5": 0.25}'
    text = re.sub(r'\{"accuracy": ([0-9.]+)\}', both, text)
    (ranked / "metrics.jsonl").write_text(text, encoding="utf-8")
    run = plot_runs.read_run(ranked)
    assert (run.metric, run.points["test"].tolist()) == ("precision_at_1", [0.5, 0.75])
    assert plot_runs.read_run(ranked, "precision_at_5").points["test"].tolist() == [0.25, 0.25]
    assert "best precision at 1" in curves.table(curves.curves([run], False, []))
    assert plot.main([str(ranked), str(make_run(tmp_path, "classes", [0.5])), "--table"]) == 2

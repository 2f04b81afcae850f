"""`python -m ist_hpc.plot` on the folders of studies."""

import numpy as np
import pytest

from ist_hpc import plot
from ist_hpc.studies import scaling
from ist_hpc.studies.plots import draw
from ist_hpc.studies.plots import study as plot_study
from ist_hpc.studies.state import write_rows
from tests.studies.test_plot import make_run, refused, size_of_png


def scaling_study(folder, methods=("sgd", "ist:20", "ddp"), ranks=(2, 4)):
    """Epochs of ist take 10 / ranks seconds, those of the others 20."""
    folder.mkdir(parents=True)
    rows = []
    for repeat in range(2):
        for method in methods:
            for count in (1,) if method == "sgd" else ranks:
                epoch_s = (1 + repeat) * (10 / count if method == "ist:20" else 20)
                row = {"method": method, "ranks": count, "repeat": repeat, "hosts": "1gbit"}
                rows.append(row | {"step_s": epoch_s / 8, "epoch_s": epoch_s, "train_s": 1.0})
    write_rows(folder / "scaling.csv", rows)
    return folder


def convergence_study(folder, seeds=(0, 1)):
    rows = []
    for seed in seeds:
        for method, ranks in (("sgd", 1), ("ist:20", 2), ("ist:20", 4), ("ddp@fast", 2)):
            name = f"{method.replace(':', '-').replace('@', '-')}-n{ranks}-{seed}"
            values = (0.5, 0.6 + 0.1 * seed, 0.7)
            make_run(folder / "runs", name, values, ranks=ranks, seed=seed)
            row = {"method": method, "ranks": ranks, "seed": seed, "hosts": "none", "run": name}
            row |= {"metric": "accuracy", "best": max(values), "final": values[-1]}
            rows.append(row | {"train_s": 3.0, "rounds_s": 3.0})
    write_rows(folder / "convergence.csv", rows)
    return folder


def test_speed_up_over_ranks(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    study = scaling_study(tmp_path / "study")
    output = tmp_path / "a.png"
    assert plot.main([str(study), "--output", str(output), "--table"]) == 0
    assert size_of_png(output)[0] > 600
    text = capsys.readouterr().out
    assert "| ist:20 |     4 |" in text
    assert "8.00 |" in text
    figure = draw.draw_scaling(plot_study.scaling_summary([study / "scaling.csv"], ()))
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    np.testing.assert_allclose(lines["ist:20"].get_xydata(), [[2, 4], [4, 8]])
    np.testing.assert_allclose(lines["ddp"].get_xydata(), [[2, 1], [4, 1]])
    assert "sgd" not in lines  # what the others are over
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    assert entries == ["ist:20", "linear", "ddp"]


def test_without_one_rank_seconds_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    study = scaling_study(tmp_path / "study", methods=("ist:20",))
    figure = draw.draw_scaling(plot_study.scaling_summary([study / "scaling.csv"], ()))
    assert figure.axes[0].get_ylabel() == "seconds an epoch"
    np.testing.assert_allclose(figure.axes[0].lines[-1].get_ydata(), [7.5, 3.75])


def test_curves_of_a_study(tmp_path):
    pytest.importorskip("matplotlib")
    study = convergence_study(tmp_path / "study")
    arguments = ["--output", str(tmp_path / "a.svg"), "--x", "steps", "bytes", "--log"]
    assert plot.main([str(study), *arguments, "--ranks", "2"]) == 0
    lines = plot_study.curves(study / "convergence.csv", (), (), None, None)
    assert [(line.label, line.method, len(line.runs)) for line in lines] == [
        ("sgd, 1 rank", "sgd", 2),
        ("ist:20, 2 ranks", "ist:20", 2),
        ("ist:20, 4 ranks", "ist:20", 2),
        ("ddp@fast, 2 ranks", "ddp@fast", 2),
    ]
    axes = draw.draw(lines, ["steps"]).axes[0]
    colours = [line.get_color() for line in axes.lines]
    assert len(set(colours)) == 3
    assert colours[1] == colours[2]  # of one method
    assert axes.lines[1].get_linestyle() != axes.lines[2].get_linestyle()
    assert len(axes.collections) == 4  # the bands of the seeds
    only = plot_study.curves(study / "convergence.csv", (4,), ["a", "b"], None, None)
    assert [line.label for line in only] == ["a", "b"]  # one rank stays


def test_seconds_of_another_study(tmp_path, capsys):
    study = convergence_study(tmp_path / "study")
    times = scaling_study(tmp_path / "times")
    lines = plot_study.curves(study / "convergence.csv", (), (), None, times)
    step_s = scaling.read_steps(times).of("ist:20", 4, {})
    assert lines[2].runs[0].points["seconds"].tolist() == [20 * step_s, 40 * step_s, 60 * step_s]
    assert plot.main([str(study), "--table", "--seconds-from", str(times)]) == 0
    assert "PRODUCT" in capsys.readouterr().out
    fewer = scaling_study(tmp_path / "fewer", ranks=(2,))
    error = refused(capsys, study, "--output", tmp_path / "a.png", "--seconds-from", fewer)
    assert "has no seconds of ist:20 on 4 rank(s)" in error


def test_bad_input_is_one_line(tmp_path, capsys):
    study, both = scaling_study(tmp_path / "a"), scaling_study(tmp_path / "b")
    convergence_study(both)
    run = make_run(tmp_path, "run")
    assert "has two studies" in refused(capsys, both, "--table")
    assert plot.main([str(both / "convergence.csv"), "--table"]) == 0
    capsys.readouterr()
    assert "a study is plotted alone" in refused(capsys, study, run, "--table")
    assert "--x is not for" in refused(capsys, study, "--x", "bytes", "--table")
    assert "--group is not for" in refused(capsys, study, "--group", "--table")
    assert "--ranks is of a study" in refused(capsys, run, "--ranks", "2", "--table")
    assert "no rows yet" in refused(
        capsys, scaling_study(tmp_path / "c", ("ddp",)), "--ranks", "8", "--table"
    )
    (study / "scaling.csv").write_text("method,ranks\nddp,2\n")
    assert "line 2: no 'repeat'" in refused(capsys, study, "--table")

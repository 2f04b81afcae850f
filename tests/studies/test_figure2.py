"""`python -m ist_hpc.plan --figure2`: the paper's example, counted as it counts and as we do."""

import json
import struct
import sys

import numpy as np
import pytest

from ist_hpc import plan
from ist_hpc.common.sizes import ELEMENT_BYTES
from ist_hpc.cost import paper
from ist_hpc.exchange.placement import TensorSpec
from ist_hpc.studies import figure2

WEIGHTS = 36_800_000  # 4.8 million in the first and last layer, 32 million between


def run(capsys, *arguments):
    code = plan.main(["--figure2", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def report():
    """As the command makes it; no part of it is changed."""
    return json.loads(json.dumps(figure2.figures(figure2.own_specs())))


def column(report, counting, algorithm, quantity):
    values = report[counting][algorithm][quantity]
    return dict(zip(report["machines"], values, strict=True))


def test_the_example_is_the_papers(report):
    assert report["widths"] == [1000, 4000, 4000, 4000, 200]
    assert (report["batch_size"], report["local_steps"]) == (512, 10)
    assert report["machines"] == [1, 2, 4, 8, 16, 32]


@pytest.mark.parametrize(
    ("machines", "data_parallel_mb", "ist_mb", "ist_flops"),
    [(2, 294.4, 8.32, 6.39e10), (4, 588.8, 5.12, 3.93e10), (8, 1177.6, 3.52, 2.70e10)],
)
def test_the_papers_counting_worked_out_by_hand(
    report, machines, data_parallel_mb, ist_mb, ist_flops
):
    received = {
        name: column(report, "paper", name, "bytes_a_step")[machines] / 1e6
        for name in ("data_parallel", "ist")
    }
    assert received == pytest.approx({"data_parallel": data_parallel_mb, "ist": ist_mb})
    assert column(report, "paper", "ist", "flops_a_step")[machines] == pytest.approx(
        ist_flops, rel=2e-3
    )
    assert column(report, "paper", "data_parallel", "flops_a_step")[machines] == 6 * 512 * WEIGHTS


def test_a_network_of_one_hidden_layer_has_nothing_between():
    assert paper.layer_weights([3, 5, 7]) == [15, 35]
    assert paper.ist_weights([3, 5, 7], 5) == 50
    assert paper.ist_numbers([3, 5, 7], 5, 10) == 5
    assert paper.data_parallel_numbers([3, 5, 7], 5) == 250


def test_with_ist_both_fall_as_machines_are_added(report):
    """The paper's words of its figure, and so it is here: from two machines on."""
    for counting in ("paper", "this_program"):
        for quantity in ("bytes_a_step", "flops_a_step"):
            assert np.all(np.diff(report[counting]["ist"][quantity][1:]) < 0)


def test_this_program_moves_what_two_deals_move(report):
    """Against deals drawn here: a number is received where its holder changes."""
    ranks, units, rng = 4, 400, np.random.default_rng(5)
    spec = TensorSpec("fc2.weight", (units, units), ("a", "b"))
    home = np.repeat(np.arange(ranks), units // ranks)

    def holders():
        """[units, units]: who holds a weight; a subnet's own rank, or that of the row's home."""
        row, column = (rng.permutation(home) for _ in range(2))
        return np.where(row[:, None] == column, row[:, None], home[:, None])

    moved = np.mean([np.sum(holders() != holders()) for _ in range(20)])
    got = figure2.figures([spec])["this_program"]["ist"]["bytes_a_step"][2]
    assert got == pytest.approx(moved * ELEMENT_BYTES / 10, rel=0.02)


def test_data_parallel_beside_it_is_a_ring_allreduce(report):
    norms = 2 * 3 * 4000
    received = column(report, "this_program", "data_parallel", "bytes_a_step")
    assert received[1] == 0
    assert received[8] == pytest.approx(2 * 7 * (WEIGHTS + norms) * 4)
    whole = 2 * 512 * (3 * WEIGHTS - 4_000_000)  # the first layer needs no gradient of its input
    assert set(report["this_program"]["data_parallel"]["flops_a_step"]) == {whole}
    assert column(report, "this_program", "ist", "flops_a_step")[1] == whole


def test_the_table_has_the_numbers_and_says_how_they_are_counted(capsys, report):
    code, out, _ = run(capsys)
    assert code == 0
    rows = [line.split() for line in out.splitlines() if line.startswith("8 ")]
    for cells, quantity, unit in zip(
        rows, ("bytes_a_step", "flops_a_step"), (1e6, 1e9), strict=True
    ):
        expected = [
            column(report, counting, name, quantity)[8] / unit
            for counting in ("paper", "this_program")
            for name in ("data_parallel", "ist")
        ]
        got = [float(cell.replace(",", "")) for cell in cells[1:]]
        assert got == pytest.approx(expected, abs=0.006)
    flat = " ".join(out.split())
    assert all(text in flat for text in figure2.COUNTING.values())
    assert max(len(line) for line in out.splitlines()) <= 100


def test_json_is_the_same_for_a_program(capsys, report):
    code, out, _ = run(capsys, "--json")
    assert code == 0
    assert json.loads(out) == report


def test_the_picture_has_two_panels_of_four_lines(capsys, tmp_path, report):
    pytest.importorskip("matplotlib")
    output = tmp_path / "figure2.png"
    code, out, _ = run(capsys, "--output", output)
    assert code == 0
    assert out.startswith("Figure 2 of the paper")
    content = output.read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", content[16:24])
    assert width > 1500
    assert height > 600
    panels = figure2.draw(report).axes
    for axes, quantity, unit in zip(
        panels, ("bytes_a_step", "flops_a_step"), (1e6, 1e9), strict=True
    ):
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        lines = {line.get_label(): line.get_xydata() for line in axes.get_lines()}
        assert list(lines) == [
            "data parallel (the paper's counting)",
            "IST (the paper's counting)",
            "data parallel, ring (this program)",
            "IST (this program)",
        ]
        expected = column(report, "this_program", "ist", quantity)
        drawn = [(n, value / unit) for n, value in expected.items() if value > 0]
        assert lines["IST (this program)"].tolist() == [list(point) for point in drawn]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--ranks", "2"], "takes no --ranks"),
        (["--rounds", "3"], "takes no --rounds"),
        (["--memory-gb", "16"], "takes no --memory-gb"),
        (["--set", "seed=1"], "takes no --set"),
        (["--output", "a.jpg"], "--output must end with .png, .pdf, .svg, got a.jpg"),
        (["--output", "no/folder/a.png"], "make it: mkdir -p no/folder"),
    ],
)
def test_bad_input_is_one_line(capsys, arguments, says):
    if "make it" in says:
        pytest.importorskip("matplotlib")
    code, out, err = run(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err


def test_without_matplotlib_the_cure_is_said(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, err = run(capsys, "--output", tmp_path / "x.png")
    assert (code, out) == (2, "")
    assert "pip install 'ist_hpc[plot]'" in err
    assert run(capsys)[0] == 0

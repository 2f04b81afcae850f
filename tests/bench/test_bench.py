"""The benchmarks run and count what they say; how fast they are is for people to read."""

import json

import pytest

from tests.helpers.launching import ROOT, one_error_line, run_python, run_ranks

pytestmark = pytest.mark.long

WIDTHS = ["model.inputs=20", "model.outputs=3"]


def bench(tmp_path, name, *settings, ranks=2):
    arguments = ["-m", "ist_hpc.bench", name, "--json", "--rounds", "2", "--config"]
    arguments += [ROOT / "configs/quickstart.yaml", "--set", *WIDTHS, *settings]
    return json.loads(run_ranks(ranks, arguments, cwd=tmp_path).stdout)


def test_exchange_counts_the_bytes_of_a_round(tmp_path):
    figures = bench(tmp_path, "exchange", "model.hidden=[64]", "optimizer.momentum=0")
    elements = 64 * (20 + 2 + 3) / 2 * (1 - 1 / 2)
    assert figures["ranks"] == 2
    # Two rounds of one seed: near the mean, whose spread is that of a few units.
    assert 0.5 < figures["mib_received_a_rank"] * 2**20 / (4 * elements) < 1.5
    assert len(figures["ratio"]) == len(figures["exchange_s"]) == 2


def test_step_takes_turns_with_a_bare_loop(tmp_path):
    figures = bench(tmp_path, "step", "model.hidden=[64,32]", "train.local_steps=2")
    assert len(figures["step_s"]) == len(figures["bare_loop_step_s"]) == 2
    assert min(figures["step_s"]) > 0


@pytest.mark.parametrize("loss", ["softmax", "sampled_softmax"])
def test_products_takes_turns_with_bare_products(tmp_path, loss):
    sizes = ["model.inputs=90", "model.outputs=700", "model.hidden=[16]", "data.row_entries=5"]
    kind = ["model.output_norm=none", f"model.loss={loss}", "model.label_block=64"]
    figures = bench(tmp_path, "products", *sizes, *kind)
    names = ("step_s", "products_whole_s", "products_in_blocks_s", "ratio")
    assert all(len(figures[name]) == 2 and min(figures[name]) > 0 for name in names)


def test_products_are_of_many_labels(tmp_path):
    arguments = ["-m", "ist_hpc.bench", "products", "--config", ROOT / "configs/speech2.yaml"]
    line = one_error_line(run_python(arguments, cwd=tmp_path, check=False))
    assert "bench products is of `model.loss: softmax, bce, sampled_softmax`" in line


def test_a_benchmark_says_that_it_needs_a_configuration(tmp_path):
    done = run_python(["-m", "ist_hpc.bench", "plan"], cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "the following arguments are required: --config" in done.stderr


def test_plan_needs_no_ranks(tmp_path):
    figures = bench(tmp_path, "plan", "model.hidden=[128,96]", ranks=1)
    assert set(figures) == {"4", "16", "64"}
    assert min(row["pieces"] for row in figures.values()) > 0


def test_a_configuration_without_widths_is_refused(tmp_path):
    arguments = ["-m", "ist_hpc.bench", "plan", "--config", ROOT / "configs/quickstart.yaml"]
    done = run_python(arguments, cwd=tmp_path, check=False)
    assert "`model.inputs` and `model.outputs` must be in" in one_error_line(done)

"""`python -m ist_hpc.plan`: its numbers, its table, its errors, and that it starts nothing."""

import json
import subprocess
import sys

import numpy as np
import pytest

from ist_hpc import plan
from ist_hpc.common.errors import InputError
from ist_hpc.config import loading
from ist_hpc.cost.limits import BASE_BYTES
from ist_hpc.cost.report import plan_report
from ist_hpc.cost.table import ITEMS
from ist_hpc.data.shards import DatasetWriter

CONFIG = """\
name: tiny
seed: 3
data: {path: nowhere, batch_size: 16}
model: {hidden: [24, 30], inputs: 12, outputs: 5}
train: {rounds: 4, local_steps: 5}
optimizer: {kind: adam}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with tiny.yaml, and no data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    return tmp_path


def run(capsys, *arguments):
    code = plan.main(["--config", "tiny.yaml", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def report(capsys, *arguments):
    code, out, _ = run(capsys, "--json", *arguments)
    assert code == 0
    return json.loads(out)


def refused(capsys, *arguments):
    """The one line that a bad command line gives."""
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("plan: error: ")
    assert err.count("\n") == 1
    return err


def write_data(folder, features=(3, 4), classes=5, rows=40):
    names = [f"c{i}" for i in range(classes)]
    with DatasetWriter(folder, name="d", feature_shape=features, classes=names) as writer:
        for split in ("train", "test"):
            values = np.zeros((rows, *features), dtype=np.float32)
            writer.append(split, values, np.zeros(rows, dtype=np.int64))


def test_json_has_the_numbers_of_all_algorithms(capsys):
    got = report(capsys, "--ranks", "3", "--rounds", "6")
    assert (got["ranks"], got["rounds"], got["seed"]) == (3, 6, 3)
    assert got["model"]["weights"] == 12 * 24 + 24 * 30 + 30 * 5 + 2 * (24 + 30)
    ist = got["bytes_a_round"]["ist"]
    assert [e["to_round"] for e in ist["exchanges"]] == list(range(7))
    received = [value for e in ist["exchanges"][1:] for value in e["received"]]
    exact = ist["exact_a_rank"]
    assert exact == {
        "mean": sum(received) / len(received),
        "min": min(received),
        "max": max(received),
    }
    assert exact["mean"] == pytest.approx(ist["expected_a_rank"], rel=0.1)
    for part in ("memory", "bytes_a_round", "flops_a_step"):
        assert list(got[part]) == ["ist", "local_sgd", "data_parallel"]
    assert got["flops_a_step"]["ist"]["a_rank"] < got["flops_a_step"]["local_sgd"]["a_rank"]
    bytes_of = {name: value["expected_a_rank"] for name, value in got["bytes_a_round"].items()}
    carried = 3  # the weights and the two moments of Adam
    assert carried * bytes_of["data_parallel"] == 5 * bytes_of["local_sgd"]


@pytest.mark.parametrize("setting", ["train.precision=bf16", "train.on_nan=skip_round"])
def test_totals_are_the_sums_of_their_items_and_the_table_has_each(capsys, setting):
    memory = report(capsys, "--ranks", "2", "--set", setting)["memory"]
    for algorithm in memory.values():
        for phase in algorithm["phases"].values():
            total = phase.pop("total")
            assert total == sum(phase.values())
            assert set(phase) <= set(ITEMS)
            assert total <= algorithm["peak"]


def test_more_ranks_need_less_memory_each(capsys):
    peaks = [report(capsys, "--ranks", n, "--set", "model.hidden=[400,400]") for n in "248"]
    weights = [got["memory"]["ist"]["phases"]["training"]["weights"] for got in peaks]
    assert weights[0] > weights[1] > weights[2]


def test_the_table_says_what_the_json_says(capsys):
    wide = ("--ranks", "4", "--set", "model.hidden=[1000,1000]")
    got = report(capsys, *wide)
    code, out, _ = run(capsys, *wide)
    assert code == 0
    assert "tiny: mlp 12-1000-1000-5" in out
    assert f"{got['memory']['ist']['peak'] / 2**20:,.0f} MiB" in out
    line = next(line for line in out.splitlines() if line.startswith("received by a rank a round"))
    mib = [value["expected_a_rank"] / 2**20 for value in got["bytes_a_round"].values()]
    assert [float(cell) for cell in line.split()[-3:]] == pytest.approx(mib, rel=0.01)
    assert max(len(line) for line in out.splitlines()) <= 100


# What fits.

WIDE = (
    *("--rounds", "1", "--set", "model.hidden=[3000,3000]", "data.window_mib=1"),
    *("exchange.buffer_mib=8", "evaluate.calibration_rows=64", "evaluate.batch_rows=64"),
)
"""36 MB of middle weights, with Adam 144 MB in a step of one rank; little beside the weights."""


def test_without_a_memory_nothing_is_said_to_fit(capsys):
    assert "fits" not in report(capsys, "--ranks", "2")
    assert "fit" not in run(capsys, "--ranks", "2")[1]


def test_fits_says_what_fits_and_from_how_many_ranks(capsys):
    got = report(capsys, "--ranks", "4", "--memory-gb", "0.4", *WIDE)
    fits = got["fits"]
    assert (fits["memory_bytes"], fits["base_bytes"]) == (4 * 10**8, BASE_BYTES)
    for name in ("ist", "local_sgd", "data_parallel"):
        need = got["memory"][name]["peak"] + BASE_BYTES
        assert fits[name] == {"needs_bytes": need, "fits": need <= 4 * 10**8}


def test_the_fewest_ranks_fit_and_one_less_does_not(capsys):
    def need(ranks):
        got = report(capsys, "--ranks", str(ranks), "--memory-gb", "1", *WIDE)
        return got["fits"]["ist"]["needs_bytes"]

    memory_gb = str((need(3) + 1000) / 1e9)
    got = report(capsys, "--ranks", "2", "--memory-gb", memory_gb, *WIDE)
    fewest = got["fits"]["fewest_ranks_ist"]
    assert fewest == 3
    assert need(fewest) <= got["fits"]["memory_bytes"] < need(fewest - 1)
    assert not got["fits"]["ist"]["fits"]


def test_no_number_of_ranks_is_tried_that_the_narrowest_layer_forbids(capsys):
    got = report(capsys, "--ranks", "2", "--memory-gb", "0.01")
    assert (got["fits"]["fewest_ranks_ist"], got["fits"]["most_ranks_tried"]) == (None, 24)


def test_the_text_says_plainly_what_does_not_fit(capsys):
    small = ("--ranks", "4", *WIDE)
    got = report(capsys, *small, "--memory-gb", "0.4")["fits"]
    assert (got["ist"]["fits"], got["data_parallel"]["fits"]) == (True, False)
    _, out, _ = run(capsys, *small, "--memory-gb", "0.4")
    need = got["data_parallel"]["needs_bytes"] / 1e9
    assert f"data parallel does NOT fit: needs {need:.1f} GB of 0.4 GB a rank" in out
    assert "local SGD does NOT fit" in out
    assert "IST fits: needs 0." in out
    assert f"the fewest ranks with which IST fits: {got['fewest_ranks_ist']}" in out
    assert max(len(line) for line in out.splitlines()) <= 100
    _, out, _ = run(capsys, "--ranks", "4", "--memory-gb", "0.01")
    assert "the fewest ranks with which IST fits: none up to 24 will do" in out


def test_a_need_just_above_the_memory_is_told_apart_from_it(capsys):
    small = ("--ranks", "2", "--rounds", "1")
    need = report(capsys, *small, "--memory-gb", "1")["fits"]["ist"]["needs_bytes"]
    _, out, _ = run(capsys, *small, "--memory-gb", f"{(need - 10**5) / 1e9}")
    line = next(line for line in out.splitlines() if line.startswith("  IST does NOT fit"))
    assert line.split()[5] != line.split()[8]


def test_without_data_the_entries_of_a_row_make_it_sparse(capsys):
    """The first layer then costs what occurs; but an averaged gradient is a whole tensor."""
    labels = ("model.hidden=[24]", "model.inputs=5000", "model.loss=softmax")
    sparse = ("--ranks", "2", "--set", *labels, "model.output_norm=none", "data.row_entries=7.5")
    got = report(capsys, *sparse)
    gradient = {
        name: memory["phases"]["training"]["gradient"] for name, memory in got["memory"].items()
    }
    others = 24 * 5 + 2 * 24
    assert gradient["data_parallel"] == 4 * (24 * 5000 + others)
    assert gradient["local_sgd"] == 4 * (24 * 16 * 7.5 + others)
    assert gradient["ist"] < gradient["local_sgd"]
    flops = got["flops_a_step"]["local_sgd"]["a_rank"]
    assert flops == 16 * (4 * 24 * 7.5 + 6 * 24 * 5)
    assert got["flops_a_step"]["ist"]["all_ranks"] == flops


def test_widths_and_rows_come_from_the_data_if_they_are_there(capsys, folder):
    write_data(folder / "shards")
    without = ("--set", "model.inputs=null", "model.outputs=null", "data.path=shards")
    got = report(capsys, "--ranks", "2", *without)
    assert (got["model"]["inputs"], got["model"]["outputs"]) == (12, 5)
    assert got["memory"]["ist"]["phases"]["training"]["window"] == 20 * (4 * 12 + 8)
    assert got["memory"]["ist"]["phases"]["training"]["calibration"] == 40 * 12 * 4


def test_configured_widths_win_over_data_that_have_others(capsys, folder):
    write_data(folder / "shards", features=(7,))
    got = report(capsys, "--ranks", "2", "--set", "data.path=shards")
    assert got["model"]["inputs"] == 12
    assert got["memory"]["ist"]["phases"]["training"]["window"] == 256 << 20


def test_unknown_widths_are_refused(capsys):
    error = refused(capsys, "--ranks", "2", "--set", "model.outputs=null")
    assert "--set model.inputs" not in error
    assert "--set model.outputs=..." in error
    assert "nowhere/meta.json" in error


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--ranks", "25"], "axis `hidden1` has 24 units, too few for 25 ranks"),
        (["--ranks", "0"], "--ranks must be at least 1, got 0"),
        (["--ranks", "2", "--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--ranks", "two"], "invalid int value: 'two'"),
        ([], "--ranks; see python -m ist_hpc.plan --help"),
        (["--ranks", "2", "--set", "model.hiden=[4]"], "did you mean `model.hidden`"),
        (["--ranks", "2", "--config", "no.yaml"], "cannot read the configuration no.yaml"),
        (["--ranks", "2", "--memory-gb", "0"], "--memory-gb must be above 0"),
        (["--ranks", "2", "--memory-gb", "nan"], "--memory-gb must be above 0"),
        (["--ranks", "2", "--memory-gb", "inf"], "--memory-gb must be above 0"),
        (["--ranks", "2", "--memory-gb", "16G"], "invalid float value: '16G'"),
        (["--ranks", "2", "--output", "a.png"], "--output is of --figure2"),
        (["--figure2"], "--figure2 is the paper's own example and takes no --config"),
    ],
)
def test_bad_input_is_one_line(capsys, arguments, says):
    assert says in refused(capsys, *arguments)


def test_damaged_data_are_named(capsys, folder):
    (folder / "shards").mkdir()
    (folder / "shards" / "meta.json").write_text("{")
    assert "shards/meta.json" in refused(capsys, "--ranks", "2", "--set", "data.path=shards")


def test_plan_raises_for_callers():
    config = loading.load(None, ["model.inputs=8", "model.outputs=3"])
    with pytest.raises(InputError, match="too few for 1000 ranks"):
        plan_report(config, ranks=1000, rounds=1)


def loaded_after(arguments):
    """The modules of interest that a process has loaded after the command line."""
    code = (
        "import sys\nfrom ist_hpc import plan\ntry:\n"
        f"    assert plan.main({arguments!r}) == 0\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "names = ('torch', 'mpi4py', 'horovod', 'h5py', 'matplotlib')\n"
        "print(*(name for name in names if name in sys.modules), sep=',', file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    return set(done.stderr.strip().split(",")) - {""}


def test_help_loads_nothing_heavy():
    assert loaded_after(["--help"]) == set()


def test_a_plan_starts_no_mpi():
    assert loaded_after(["--config", "tiny.yaml", "--ranks", "4"]) == {"torch"}

"""The pure parts of the studies: methods, the plan, rows on disk, levels, tables."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ist_hpc.common.errors import InputError
from ist_hpc.config import loading
from ist_hpc.studies import convergence, one_run, scaling
from ist_hpc.studies.levels import common_level, default_levels, reached
from ist_hpc.studies.plots.runs import Run
from ist_hpc.studies.state import State, opened, read_rows, write_rows
from ist_hpc.studies.study import (
    Planned,
    SettingsFor,
    by_method,
    parse_method,
    parse_methods,
    parse_settings_for,
    plan_runs,
    settings_of,
)
from ist_hpc.studies.tables import (
    Table,
    markdown,
    over_least,
    share_table,
    shares_of,
    short,
    spread_of,
    told,
)

# Methods and the plan.


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ist:20", ("train.algorithm=ist", "train.local_steps=20")),
        ("ist", ("train.algorithm=ist",)),
        ("local_sgd:60@warm", ("train.algorithm=local_sgd", "train.local_steps=60")),
        ("data_parallel", ("train.algorithm=data_parallel", "train.compression=none")),
        ("data_parallel:fp16", ("train.algorithm=data_parallel", "train.compression=fp16")),
        ("ddp@high-rate", ("train.algorithm=ddp",)),
    ],
)
def test_methods(name, settings):
    method = parse_method(name)
    assert (method.name, method.settings, method.one_rank) == (name, settings, False)
    loading.parse("data: {path: x}\nmodel: {hidden: [4]}\ntrain: {epochs: 1}", "test", settings)


@pytest.mark.parametrize(
    "name",
    ["", "ist:", "ist:0", "ist:-3", "ist:x", "sgd:2", "ddp:fp16", "data_parallel:int8", "a/b"],
)
def test_other_methods_are_refused(name):
    with pytest.raises(InputError, match="no method"):
        parse_method(name)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["ist:2", "ddp", "ist:2"], "ist:2 is there twice"),
        (["ist:2@a", "ist@2-a"], "ist@2-a has the folder of ist:2@a"),
    ],
)
def test_methods_of_one_folder_are_refused(names, message):
    with pytest.raises(InputError, match=message):
        parse_methods(names)


def test_runs_are_interleaved():
    methods = parse_methods(["sgd", "ist:5", "ddp"])
    runs = [run.folder for run in plan_runs(methods, [4, 2], [0, 1])]
    assert runs == [
        *("sgd-n1-0", "ist-5-n2-0", "ddp-n2-0", "ist-5-n4-0", "ddp-n4-0"),
        *("sgd-n1-1", "ist-5-n2-1", "ddp-n2-1", "ist-5-n4-1", "ddp-n4-1"),
    ]


def test_settings_for_a_method_replace_common_ones():
    methods = parse_methods(["ist:5", "ddp"])
    given = [["ddp", "a=2", "b={seed}"], ["ddp/4", "a=3"]]
    special = parse_settings_for(given, methods)
    assert special[1] == SettingsFor("ddp", 4, ("a=3",))

    def settings(method, ranks):
        return settings_of(Planned(methods[method], ranks, 7), ["a=1"], special, seeds=True)

    assert settings(1, 4) == ["a=1", "train.algorithm=ddp", "a=2", "b=7", "a=3", "seed=7"]
    assert "a=3" not in settings(1, 2)
    assert "a=2" not in settings(0, 4)
    for bad in (["sgd", "a=1"], ["ddp/x", "a=1"], ["ddp"]):
        with pytest.raises(InputError, match="--set-for"):
            parse_settings_for([bad], methods)


# Rows on disk.

ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "method": st.sampled_from(["ist:20", "ddp@a,b", 'data"x']),
            "ranks": st.integers(1, 99),
            "repeat": st.integers(0, 9),
        },
        optional={"step_s": st.floats(1e-6, 1e6), "other_s": st.floats(-1, 1)},
    ),
    min_size=1,
)


@given(rows=ROWS)
def test_rows_come_back_as_they_were_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "scaling.csv"
    write_rows(path, rows)
    assert read_rows(path, ["method", "ranks", "repeat"]) == rows


def test_a_damaged_csv_is_one_line(tmp_path):
    path = tmp_path / "scaling.csv"
    path.write_text("method,ranks,repeat\nist,2,0\nist,2\n")
    with pytest.raises(InputError, match=r"scaling.csv, line 3: no 'repeat'"):
        State(tmp_path, "scaling", "repeat")
    path.write_text("method,ranks,repeat\nist,2,0,9\n")
    with pytest.raises(InputError, match="more fields than the first line"):
        State(tmp_path, "scaling", "repeat")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        State(tmp_path, "scaling", "repeat")


def test_a_study_takes_more_methods_but_no_other_settings(tmp_path):
    folder, hosts = tmp_path / "new", {"hosts": "1gbit"}
    ist, ddp = {"optimizer": {"lr": 0.1, "betas": (1, 2)}}, {"optimizer": {"lr": 0.3}}
    with opened(folder, "scaling", "repeat") as state:
        state.take_settings(hosts, {"ist": ist}, dict)
        state.add({"method": "ist", "ranks": 2, "repeat": 0})
        with (
            pytest.raises(InputError, match="another study is at work"),
            opened(folder, "scaling", "repeat"),
        ):
            pass
    with opened(folder, "scaling", "repeat") as state:
        assert state.done() == {("ist", 2, 0)}
        state.take_settings(hosts, {"ddp": ddp}, dict)
        for common, methods, message in (
            ({"hosts": "none"}, {}, "hosts was '1gbit', now 'none'"),
            (hosts, {"ddp": {"optimizer": {"lr": 0.4}}}, "ddp.optimizer.lr was 0.3, now 0.4"),
            (hosts, {"ist": {"optimizer": {"lr": 0.1, "betas": (1, 3)}}}, r"betas was \[1, 2\]"),
            (hosts, {"ist": {"optimizer": {"lr": 0.1}}}, "betas was .* now None"),
        ):
            with pytest.raises(InputError, match=message):
                state.take_settings(common, methods, dict)
    assert json.loads((folder / "scaling.json").read_text()) == {
        "common": hosts,
        "methods": {"ist": {"optimizer": {"lr": 0.1, "betas": [1, 2]}}, "ddp": ddp},
    }


def test_settings_of_an_earlier_version_are_compared_as_this_one_has_them(tmp_path):
    """A study goes on under a version that has more keys, and fewer."""

    def as_now(noted):
        return {"optimizer": {"decay": 0.0, **noted["optimizer"]}, "device": "cpu"}

    with opened(tmp_path, "scaling", "repeat") as state:
        state.take_settings({}, {"ist": {"optimizer": {"lr": 0.1}, "old": 1}}, as_now)
        now = {"optimizer": {"lr": 0.1, "decay": 0.0}, "device": "cpu"}
        state.take_settings({}, {"ist": now}, as_now)
        with pytest.raises(InputError, match=r"ist.optimizer.decay was 0.0, now 0.5"):
            state.take_settings({}, {"ist": {"optimizer": {"lr": 0.1, "decay": 0.5}}}, as_now)


def test_a_configuration_of_an_earlier_version_is_the_same(tmp_path):
    """It had the keys of all kinds of networks."""
    settings = ["model.kind=vgg11", "data.path=d", "optimizer.betas=[0.5, 0.9]"]
    now = dataclasses.asdict(loading.load(None, settings))
    noted = json.loads(json.dumps(now))
    noted["model"] |= {"sections": [], "min_blocks": 1, "loss": "auto", "label_block": 2048}
    del noted["train"]["precision"]
    assert one_run._as_now(noted) == now
    noted["model"]["sections"] = [1]
    assert one_run._as_now(noted) == noted


# What a scaling row says.


def round_row(steps, seconds, **sizes):
    return {"kind": "round", "steps": steps, "seconds": seconds, **sizes}


def test_measured_drops_warm_up_and_counts_the_rest():
    metrics = [
        round_row(10, {"train": 99.0, "wait": 99.0}, bytes_sent=10**6, bytes_received=10**6),
        round_row(20, {"train": 3.0, "wait": 1.0}, bytes_sent=400, bytes_received=400),
        round_row(
            *(30, {"train": 5.0, "wait": 1.0}), bytes_sent=0, bytes_received=0, bytes_averaged=800
        ),
        {"kind": "evaluation", "seconds": {"evaluate": 50.0}, "bytes_received": 20},
    ]
    row = scaling.measured(metrics, warm_up=1, ranks=2, batch_rows=8, train_rows=160)
    assert row["steps"] == 20
    assert row["step_s"] == pytest.approx(10 / 20)
    assert row["epoch_s"] == pytest.approx(10 / 20 * 160 / (2 * 8))
    assert (row["train_s"], row["wait_s"]) == (0.4, 0.1)
    assert (row["sent_bytes"], row["received_bytes"], row["averaged_bytes"]) == (10, 10, 20)
    assert (row["local_steps"], row["launch_steps"]) == (10, 30)
    assert row["launch_counted_bytes"] == (10**6 + 400 + 800 + 20) / 2
    with pytest.raises(InputError, match="IndexError"):
        scaling.measured(metrics, warm_up=3, ranks=2, batch_rows=8, train_rows=160)


def scaling_rows():
    rows = []
    for repeat, slow in enumerate((1.0, 2.0, 1.0)):
        common = {"repeat": repeat, "hosts": "1gbit", "received_bytes": 5e6, "averaged_bytes": 0}
        common |= {"launch_counted_bytes": 3e6, "launch_nic_bytes": 4e6, "launch_s": 9}
        base = {"step_s": 0.4 * slow, "epoch_s": 8.0 * slow, "train_s": 0.4, "other_s": 0.0}
        rows.append({"method": "sgd", "ranks": 1, **base, **common})
        own = {"step_s": 0.1 * slow, "epoch_s": 1.0 * slow, "train_s": 0.09, "other_s": 0.01}
        rows.append({"method": "ist:20", "ranks": 2, **own, **common})
    return rows


def test_speed_ups_are_of_the_same_repeat():
    base, ist = scaling.summary(scaling_rows())
    assert base["speed_up"]["low"] == base["speed_up"]["high"] == 1
    assert ist["speed_up"] == {"middle": 8, "low": 8, "high": 8, "count": 3}
    assert ist["step_s"] == {"middle": 0.1, "low": 0.1, "high": 0.2, "count": 3}
    assert ist["shares"] == pytest.approx({"train": 0.9, "other": 0.1})
    text = markdown(scaling.tables([base, ist]))
    assert "| ist:20 |     2 | 0.100 (0.100 to 0.200) |" in text
    assert "| 1.00 (1.00 to 2.00) |" in text
    assert "links of 1gbit" in text
    assert "10.0 % !" in text
    assert "more than 5% is not accounted for" in text


def test_seconds_a_step_of_a_study(tmp_path):
    rows = scaling_rows()
    thin = [row | {"method": "ist:20@thin", "step_s": 0.05} for row in rows if row["ranks"] == 2]
    write_rows(tmp_path / "scaling.csv", [*rows, *thin])
    steps = scaling.read_steps(tmp_path)
    assert steps == scaling.read_steps(tmp_path / "scaling.csv")
    assert steps.of("ist:20", 2, {}) == 0.1
    assert steps.of("ist:20@other-rate", 2, {}) == 0.1  # of the method without its label
    assert steps.of("ist:20@thin", 2, {}) == 0.05
    assert steps.of("sgd", 1, {}) == 0.4
    with pytest.raises(InputError, match=r"no seconds of ist:20 on 4 rank\(s\)"):
        steps.of("ist:20", 4, {})
    with pytest.raises(InputError, match="cannot read"):
        scaling.read_steps(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("section", "now", "message"),
    [
        ("data", {"batch_size": 64}, "seconds of ist:20 with `data.batch_size` 128, ist:20@a has"),
        ("train", {"local_steps": 60}, "with `train.local_steps` 20"),
        ("train", {"local_steps": 20, "warmup_steps": 9}, "has `train.warmup_steps`"),
        ("model", {"hidden": [9, 9]}, r"with `model.hidden` \[9\], ist:20@a has \[9, 9\]"),
    ],
)
def test_seconds_of_other_work_are_refused(tmp_path, section, now, message):
    """A product of one model's steps and another one's seconds would be no one's time."""
    rows = [row | {"batch_rows": 128, "local_steps": 20} for row in scaling_rows()]
    write_rows(tmp_path / "scaling.csv", rows)
    loading = {"model": {"kind": "mlp", "hidden": [9]}}
    State(tmp_path, "scaling", "repeat").take_settings({}, {"ist:20 on 2": loading}, dict)
    steps = scaling.read_steps(tmp_path)
    same = {"data": {"batch_size": 128}, "train": {"local_steps": 20}, "model": {"hidden": [9]}}
    assert steps.of("ist:20@a", 2, same) == 0.1
    with pytest.raises(InputError, match=message):
        steps.of("ist:20@a", 2, same | {section: now})


# Levels.


def make_run(name, values, steps=10, ranks=2):
    at = np.arange(1.0, len(values) + 1)
    points = {"steps": steps * at, "samples": 80 * at, "seconds": 2 * at, "bytes": 1e6 * at}
    return Run(Path(name), {}, ranks, points | {"test": np.array(values)}, "accuracy")


@given(
    values=st.lists(st.floats(0, 1), min_size=1, max_size=8),
    level=st.floats(0, 1, exclude_min=True),
)
def test_a_level_is_reached_at_the_first_evaluation_that_has_it(values, level):
    at = reached(make_run("a", values), level)
    hits = [index for index, value in enumerate(values, start=1) if value >= level]
    if not hits:
        assert at is None
    else:
        first = hits[0]
        assert at == {"steps": 10 * first, "samples": 80 * first} | {
            "seconds": 2 * first,
            "bytes": 1e6 * first,
        }


def test_common_and_default_levels():
    runs = [make_run("a", [0.1, 0.52, 0.3]), make_run("b", [0.2, 0.31])]
    assert common_level(runs) == 0.31
    assert default_levels(runs) == [0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5]
    assert common_level([*runs, make_run("c", [])]) is None
    assert default_levels([make_run("c", [])]) == []


def test_convergence_tables_with_the_product():
    runs = [make_run("a", [0.4, 0.6]), make_run("b", [0.2, 0.5]), make_run("c", [0.5, 0.7])]
    keys = [("ist:20", 2, 0), ("ist:20", 2, 1), ("ddp", 2, 0)]
    rows = [
        {"method": method, "ranks": ranks, "seed": seed, "run": run.path.name}
        | {"best": float(run.points["test"].max()), "final": float(run.points["test"][-1])}
        | {"metric": "accuracy", "train_s": 3.0, "evaluate_s": 1.0, "rounds_s": 3.0}
        for run, (method, ranks, seed) in zip(runs, keys, strict=True)
    ]
    step_s = {"a": 0.5, "b": 0.5, "c": 7.0}
    figures = convergence.summary(rows, runs, [0.4, 0.6], step_s)
    assert figures["levels"] == [0.4, 0.5, 0.6]
    assert figures["common_level"] == 0.5
    ist, ddp = figures["summary"]
    assert ist["best"] == pytest.approx({"mean": 0.55, "low": 0.5, "high": 0.6})
    at = {to["level"]: to for to in ist["to_level"]}
    assert at[0.4]["steps"] == {"middle": 15, "low": 10, "high": 20, "count": 2}
    assert at[0.5]["product_s"] == {"middle": 10, "low": 10, "high": 10, "count": 2}
    assert at[0.6]["seconds"]["count"] == 1
    assert [to["product_s"]["middle"] for to in ddp["to_level"]] == [70, 70, 140]
    text = convergence.show(figures | {"seconds_from": "study/scaling.csv"})
    assert "PRODUCT of steps and the seconds a step of study/scaling.csv" in text
    assert "| 0.5000* |" in text
    assert "20 [1]" in text
    assert "| evaluate |" in text
    ratios = text.split("times the least of as many ranks")[1].splitlines()[4:6]
    assert [line.replace("|", "").split() for line in ratios] == [
        ["ist:20", "2", "1.00", "1.00", "1.00", "[1]"],
        ["ddp", "2", "9.33", "7.00", "14.0"],
    ]
    assert "PRODUCT" not in convergence.show(convergence.summary(rows, runs, [], {}))


# Tables.


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.08414, "0.0841"),
        (1.0, "1.00"),
        (12.34, "12.3"),
        (99.97, "100"),
        (1234.5, "1,234"),
    ],
)
def test_short(value, text):
    assert short(value) == text


def test_told():
    assert told(None) == "-"
    assert told(spread_of([])) == "-"
    assert told(spread_of([3e6]), 1e6) == "3.00"
    assert told(spread_of([1, 9, 2])) == "2.00 (1.00 to 9.00)"
    assert told(spread_of([10, 30]), whole=True) == "20 (10 to 30)"


def test_markdown_escapes_and_aligns():
    text = markdown([Table("T", ["a", "b"], [["x|y", "1"]], ["note"]), Table("empty", ["a"], [])])
    assert text.splitlines() == [
        *("T", "", "| a    |   b |", "| :--- | --: |", "| x\\|y |   1 |", "", "note")
    ]


def test_ratios_are_of_as_many_ranks():
    def spread(value):
        return spread_of([value])

    medians = [(2, spread(4.0)), (2, spread(1.0)), (4, spread(9.0)), (4, None)]
    assert over_least(medians) == [4, 1, 1, None]


def test_shares():
    assert shares_of({"train": 3.0, "wait": 0.0, "other": 1.0}) == {"train": 0.75, "other": 0.25}
    assert shares_of({"train": 0.0}) == {}
    table = share_table("T", [("a", 2, {"train": 0.99, "other": 0.01}), ("b", 2, {"train": 1.0})])
    assert table.rows == [["a", "2", "99.0 %", "1.0 %"], ["b", "2", "100.0 %", "-"]]
    assert not table.notes


def test_rows_by_method_keep_the_order_of_methods():
    rows = [{"method": m, "ranks": n} for m, n in (("b", 4), ("a", 2), ("b", 2), ("b", 4))]
    assert list(by_method(rows).items()) == [(("b", 2), [2]), (("b", 4), [0, 3]), (("a", 2), [1])]


def test_planned_runs_are_values():
    method = parse_method("ist:2")
    assert dataclasses.replace(Planned(method, 2, 1), number=0).key == ("ist:2", 2, 0)

"""Training, evaluation, resume and export on sparse rows with sets of labels, as users do them."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest

from ist_hpc.data.shards import Dataset
from tests.helpers.checkpoints import as_if_killed
from tests.helpers.launching import one_error_line, run_python, run_ranks

MODEL = ["model.hidden=[48]", "model.output_norm=none", "model.label_block=17"]
COMMON = ["data.path=data", "data.batch_size=32", "train.local_steps=10", "optimizer.kind=adam"]
COMMON += [
    "optimizer.momentum=0",
    "optimizer.lr=0.01",
    "evaluate.calibration_rows=300",
    "checkpoint.every_minutes=0",
]


@dataclass(frozen=True)
class Ranked:
    """A finished run of 2 ranks over 6 rounds, and its data: 160 features, 60 labels."""

    place: Path

    @property
    def run(self) -> Path:
        return self.place / "runs" / "a"

    def summary(self, name: str = "a") -> dict:
        return json.loads((self.place / "runs" / name / "summary.json").read_text())


def train(place: Path, name: str, *settings: str, ranks: int = 2, check: bool = True):
    arguments = ["-m", "ist_hpc.train", "--name", name, "--resume", "--set"]
    return run_ranks(ranks, [*arguments, *COMMON, *MODEL, *settings], cwd=place, check=check)


@pytest.fixture(scope="module")
def ranked(tmp_path_factory) -> Ranked:
    place = tmp_path_factory.mktemp("ranked")
    sizes = ["--train-rows", "900", "--test-rows", "150", "--features", "160", "--labels", "60"]
    command = ["-m", "ist_hpc.prepare", "synthetic", "--like", "delicious", *sizes]
    run_python([*command, "--output", "data", "--workers", "1"], cwd=place)
    train(place, "a", "train.rounds=6")
    return Ranked(place)


def frequency_precision(data: Path) -> float:
    """P@1 of always giving the most frequent label."""
    with Dataset.open(data) as dataset:
        counts = dataset.label_counts()
        _, labels = dataset.read("test", 0, dataset.rows("test"))
    assert counts is not None
    return float((labels.indices == counts.argmax()).sum() / len(labels))


def test_it_learns(ranked):
    result = ranked.summary()["test"]
    assert result["precision_at_1"] > 1.5 * frequency_precision(ranked.place / "data")
    assert list(ranked.summary()["best"]) == ["precision_at_1"]
    assert {"precision_at_5", "ndcg_at_3", "psp_at_5"} <= set(result)


@pytest.mark.parametrize("ranks", [1, 3])
def test_any_number_of_ranks_evaluates_it_alike(ranked, ranks, tmp_path):
    target = tmp_path / "out.h5"
    done = run_ranks(
        ranks,
        ["-m", "ist_hpc.evaluate", "runs/a", "--data", "data", "--predictions", target],
        cwd=ranked.place,
    )
    expected = ranked.summary()["test"]
    assert f"precision at 1: {expected['precision_at_1']:.4f}" in done.stdout
    with h5py.File(target) as file:
        predicted, logits = file["predicted"][:], file["logits"][:]
        for key, value in expected.items():
            assert file.attrs[key] == pytest.approx(value, abs=1e-9)
    with Dataset.open(ranked.place / "data") as dataset:
        _, labels = dataset.read("test", 0, dataset.rows("test"))
    hits = [
        row[0] in labels.indices[labels.indptr[i] : labels.indptr[i + 1]]
        for i, row in enumerate(predicted)
    ]
    assert np.mean(hits) == pytest.approx(expected["precision_at_1"])
    assert (np.diff(logits, axis=1) <= 0).all()


def test_the_exported_module_ranks_labels_alike(ranked, tmp_path):
    """In plain PyTorch, on dense rows."""
    exported = run_python(
        ["-m", "ist_hpc.show", "runs/a", "--export", tmp_path / "model.pt"], cwd=ranked.place
    ).stdout
    source = exported.partition("nothing but PyTorch:\n")[2]
    with Dataset.open(ranked.place / "data") as dataset:
        features, _ = dataset.read("test", 0, dataset.rows("test"))
    dense = np.zeros((len(features), features.columns), dtype=np.float32)
    rows = np.repeat(np.arange(len(features)), np.diff(features.indptr))
    dense[rows, features.indices] = features.values
    np.save(tmp_path / "rows.npy", dense)
    script = f"import numpy\n{source}\nrows = torch.from_numpy(numpy.load('rows.npy'))\n"
    script += "numpy.save('top.npy', model(rows).topk(5).values.detach().numpy())\n"
    (tmp_path / "script.py").write_text(script)
    run_python(["-I", "script.py"], cwd=tmp_path)
    target = tmp_path / "out.h5"
    command = ["-m", "ist_hpc.evaluate", "runs/a", "--data", "data", "--predictions", target]
    run_python(command, cwd=ranked.place)
    with h5py.File(target) as file:
        np.testing.assert_allclose(file["logits"][:], np.load(tmp_path / "top.npy"), atol=1e-4)


@pytest.mark.parametrize("kind", ["adam", "rowwise_adagrad"])
def test_a_resume_goes_on_to_the_last_bit(ranked, kind):
    names = [f"{kind}-whole", f"{kind}-parts"]
    settings = [f"optimizer.kind={kind}", "train.rounds=4", "checkpoint.every_rounds=2"]
    train(ranked.place, names[0], *settings)
    as_if_killed(*(ranked.place / "runs" / name for name in names), 2)
    train(ranked.place, names[1], *settings)
    files = [
        ranked.place / "runs" / name / "checkpoints" / "round-00000004" / "checkpoint.h5"
        for name in names
    ]
    with h5py.File(files[0]) as whole, h5py.File(files[1]) as parts:
        keys: list[str] = []
        whole.visititems(lambda key, item: keys.append(key) if hasattr(item, "dtype") else None)
        assert any(key.startswith("optimizer/") for key in keys)
        for key in keys:
            np.testing.assert_array_equal(whole[key][...], parts[key][...], err_msg=key)


def test_bytes_of_a_run_are_those_of_the_plan(ranked):
    settings = [*COMMON, *MODEL, "optimizer.kind=rowwise_adagrad", "train.rounds=3"]
    planned = run_python(
        ["-m", "ist_hpc.plan", "--ranks", "2", "--rounds", "2", "--json", "--set", *settings],
        cwd=ranked.place,
    )
    exchanges = json.loads(planned.stdout)["bytes_a_round"]["ist"]["exchanges"]
    train(ranked.place, "bytes", "optimizer.kind=rowwise_adagrad", "train.rounds=3")
    text = (ranked.place / "runs" / "bytes" / "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    received = [row["bytes_received"] for row in rows if row["kind"] == "round"]
    assert received == [sum(exchange["received"]) for exchange in exchanges]


def test_a_shared_bias_is_trained_through_horovod(ranked):
    train(ranked.place, "bias", "model.output_bias=true", "model.loss=bce", "train.rounds=2")
    path = ranked.place / "runs" / "bias" / "checkpoints" / "round-00000002" / "checkpoint.h5"
    with h5py.File(path) as file:
        bias = file["parameters/out.bias"][:]
    assert bias.shape == (60,)
    assert np.abs(bias).max() > 0.01


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("runtime.memory_gb=0.4", "not enough memory on"),
        ("evaluate.top=[20000]", "`evaluate.top"),
        ("data.row_entries=1000 model.inputs=160", "`data.row_entries` must be at most"),
        ("model.loss=cross_entropy", "the data have sets of labels, which take `model.loss"),
        ("model.output_norm=batch", "`model.output_norm: none`"),
        ("model.outputs=61", "has 60 classes, `model.outputs` says 61"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(ranked, setting, said):
    done = train(ranked.place, "refused", "train.rounds=1", *setting.split(), check=False)
    line = one_error_line(done)
    assert said in line
    assert not (ranked.place / "runs" / "refused").exists()


def test_a_checkpoint_is_not_evaluated_on_dense_data(ranked, trained, tmp_path):
    shutil.copytree(trained.data, tmp_path / "digits")
    command = ["-m", "ist_hpc.evaluate", ranked.run, "--data", "digits"]
    line = one_error_line(run_python(command, cwd=tmp_path, check=False))
    assert "features a row" in line


def test_the_best_of_another_metric_is_not_taken_over_by_a_resume(ranked):
    train(ranked.place, "top", "train.rounds=2")
    train(ranked.place, "top", "train.rounds=3", "evaluate.top=[7]")
    summary = ranked.summary("top")
    assert summary["best"] == {"precision_at_7": summary["test"]["precision_at_7"]}
    command = ["-m", "ist_hpc.plot", "runs/top", "--table", "--metric"]
    both = run_python([*command, "precision_at_1"], cwd=ranked.place)
    assert "best precision at 1" in both.stdout
    line = one_error_line(run_python([*command, "precision_at_9"], cwd=ranked.place, check=False))
    assert "no evaluation has `precision_at_9`" in line

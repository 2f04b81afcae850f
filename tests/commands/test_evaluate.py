"""`evaluate`: the same answer at any number of ranks, and one line for what does not fit."""

import json
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from ist_hpc.common.disk.files import sha256_of
from ist_hpc.data.shards import Dataset, DatasetWriter
from tests.commands.test_show import DAMAGES, flip
from tests.conftest import train
from tests.helpers.launching import one_error_line, run_python, run_ranks

pytestmark = pytest.mark.long


def evaluate(ranks, place, *arguments, check=True):
    command = ["-m", "ist_hpc.evaluate", *arguments]
    if ranks == 1:
        return run_python(command, place, check=check)
    return run_ranks(ranks, command, place, check=check)


def number(done, name):
    return float(re.search(rf"^{name}: +(\S+)$", done.stdout, re.MULTILINE).group(1))


def write_data(path, features=64, classes=10, rows=20):
    random = np.random.default_rng(0)
    names = [str(label) for label in range(classes)] if isinstance(classes, int) else classes
    with DatasetWriter(
        path, name="other", feature_shape=(features,), feature_dtype="float32", classes=names
    ) as writer:
        for split in ("train", "test"):
            values = random.standard_normal((rows, features), dtype=np.float32)
            writer.append(split, values, random.integers(0, len(names), size=rows))


def test_it_gives_what_training_gave_at_the_end(trained, tmp_path):
    done = evaluate(2, tmp_path, trained.folder, "--data", trained.data)
    result = json.loads((trained.folder / "summary.json").read_text())["test"]
    assert number(done, "rows") == 359
    assert number(done, "accuracy") == round(result["accuracy"], 4)
    assert number(done, "loss") == round(result["loss"], 4)
    assert list(tmp_path.iterdir()) == []


def test_predictions_are_complete_and_say_what_they_are_of(trained, tmp_path):
    arguments = [trained.checkpoint, "--data", trained.data, "--predictions", "out.h5"]
    done = evaluate(1, tmp_path, *arguments, "--batch-rows", "100")
    with Dataset.open(trained.data) as data:
        _, labels = data.read("test", 0, 359)
    with h5py.File(tmp_path / "out.h5") as file:
        logits, predicted = file["logits"][...], file["predicted"][...]
        assert logits.shape == (359, 10)
        assert logits.dtype == np.float32
        assert file["labels"].dtype == file["predicted"].dtype == np.int64
        assert all(file[name].fletcher32 for name in ("logits", "labels", "predicted"))
        assert np.array_equal(file["labels"][...], labels)
        assert np.array_equal(predicted, logits.argmax(axis=1))
        attributes = dict(file.attrs)
    assert attributes["checkpoint"] == str(trained.checkpoint)
    assert attributes["data"] == str(trained.data)
    assert attributes["checkpoint_manifest_sha256"] == sha256_of(
        trained.checkpoint / "manifest.json"
    )
    assert attributes["data_meta_sha256"] == sha256_of(trained.data / "meta.json")
    assert (attributes["split"], attributes["round"]) == ("test", 4)
    assert attributes["accuracy"] == (predicted == labels).mean()
    assert number(done, "accuracy") == round(attributes["accuracy"], 4)
    assert [path.name for path in tmp_path.iterdir()] == ["out.h5"]


def test_rows_do_not_depend_on_ranks_batches_or_assignment(trained, tmp_path):
    common = [trained.checkpoint, "--data", trained.data, "--split", "train", "--predictions"]
    evaluate(1, tmp_path, *common, "1.h5")
    evaluate(3, tmp_path, *common, "3.h5", "--batch-rows", "77", "--assign", "files")
    with h5py.File(tmp_path / "1.h5") as one, h5py.File(tmp_path / "3.h5") as three:
        assert np.abs(one["logits"][...] - three["logits"][...]).max() < 1e-5
        assert np.array_equal(one["labels"][...], three["labels"][...])
        assert len(one["labels"]) == 1438


def test_ranks_without_any_class_take_part(tmp_path):
    write_data(tmp_path / "two", features=5, classes=2, rows=40)
    settings = ["data.path=two", "model.hidden=[3]", "data.batch_size=8"]
    train(tmp_path, "narrow", *settings, ranks=3)
    result = json.loads((tmp_path / "runs" / "narrow" / "summary.json").read_text())["test"]
    done = evaluate(4, tmp_path, "runs/narrow", "--data", "two")
    assert number(done, "accuracy") == round(result["accuracy"], 4)
    assert number(done, "loss") == pytest.approx(result["loss"], abs=1e-4)


@pytest.mark.parametrize("limit", [100, 5000, 17_000])
def test_predictions_on_a_disk_that_fills_up_leave_nothing(trained, tmp_path, limit):
    """A limit of a file's size stands for it; the file would have 22 KB."""
    program = (
        "import resource, sys; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY)); "
        "from ist_hpc.evaluate import main; sys.exit(main(sys.argv[1:]))"
    )
    words = [trained.checkpoint, "--data", trained.data, "--predictions", "out.h5"]
    done = run_ranks(1, ["-c", program, *map(str, words)], tmp_path, check=False)
    assert done.returncode == 2
    line = one_error_line(done)
    assert "out.h5" in line
    assert "File too large" in line
    assert list(tmp_path.iterdir()) == []


def test_predictions_never_replace_a_file_unless_asked(trained, tmp_path):
    (tmp_path / "out.h5").write_text("precious")
    arguments = [trained.checkpoint, "--data", trained.data, "--predictions", "out.h5"]
    line = one_error_line(evaluate(2, tmp_path, *arguments, check=False))
    assert "out.h5" in line
    assert "--overwrite" in line
    assert (tmp_path / "out.h5").read_text() == "precious"
    evaluate(1, tmp_path, *arguments, "--overwrite")
    assert h5py.is_hdf5(tmp_path / "out.h5")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_ends_all_ranks_with_one_line(trained, tmp_path, damage):
    copy = Path(shutil.copytree(trained.checkpoint, tmp_path / "copy"))
    damaged = damage(copy)
    done = evaluate(2, tmp_path, copy, "--data", trained.data, check=False)
    assert str(damaged) in one_error_line(done)


def test_a_damaged_shard_of_the_split_ends_all_ranks_with_one_line(trained, tmp_path):
    data = Path(shutil.copytree(trained.data, tmp_path / "data"))
    flip(data / "train-0002.h5", 5000)
    evaluate(1, tmp_path, trained.checkpoint, "--data", data)  # reads test shards only
    arguments = [trained.checkpoint, "--data", data, "--split", "train"]
    line = one_error_line(evaluate(2, tmp_path, *arguments, "--predictions", "o.h5", check=False))
    assert str(data / "train-0002.h5") in line
    assert not list(tmp_path.glob("*o.h5*"))


@pytest.mark.parametrize(
    ("other", "part"),
    [
        ({"features": 63}, "has 63 features a row"),
        ({"classes": 11}, "has 11 classes"),
        ({"classes": list("0123456798")}, "class 8 is '9'"),
    ],
)
def test_data_of_another_kind_are_refused(trained, tmp_path, other, part):
    write_data(tmp_path / "other", **other)
    done = evaluate(2, tmp_path, trained.checkpoint, "--data", "other", check=False)
    line = one_error_line(done)
    assert part in line
    assert "other" in line


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["nowhere", "--data", "DATA"], "no checkpoint at nowhere"),
        (["CKPT", "--data", "nowhere"], "nowhere"),
        (["CKPT", "--data", "DATA", "--split", "dev"], "has no dev rows"),
        (["CKPT", "--data", "DATA", "--batch-rows", "0"], "must be a whole number from 1 on"),
        (["CKPT"], "required: --data"),
        (["CKPT", "--data", "DATA", "--predictions", "no/out.h5"], "no/out.h5"),
    ],
)
def test_wrong_arguments_end_with_one_line(trained, tmp_path, arguments, part):
    places = {"CKPT": str(trained.checkpoint), "DATA": str(trained.data)}
    words = [places.get(word, word) for word in arguments]
    assert part in one_error_line(evaluate(1, tmp_path, *words, check=False))


def test_a_wrong_command_line_is_reported_once_and_not_once_a_rank(trained, tmp_path):
    line = one_error_line(evaluate(2, tmp_path, trained.checkpoint, check=False))
    assert "required: --data" in line

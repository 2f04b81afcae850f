"""What `show` prints, its checks and its export; checkpoints as they look without the package."""

import json
import shutil
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from ist_hpc import show
from tests.conftest import train
from tests.helpers.launching import ROOT, one_error_line, run_python, run_ranks

SHAPES = {
    "parameters/fc1.weight": (24, 64),
    "parameters/bn1.weight": (24,),
    "parameters/bn1.bias": (24,),
    "parameters/fc2.weight": (17, 24),
    "parameters/bn2.weight": (17,),
    "parameters/bn2.bias": (17,),
    "parameters/out.weight": (10, 17),
    "statistics/bn1.mean": (24,),
    "statistics/bn1.variance": (24,),
    "statistics/bn2.mean": (17,),
    "statistics/bn2.variance": (17,),
    "statistics/bn_out.mean": (10,),
    "statistics/bn_out.variance": (10,),
}

BY_HAND = """
import json, sys
import h5py, numpy
found = {}
def add(name, item):
    if isinstance(item, h5py.Dataset):
        found[name] = [list(item.shape), bool(numpy.isfinite(item[...]).all())]
with h5py.File(sys.argv[1]) as file:
    file.visititems(add)
assert not any(name.startswith("ist_hpc") for name in sys.modules)
print(json.dumps(found))
"""

LOAD_AND_COMPARE = """
import sys
import h5py
# -- rebuild
# -- compare
with h5py.File(sys.argv[1]) as data:
    features = torch.from_numpy(data["features"][...]).flatten(1)
with torch.no_grad():
    logits = model(features)
for path in sys.argv[2:]:
    with h5py.File(path) as file:
        expected = torch.from_numpy(file["logits"][...])
    assert logits.shape == expected.shape, (logits.shape, expected.shape)
    print((logits - expected).abs().max().item())
assert not any(name.startswith("ist_hpc") for name in sys.modules)
"""


@pytest.fixture
def copy(trained, tmp_path):
    """A copy of the trained checkpoint, in a folder of another name."""
    return Path(shutil.copytree(trained.checkpoint, tmp_path / "a copy"))


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)


def truncate(copy):
    path = copy / "rank-0001.h5"
    path.write_bytes(path.read_bytes()[:-100])
    return path


def flip_main(copy):
    flip(copy / "checkpoint.h5", 3000)
    return copy / "checkpoint.h5"


def flip_rank(copy):
    flip(copy / "rank-0000.h5", -50)
    return copy / "rank-0000.h5"


def remove(copy):
    (copy / "rank-0001.h5").unlink()
    return copy / "rank-0001.h5"


def cut_manifest(copy):
    path = copy / "manifest.json"
    path.write_text(path.read_text()[:-20])
    return path


DAMAGES = [truncate, flip_main, flip_rank, remove, cut_manifest]


# What it prints.


def test_shows_every_tensor_and_its_statistics(trained, capsys):
    assert show.main([str(trained.checkpoint)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(trained.checkpoint)
    with h5py.File(trained.checkpoint / "checkpoint.h5") as file:
        names = []
        file.visititems(
            lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None
        )
        assert set(SHAPES) < set(names)
        for name in names:
            group, _, key = name.partition("/")
            start = next(i for i, line in enumerate(lines) if line.startswith(f"{group}, "))
            line = next(line for line in lines[start:] if line.startswith(f"  {key} "))
            values = file[name][...].astype(np.float64)
            numbers = (values.mean(), values.std(), values.min(), values.max())
            assert " x ".join(map(str, values.shape)) in line
            assert " ".join(f"{number:10.3g}" for number in numbers) in line
            assert str(file[name].attrs["about"]).removeprefix("dimensions: ") in line


def test_shows_what_the_run_was(trained, capsys):
    assert show.main([str(trained.checkpoint / "checkpoint.h5")]) == 0
    out = capsys.readouterr().out
    summary = json.loads((trained.folder / "summary.json").read_text())
    assert "algorithm ist on 2 rank(s)" in out
    assert f"4 rounds, {summary['steps']} local steps a rank" in out
    assert f"{summary['epochs']:.2f} epochs, {summary['samples']} samples" in out
    assert f"test accuracy {summary['best']['accuracy']:.4f}" in out
    assert "features   64 a row" in out
    assert "classes    10: 0, 1, 2" in out
    text = out.partition("\nconfiguration\n")[2]
    stored = yaml.safe_load((trained.folder / "config.yaml").read_text())
    assert yaml.safe_load(text) == stored


def test_help_is_quick_and_mpi_is_not_started(trained):
    watch = "import sys; from ist_hpc import show; code = show.main(sys.argv[1:]); "
    run_python(["-m", "ist_hpc.show", "--help"], trained.data, timeout_s=20, fresh=True)
    check = watch + "assert not {'mpi4py.MPI', 'horovod'} & set(sys.modules); sys.exit(code)"
    run_python(["-c", check, trained.folder, "--verify"], trained.data, timeout_s=60, fresh=True)


def test_a_reader_that_stops_reading_is_no_error(trained):
    process = subprocess.run(
        ["bash", "-o", "pipefail", "-c", 'python -m ist_hpc.show "$0" | true', trained.folder],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, "")


# Checks.


def test_verify_names_every_file(trained, capsys):
    assert show.main([str(trained.checkpoint), "--verify"]) == 0
    out = capsys.readouterr().out
    for name in ("checkpoint.h5", "rank-0000.h5", "rank-0001.h5"):
        assert f"ok       {name}\n" in out
    assert "DAMAGED" not in out


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("option", [[], ["--verify"], ["--export", "model.pt"]])
def test_damage_ends_with_one_line_that_names_the_file(copy, capsys, damage, option, monkeypatch):
    monkeypatch.chdir(copy.parent)
    damaged = damage(copy)
    assert show.main([str(copy), *option]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert str(damaged) in captured.err
    if option == ["--verify"] and damaged.suffix == ".h5":
        assert f"DAMAGED  {damaged.name}" in captured.out
        assert captured.out.count("  ok  ") == 2
    assert not list(copy.parent.glob("*model.pt*"))


def test_values_that_are_not_finite_are_refused_though_checksums_are_right(copy, capsys):
    from ist_hpc.common.disk.files import sha256_of

    path = copy / "rank-0001.h5"
    with h5py.File(path, "r+") as file:
        file["parameters/fc2.weight"][2, 5] = np.inf
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"][path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert show.main([str(copy), "--verify"]) == 2
    assert "1 of 408 values of parameters/fc2.weight" in capsys.readouterr().err
    assert show.main([str(copy)]) == 0
    assert "1 NaN or infinite!" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["nowhere"], "no checkpoint at nowhere"),
        ([], "required: CKPT"),
        (["CKPT", "--overwrite"], "--overwrite is of --export"),
        (["CKPT", "--export", "no/folder/model.pt"], "--export no/folder/model.pt: must be"),
        (["CKPT", "--export", "."], "--export .: must be a file"),
    ],
)
def test_wrong_arguments_end_with_one_line(trained, tmp_path, arguments, part):
    words = [str(trained.checkpoint) if word == "CKPT" else word for word in arguments]
    done = run_python(["-m", "ist_hpc.show", *words], tmp_path, check=False)
    assert part in one_error_line(done)


# Without the package.


def test_h5py_alone_sees_full_tensors_wherever_the_folder_is(copy, tmp_path):
    moved = copy.rename(copy.with_name("moved"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = run_python(["-I", "-c", BY_HAND, moved / "checkpoint.h5"], elsewhere)
    found = json.loads(done.stdout)
    parameters = {f"optimizer/momentum/{n.partition('/')[2]}" for n in SHAPES if "param" in n}
    assert set(found) == set(SHAPES) | parameters
    for name, (shape, finite) in found.items():
        key = name.replace("optimizer/momentum/", "parameters/")
        assert (tuple(shape), finite) == (SHAPES[key], True), name


def test_a_missing_rank_file_shows_as_nan(copy):
    with h5py.File(copy / "checkpoint.h5") as file:
        whole = file["parameters/fc1.weight"][...]
    (copy / "rank-0001.h5").unlink()
    with h5py.File(copy / "checkpoint.h5") as file:
        values = file["parameters/fc1.weight"][...]
    assert np.array_equal(values[:12], whole[:12])
    assert np.isnan(values[12:]).all()


def test_hdf5_tools_read_it(trained):
    if not shutil.which("h5ls") or not shutil.which("h5dump"):
        pytest.skip("h5ls and h5dump (the package hdf5-tools) are not installed here")
    main = trained.checkpoint / "checkpoint.h5"
    listed = subprocess.run(
        ["h5ls", "-r", main], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    for name, shape in SHAPES.items():
        line = next(line for line in listed.splitlines() if line.startswith(f"/{name} "))
        assert f"Dataset {{{', '.join(map(str, shape))}}}" in line
    dumped = subprocess.run(
        ["h5dump", "-d", "/parameters/bn1.bias", main],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert "dimensions: hidden1" in dumped
    assert "nan" not in dumped.lower()


# The export.


def rebuild_script(printed):
    """The Python that `show --export` printed."""
    return printed.partition("nothing but PyTorch:\n\n")[2]


def export_and_compare(checkpoint, data, place, ranks):
    """Differences of the exported module's logits from those of `evaluate` at each of `ranks`."""
    done = run_python(["-m", "ist_hpc.show", checkpoint, "--export", "model.pt"], place)
    for count in ranks:
        evaluate = ["-m", "ist_hpc.evaluate", checkpoint, "--data", data]
        run_ranks(count, [*evaluate, "--predictions", f"{count}.h5"], place)
    script = LOAD_AND_COMPARE.replace("# -- rebuild", rebuild_script(done.stdout))
    arguments = [data / "test-0000.h5", *(f"{count}.h5" for count in ranks)]
    compared = run_python(["-I", "-c", script, *arguments], place)
    return [float(line) for line in compared.stdout.split()]


def test_exported_module_gives_the_logits_of_evaluate(trained, tmp_path):
    differences = export_and_compare(trained.checkpoint, trained.data, tmp_path, (1, 3))
    assert len(differences) == 2
    assert max(differences) < 1e-5


def test_export_without_output_norm_and_with_bias(trained, tmp_path):
    (tmp_path / "digits").symlink_to(trained.data)
    settings = ["model.output_norm=none", "model.output_bias=true", "model.hidden=[13]"]
    train(tmp_path, "biased", *settings)
    run = tmp_path / "runs" / "biased"
    assert max(export_and_compare(run, trained.data, tmp_path, (2,))) < 1e-5


def test_export_never_replaces_a_file_unless_asked(trained, tmp_path, capsys):
    target = tmp_path / "model.pt"
    target.write_text("precious")
    assert show.main([str(trained.checkpoint), "--export", str(target)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert target.read_text() == "precious"
    assert show.main([str(trained.checkpoint), "--export", str(target), "--overwrite"]) == 0
    assert target.stat().st_size > 1000
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_the_documented_rebuild_is_what_show_prints(trained, tmp_path):
    (tmp_path / "digits").symlink_to(trained.data)
    train(tmp_path, "wide", "model.hidden=[256,256]", "train.rounds=1", "train.local_steps=1")
    done = run_python(["-m", "ist_hpc.show", "runs/wide", "--export", "model.pt"], tmp_path)
    page = (ROOT / "docs" / "checkpoint-format.md").read_text()
    printed = rebuild_script(done.stdout).strip()
    assert f"```python\n{printed}\n```" in page
    run_python(["-I", "-c", printed], tmp_path)

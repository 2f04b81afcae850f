"""The package works installed, away from its checkout."""

from tests.launching import ROOT, run_python


def test_pip_install_brings_all_that_a_run_needs(tmp_path):
    target = tmp_path / "installed"
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--no-cache-dir"]
    copy = tmp_path / "source"
    copy.mkdir()
    for name in ("ist_hpc", "setup.py", "pyproject.toml", "README.md"):
        (copy / name).symlink_to(ROOT / name)
    run_python(["-m", "pip", "install", *options, "--target", target, copy], cwd=tmp_path)
    place = tmp_path / "elsewhere"
    place.mkdir()
    code = "import ist_hpc, sys; sys.stdout.write(ist_hpc.__file__)"
    env = {"PYTHONPATH": str(target)}
    assert run_python(["-c", code], place, env=env).stdout == str(target / "ist_hpc/__init__.py")
    arguments = ["-m", "ist_hpc.train", "--name", "a", "--set", "train.epochs=1"]
    assert "test accuracy" in run_python(arguments, place, env=env).stdout
    assert "finished" in run_python(["-m", "ist_hpc.show", "runs/a"], place, env=env).stdout
    (saved,) = (place / "runs/a/checkpoints").iterdir()
    assert "fc1.weight" in run_python(["-m", "ist_hpc.show", saved], place, env=env).stdout

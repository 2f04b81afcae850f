"""`ist-hpc COMMAND` and `python -m ist_hpc COMMAND`."""

import subprocess
import sys
from pathlib import Path

from ist_hpc import __version__
from ist_hpc.__main__ import COMMANDS
from tests.helpers.launching import one_error_line, run_python, run_ranks
from tests.helpers.small_runs import SMALL

SCRIPT = Path(sys.executable).with_name("ist-hpc")


def ist_hpc(*words, check=True, **options):
    return run_python(["-m", "ist_hpc", *words], check=check, **options)


def test_every_command_is_listed_and_is_a_module_with_help(tmp_path):
    listing = ist_hpc("--help", cwd=tmp_path).stdout
    for name in COMMANDS:
        assert f"\n  {name} " in listing
    for name in sorted(COMMANDS.keys() - {"check"}):  # it has no options to tell of
        shown = ist_hpc(name, "--help", cwd=tmp_path).stdout
        assert shown.startswith(f"usage: python -m ist_hpc.{name} ")
    bare = ist_hpc(cwd=tmp_path, check=False)
    assert (bare.returncode, bare.stdout) == (2, listing)


def test_a_wrong_name_is_one_line(tmp_path):
    line = one_error_line(ist_hpc("trian", cwd=tmp_path, check=False))
    assert line.startswith("ist-hpc: error: no command trian (did you mean train?); there are ")
    line = one_error_line(run_ranks(2, ["-m", "ist_hpc", "a b"], cwd=tmp_path, check=False))
    assert "no command 'a b'; there are prepare, plan, train" in line


def test_a_run_is_that_of_the_module(place):
    run_ranks(
        2, ["-m", "ist_hpc", "train", "--name", "a", "--set", *SMALL, "train.rounds=1"], place
    )
    assert (place / "runs/a/STATUS").read_text() == "finished\n"
    assert "finished" in ist_hpc("show", "runs/a", cwd=place).stdout
    assert one_error_line(ist_hpc("show", "b", cwd=place, check=False)).startswith("show: error: ")


def test_the_installed_script(tmp_path):
    done = subprocess.run(
        [SCRIPT, "--version"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == f"ist_hpc {__version__}\n"
    done = subprocess.run(
        [SCRIPT, "plan", "--figure2"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "this program" in done.stdout

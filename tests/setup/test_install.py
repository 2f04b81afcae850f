"""The environment that make setup makes, and the package installed away from its checkout."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ist_hpc.check_starts import WAYS
from tests.helpers.launching import ROOT, outside_make, run_python

pytestmark = pytest.mark.long


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


# What the modules of a site may say of where another Open MPI, PMIx or mpi4py's MPI is.
_OF_ANOTHER_MPI = {
    **dict.fromkeys(("OPAL_PREFIX", "OPAL_BINDIR", "OPAL_LIBDIR", "OPAL_DESTDIR"), "/opt/mpi"),
    **dict.fromkeys(("OPAL_EXEC_PREFIX", "OPAL_PKGDATADIR", "MPI_HOME", "MPI_ROOT"), "/opt/mpi"),
    **dict.fromkeys(("PMIX_INSTALL_PREFIX", "PMIX_LIBDIR", "PMIX_EXEC_PREFIX"), "/opt/pmix"),
    "OMPI_MCA_mca_base_component_path": "/opt/mpi/lib/openmpi",
    "MPI4PY_MPIABI": "mpich",
    "MPI4PY_LIBMPI": "/opt/mpi/lib/libmpi.so",
}
_BAD_FOLDERS = ["a b", "a'b", "a:b", "a$b", 'a"b', "a,b", "a#b", "a%b", "a=b", "a;b", "a*b"]
_BAD_FOLDERS += ["a\nb", "ab ", "ab\n", "a\udce9b"]
_GOOD_FOLDERS = ["größe", "a+b~c@d", "-ab", "~"]


def _other_libraries(folder: Path) -> None:
    """Libraries of the names that Open MPI's have, in which nothing is."""
    folder.mkdir()
    for name in ("libmpi.so.40", "libopen-rte.so.40", "libopen-pal.so.40"):
        words = ["g++", "-shared", "-x", "c++", "/dev/null", f"-Wl,-soname,{name}"]
        subprocess.run([*words, "-o", folder / name], check=True, timeout=60)


def _read_only(*command: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command in the checkout, which is read-only to it."""
    if os.geteuid() != 0:
        pytest.skip("a mount needs root")
    mount = 'mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"; cd "$1"; shift; exec "$@"'
    return subprocess.run(
        ["unshare", "-m", "sh", "-ec", mount, "sh", ROOT, *command],
        env={**outside_make(), "PATH": _outer_path(), **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=450,
        check=False,
    )


def _outer_path() -> str:
    """PATH without the folder of this Python, as a user has it who calls make."""
    own = Path(sys.executable).parent
    return os.pathsep.join(entry for entry in os.get_exec_path() if Path(entry) != own)


def test_make_check_where_modules_home_and_checkout_are_against_it(tmp_path):
    """Another MPI's variables and libraries, no home, nothing to write to: all ways start."""
    _other_libraries(tmp_path / "lib")
    env = {**_OF_ANOTHER_MPI, "LD_LIBRARY_PATH": str(tmp_path / "lib"), "HOME": "/proc"}
    done = _read_only("make", "check", env=env)
    lines = done.stdout.splitlines()
    assert (done.returncode, lines[-1]) == (0, "check: ok"), done.stdout
    starts = [line.split(":")[-1] for line in lines if line.startswith("start ")]
    assert len(starts) == len(WAYS)
    assert starts.count(" right") >= 3, done.stdout
    done = _read_only("make", "test-1", env={})
    assert done.returncode != 0
    said = [line for line in done.stdout.splitlines() if not line.startswith(("make: *", "----"))]
    assert len(said) == 1
    assert "cannot be written to" in said[0]


def test_check_ends_as_it_says_where_a_launcher_does_not_work(tmp_path):
    for name, script in (("mpirun", "echo no; exit 3"), ("horovodrun", "exit 0")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    code = (
        "import os, sys\nfrom ist_hpc import check_starts\n"
        f"os.environ['PATH'] = {str(tmp_path)!r} + ':' + os.environ['PATH']\n"
        "sys.exit(check_starts.main())"
    )
    done = run_python(["-c", code], tmp_path, check=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 1
    assert "check: ok" not in lines
    assert "check: mpirun -np 2 python: does not start or end well (exit code 3)" in done.stdout
    assert "check: horovodrun -np 2 python: does not start or end well (exit code 0)" in done.stdout
    assert "start      python: right" in lines


def test_check_without_any_launcher_is_not_ok(tmp_path):
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', "utf-8")
    (tmp_path / "python").chmod(0o755)
    code = "import sys\nfrom ist_hpc import check_starts\nsys.exit(check_starts.main())"
    words = ["env", f"PATH={tmp_path}", sys.executable, "-c", code]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "mpirun -np 2 python: not tried, there is no mpirun on PATH" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("check: nothing here starts several ranks")


@pytest.mark.parametrize("folder", _BAD_FOLDERS + _GOOD_FOLDERS)
def test_a_path_that_would_fail_later_is_refused_before_anything_is_made(tmp_path, folder):
    checkout = tmp_path / folder / "checkout"
    (checkout / "ist_hpc").mkdir(parents=True)
    shutil.copytree(ROOT / "tools", checkout / "tools", ignore=shutil.ignore_patterns("__pyc*"))
    for name in ("Makefile", "setup.py", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / name, checkout / name)
    shutil.copy(ROOT / "ist_hpc/__init__.py", checkout / "ist_hpc/__init__.py")
    before = sorted(checkout.rglob("*"))
    env = {**outside_make(), "PATH": _outer_path(), "PYTHON": "/nowhere/python3"}
    for target in ("setup", "train", "check"):
        done = subprocess.run(
            ["make", "MPI=wheel", target],
            cwd=checkout,
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        lines = [line for line in done.stderr.splitlines() if line.startswith("setup: ")]
        assert done.returncode != 0
        assert len(lines) == 1, done.stderr
        if folder in _BAD_FOLDERS:
            assert "the path of the environment, " in lines[0]
        else:
            assert "PYTHON=/nowhere/python3 is not there" in lines[0]
    assert sorted(checkout.rglob("*")) == before


def test_a_program_looks_for_libraries_beside_it_first(tmp_path):
    """The word of an ELF file is changed in place, twice as once, and nothing else is."""
    library = tmp_path / "lib.so"
    words = ["g++", "-shared", "-x", "c++", "/dev/null", "-Wl,--enable-new-dtags,-rpath,$ORIGIN"]
    subprocess.run([*words, "-o", library], check=True, timeout=60)
    before = library.read_bytes()
    text = tmp_path / "script"
    text.write_text("#!/bin/sh\n", encoding="utf-8")
    for _ in range(2):
        run_python([ROOT / "tools/look_beside_first.py", library, text], tmp_path)
        after = library.read_bytes()
        changed = [at for at in range(len(before)) if before[at] != after[at]]
        assert [(before[at], after[at]) for at in changed] == [(29, 15)]
    assert text.read_text(encoding="utf-8") == "#!/bin/sh\n"

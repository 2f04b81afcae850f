"""Every command with streams that are no terminal's: closed, full, unread, or of few characters."""

import ast
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.launching import Text, environment
from tests.structure.test_structure import SOURCES

pytestmark = pytest.mark.long

COMMANDS = {
    "show": "show {run}",
    "show checkpoint": "show {checkpoint}",
    "plot": "plot {run} --table",
    "plan": "plan --config {run}/config.yaml --ranks 4 --set data.path={data}",
    "prepare": "prepare digits --output digits",
    "evaluate": "evaluate {run} --data {data}",
    "train": "train --runs here --name a --set train.epochs=1 data.path={data}",
    "bench": "bench plan --of 2 --rounds 1 --config {run}/config.yaml --set "
    "model.inputs=64 model.outputs=10",
    "quadratic": "quadratic --rounds 16 --replicas 16 --q 1",
}
"""A line of each, that ends well and prints something."""
SLOW = {"evaluate", "train", "bench", "quadratic"}
WRONG = {
    "show": "show nowhere",
    "plot": "plot nowhere --table",
    "plan": "plan --config nowhere.yaml --ranks 4",
    "prepare": "prepare cifar100 --input nowhere --output x",
    "evaluate": "evaluate nowhere --data nowhere",
    "train": "train --config nowhere.yaml",
    "bench": "bench plan --config nowhere.yaml",
    "quadratic": "quadratic --workers 1",
}
"""A line of each that ends with exit code 2."""


def in_shell(line: str, redirected: str, cwd: Path, env: dict[str, str] | None = None) -> Text:
    """`python -m ist_hpc.LINE` with what bash makes of `redirected`."""
    done = subprocess.run(
        ["bash", "-c", f"{shlex.quote(sys.executable)} -m ist_hpc.{line} {redirected}"],
        cwd=cwd,
        env=environment({"PYTHONUNBUFFERED": "", **(env or {})}),
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr
    assert "Logging error" not in done.stderr
    return done


def filled(line: str, trained) -> str:
    return line.format(run=trained.folder, checkpoint=trained.checkpoint, data=trained.data)


LOST = "error: cannot write to standard output: "


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in SLOW])
def test_a_full_disk_is_said(name, trained, tmp_path):
    done = in_shell(filled(COMMANDS[name], trained), "> /dev/full", tmp_path)
    assert done.returncode == 1
    program = name.partition(" ")[0]
    assert done.stderr.splitlines()[-1] == f"{program}: {LOST}No space left on device"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_closed_stream_is_said_and_a_reader_that_leaves_is_no_failure(name, trained, tmp_path):
    line = filled(COMMANDS[name], trained)
    closed = in_shell(line.replace("--name a", "--name b"), "<&- >&-", tmp_path)
    assert closed.returncode == 1
    program = name.partition(" ")[0]
    assert closed.stderr.splitlines()[-1] == f"{program}: {LOST}it is closed"
    # What goes to stderr goes on, too, though nobody reads either of them.
    line = line.replace("--output digits", "--output again")
    assert in_shell(line, "2>&1 | true; exit ${PIPESTATUS[0]}", tmp_path).returncode == 0
    if name == "train":
        for run in ("a", "b"):
            assert (tmp_path / "here" / run / "STATUS").read_text() == "finished\n"
    if name == "prepare":
        for folder in ("digits", "again"):
            assert (tmp_path / folder / "meta.json").is_file()


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_said_where_stderr_is_closed(name, tmp_path):
    done = in_shell(WRONG[name], "2>&-", tmp_path)
    assert done.returncode == 2
    assert done.stdout.startswith(f"{name}: error: ")
    assert len(done.stdout.splitlines()) == 1


def test_a_closed_stream_is_no_file_of_the_command(trained, tmp_path):
    """Else what libraries print would be written into the first file that is opened."""
    target = tmp_path / "out.h5"
    line = f"evaluate {trained.folder} --data {trained.data} --predictions {target}"
    assert in_shell(line, "<&- >&- 2>&-", tmp_path).returncode == 1
    assert in_shell(line + " --overwrite", "", tmp_path).returncode == 0
    assert not {p.name for p in tmp_path.iterdir()} - {"out.h5"}


NAMES = {
    "latin": b"caf\xe9",
    "accent": "café".encode(),
    "other script": "東京".encode(),
    "escape": b"a\x1b[31mb",
    "lines": b"a\nb",
    "dollars": b"_a$b$^",
}
ENCODINGS = {
    "utf-8": {},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_name_that_cannot_be_shown_ends_nothing(encoding, trained, tmp_path):
    place = os.fsencode(tmp_path)
    folders = [os.fsdecode(os.path.join(place, name)) for name in NAMES.values()]
    for folder in folders:
        os.symlink(trained.folder, folder)
    every = " ".join(map(shlex.quote, folders))
    picture = shlex.quote(folders[0] + ".png")
    done = in_shell(f"plot {every} --table --output {picture}", "", tmp_path, ENCODINGS[encoding])
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 2 + len(folders)
    assert os.path.getsize(folders[0] + ".png") > 1000
    for folder in folders if encoding == "C" else folders[:2]:
        done = in_shell(f"show {shlex.quote(folder)}", "", tmp_path, ENCODINGS[encoding])
        assert (done.returncode, done.stderr) == (0, "")
        assert "finished" in done.stdout
    done = in_shell(f"show {shlex.quote(folders[0] + 'x')}", "", tmp_path, ENCODINGS[encoding])
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.rstrip("\n").isprintable()


def test_a_run_may_be_in_a_folder_of_any_name(trained, tmp_path):
    runs = os.fsdecode(os.path.join(os.fsencode(tmp_path), b"caf\xe9 \x1b"))
    settings = f"--set train.epochs=1 data.path={trained.data}"
    done = in_shell(f"train --runs {shlex.quote(runs)} --name a {settings}", "", tmp_path)
    assert done.returncode == 0
    assert Path(runs, "a", "STATUS").read_text() == "finished\n"
    for name in ("run.json", "config.yaml", ".lock"):
        Path(runs, "a", name).read_text(encoding="utf-8")
    # Its last line can be pasted.
    pasted = done.stdout.splitlines()[-1].partition(":")[2].strip()
    shown = in_shell(pasted.removeprefix("python -m ist_hpc."), "", tmp_path)
    assert shown.returncode == 0, pasted


def test_every_command_has_the_frame_of_the_others():
    """`run` alone mends the streams; lines for stderr go through `complain`, or the log."""
    guards = {
        module: ast.unparse(node.body[-1])
        for module, tree in SOURCES.items()
        for node in tree.body
        if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)
    }
    assert guards.pop("__main__") == "script()"  # which runs it as installed, too
    assert ast.unparse(SOURCES["__main__"]).count("run('ist-hpc', main)") == 1
    assert len(guards) == 10
    for module, last in guards.items():
        program = module.removesuffix(".__main__").removesuffix("_starts")
        assert last == f"run('{program}', main)", module
    writers = {
        module
        for module, tree in SOURCES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and (
            (ast.unparse(node.func) == "print" and any(w.arg == "file" for w in node.keywords))
            or ast.unparse(node.func) in ("sys.stderr.write", "sys.stdout.write")
        )
    }
    assert writers == {"common.standard_streams"}

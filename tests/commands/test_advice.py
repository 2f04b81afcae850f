"""What a message advises leads on: it is followed here as it stands, and the next answer is none.

Some of them once led to a message which said the opposite.
"""

import os
import re
import shlex
import subprocess
import sys
import threading

import pytest

from ist_hpc import plan
from ist_hpc.common.commandline import Parser, count_from
from ist_hpc.common.disk.files import refuse_target
from ist_hpc.common.disk.names import path_of, quoted
from ist_hpc.common.errors import EXIT_GO_ON, InputError
from ist_hpc.config import loading
from ist_hpc.data.meta_reading import load_meta
from ist_hpc.data.writing.target import check_target
from ist_hpc.prepare import digits
from ist_hpc.studies.launches import Launcher

pytestmark = pytest.mark.long

IMAGES = ("data.path=none", "model.inputs=3072", "model.outputs=9")
RESNET = ("model.kind=resnet", "model.hidden=[]", "model.output_bias=false", *IMAGES)


def answer(settings):
    """What a configuration is told, empty if nothing."""
    try:
        loading.load(None, settings)
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("settings", "advice", "followed"),
    [
        (["model.kind=vgg11", "model.loss=bce"], "or write `loss: auto`",
         ["model.loss=auto"]),
        (["model.loss=bce"], "set `model.output_norm: none`", ["model.output_norm=none"]),
        (["model.output_bias=true"], "set `model.output_norm: none`", ["model.output_norm=none"]),
        (["model.output_bias=true"], "leave the bias out", ["model.output_bias=false"]),
        (["model.kind=resnet"], "or write `hidden: []`", ["model.hidden=[]"]),
        (RESNET, "or write `output_bias: true`", ["model.output_bias=true"]),
        (["optimizer.kind=adam"], "set it to 0", ["optimizer.momentum=0"]),
        (["train.rounds=3", "train.epochs=3"], "give either", ["train.rounds=null"]),
        (["train.warmup_steps=4"], "leave it out", ["train.warmup_steps=0"]),
        (["train.algorithm=ddp", "device=cuda"], "set `device: cpu`", ["device=cpu"]),
        (["train.algorithm=ddp", "device=cuda"], "take data_parallel",
         ["train.algorithm=data_parallel"]),
        (["model.kind=vgg11", "model.deal_channels=true", "model.body_from=x"], "leave it out",
         ["model.body_from=null"]),
        (["model.kind=vgg11", "model.deal_channels=true", "model.body_from=x"],
         "or `model.deal_channels`", ["model.deal_channels=false"]),
        (["optimizer.momentums=0"], "did you mean `optimizer.momentum`?", None),
        (["train.algorithm=localsgd"], "did you mean local_sgd?", ["train.algorithm=local_sgd"]),
    ],
)  # fmt: skip
def test_of_a_configuration(settings, advice, followed):
    assert advice in answer(settings)
    if followed is None:
        settings, followed = [], ["optimizer.momentum=0"]
    assert answer([*settings, *followed]) == ""


def test_where_a_value_came_from_is_no_place_to_change_it():
    """`set X in .../quickstart.yaml`, which is the package's, was how it read."""
    for settings in (["model.loss=bce"], RESNET, ["model.output_bias=true"]):
        assert re.search(r", got \w+( \([\w ]+\))? in ", answer(settings))


@pytest.mark.parametrize("setting", ["optimizer.lr=.nan", "optimizer.lr=1e400", "name=''"])
def test_what_is_got_is_not_what_is_wanted(setting):
    said = re.search(r"must be (.*), got (.*) in ", answer([setting]))
    assert said[1] not in said[2]


def told(capsys, *arguments):
    """The exit code of a plan and what it says."""
    code = plan.main(arguments)
    out, err = capsys.readouterr()
    return code, err or out


WIDE = ("--set", "data.path=none", "model.inputs=4096", "model.outputs=35", "model.hidden=[16384]")


@pytest.mark.parametrize("algorithm", ["ist", "data_parallel", "local_sgd", "ddp"])
def test_a_plan_names_ranks_with_which_it_fits(capsys, algorithm):
    """More ranks do not make a whole model smaller."""
    small = ("--rounds", "1", "--memory-gb", "1", "--check")
    setting = f"train.algorithm={algorithm}"
    code, said = told(capsys, "--ranks", "2", *small, *WIDE, setting)
    assert code == 2
    wanted = r"take (`train.algorithm: ist` on )?(\d+) ranks or more, fewer ranks on a node"
    advice = re.search(wanted, said)
    assert advice, said
    assert bool(advice[1]) == (algorithm != "ist")
    if algorithm == "ddp":
        return  # the same numbers again
    code, said = told(capsys, "--ranks", advice[2], *small, *WIDE, "train.algorithm=ist")
    assert code == 0, said


def test_a_plan_does_not_advise_ranks_that_do_not_help(capsys):
    code, said = told(capsys, "--ranks", "2", "--memory-gb", "0.001", "--check")
    assert code == 2
    assert "ranks or more" not in said


@pytest.mark.parametrize("kind", [["model.kind=vgg11"], RESNET], ids=["vgg11", "resnet"])
def test_sparse_rows_are_no_images(capsys, kind):
    """Another loss was advised, which those models do not take."""
    given = [*kind, *IMAGES, "data.row_entries=5"]
    if "model.kind=resnet" in kind:
        given += ["model.output_bias=true"]
    code, said = told(capsys, "--ranks", "2", "--set", *given)
    assert (code, "sparse rows, which `model.kind: mlp` takes" in said) == (2, True), said
    mlp = [
        "model.kind=mlp",
        "model.hidden=[8]",
        "model.output_norm=none",
        "model.output_bias=false",
    ]
    code, said = told(capsys, "--ranks", "2", "--set", *given, *mlp)
    assert code == 0, said


@pytest.mark.parametrize("name", ["plain", "two  blanks", "a\tb", "-dash", "~", "it's", "b\\s"])
def test_a_folder_is_made_as_it_is_advised(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    target = path_of(f"./{name}/picture.png")
    with pytest.raises(InputError, match="make it: mkdir -p ") as found:
        refuse_target(target, "--output", overwrite=True)
    command = str(found.value).partition("make it: ")[2]
    subprocess.run(["bash", "-c", command], check=True, timeout=60)
    refuse_target(target, "--output", overwrite=True)


@pytest.mark.parametrize("name", ["-dash", "~", "~root", "a b", "plain"])
def test_a_path_that_is_pasted_is_the_path(tmp_path, monkeypatch, name):
    """As a word of its own, which an option takes and whose home folder is not looked for."""
    monkeypatch.chdir(tmp_path)
    (word,) = shlex.split(quoted(path_of(f"./{name}")))
    assert not word.startswith("-")
    assert path_of(word) == path_of(f"./{name}")


def test_digits_are_made_where_they_are_missing(tmp_path):
    folder = tmp_path / "digits"
    for _ in range(2):  # one that is not there, and an empty one
        with pytest.raises(InputError) as found:
            load_meta(folder)
        advised = str(found.value).partition("make it with: python -m ist_hpc.prepare digits ")[2]
        option, path = shlex.split(advised)
        assert (option, path) == ("--output", str(folder))
        check_target(folder, overwrite=False)
        folder.mkdir(exist_ok=True)
    (folder / "notes").write_text("mine")
    with pytest.raises(InputError, match="correct the path"):
        load_meta(folder)  # digits would not be made there
    with pytest.raises(InputError, match="give another folder"):
        check_target(folder, overwrite=False)
    assert digits  # what is advised is there


def test_a_launcher_may_be_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    program = tmp_path / "my mpirun"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    words = Launcher("'~/my mpirun' --hostfile ~/hosts -np {ranks}").command(3, ["x"])
    assert words == [str(program), "--hostfile", str(tmp_path / "hosts"), "-np", "3", "x"]
    with pytest.raises(InputError, match=re.escape(f"no program '{tmp_path}/none'")):
        Launcher("~/none -np {ranks}")


@pytest.mark.parametrize(
    "text", ["1_000", "\uff10\uff11", "\u00b2", "", "1e1", "0x1", "1.0", "--1", "\u0663"]
)
def test_a_whole_number_of_the_command_line_is_decimal(text):
    parser = Parser(prog="x")
    parser.add_argument("--plain", type=int)
    parser.add_argument("--count", type=count_from(1))
    for option in ("--plain", "--count"):
        with pytest.raises(InputError, match=f"argument {option}: "):
            parser.parse_args([f"{option}={text}"])


@pytest.mark.parametrize("text", ["1_0", "1,5", "\uff10.5", "1e", "0x1p3", "", ".", "infinit"])
def test_a_number_of_the_command_line_is_as_it_looks(text):
    parser = Parser(prog="x")
    parser.add_argument("--plain", type=float)
    with pytest.raises(InputError, match="argument --plain: invalid float value"):
        parser.parse_args([f"--plain={text}"])


@pytest.mark.parametrize(
    ("text", "value"), [("7", 7), (" 7 ", 7), ("+7", 7), ("007", 7), ("7.", 7), (".5", 0.5),
                        ("1e-3", 1e-3), ("1E3", 1e3), ("-2", -2)]
)  # fmt: skip
def test_numbers_that_are_taken(text, value):
    parser = Parser(prog="x")
    parser.add_argument("--number", type=float)
    parser.add_argument("--whole", type=int)
    assert parser.parse_args([f"--number={text}"]).number == value
    if isinstance(value, int) and "." not in text:
        assert parser.parse_args([f"--whole={text}"]).whole == value


@pytest.mark.parametrize("name", ["-a", ".a", "_a"])
def test_a_name_that_is_refused_has_not_what_is_allowed(name):
    assert "dashes and underscores, a letter or digit first, got " in answer([f"name='{name}'"])


def test_a_path_may_have_any_bytes():
    """As `--set data.path=$PWD/data` has where somebody's folder is named in Latin-1."""
    word = os.fsdecode(b"data.path=/home/caf\xe9/data")
    assert loading.load(None, [word]).data.path == os.fsdecode(b"/home/caf\xe9/data")
    assert r"got 'caf\xe9' (a text)" in answer([os.fsdecode(b"seed=caf\xe9")])
    for control in ("\x1b", "\x00", "\ud800"):
        assert "special characters are not allowed" in answer([f"data.path=a{control}"])


def stopped(folder, *more):
    """What a run without a name says that is stopped by SIGTERM once it trains."""
    command = [sys.executable, "-m", "ist_hpc.train", "--runs", "runs", *more]
    command += ["--set", "data.path=digits", "train.rounds=10000000", "evaluate.every_epochs=0"]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        deadline = threading.Timer(120, process.kill)
        deadline.start()
        lines = []
        for line in process.stderr:
            lines.append(line)
            if " round 1" in line or "from round" in line:
                process.terminate()
        deadline.cancel()
    assert process.returncode == EXIT_GO_ON, lines
    return lines


def test_a_run_without_a_name_goes_on_as_it_says(tmp_path):
    """`--resume` alone is refused: it goes on with a run that has a name."""
    digits.prepare_digits(tmp_path / "digits")
    line = stopped(tmp_path)[-1]
    more = re.search(r"the same command with (.*) goes on$", line)[1].split()
    assert more[:2] == ["--resume", "--name"]
    said = stopped(tmp_path, *more)
    assert any(", from round " in line for line in said)
    assert said[-1].endswith("the same command with --resume goes on\n")
    assert len(list((tmp_path / "runs").iterdir())) == 1

"""How the converters meet what they are given: by one function for each thing that can go wrong."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from ist_hpc.prepare import DATASETS

PREPARE = Path(__file__).resolve().parents[2] / "ist_hpc" / "prepare"
MODULES = {
    ".".join(path.relative_to(PREPARE).with_suffix("").parts): ast.parse(path.read_text("utf-8"))
    for path in sorted(PREPARE.rglob("*.py"))
    if not path.stem.startswith("__")
}
OURS = sorted(MODULES)

WALKS = {"iterdir", "glob", "rglob", "scandir", "listdir", "walk", "fwalk"}
ASKS = {"stat", "lstat", "is_file", "is_dir", "exists", "is_symlink", "readlink", "islink", "isdir"}
OPENS = {"open", "read_bytes", "read_text", "fromfile", "loadtxt", "genfromtxt"}
ALLOWED = {
    ("found", "listdir"),  # `input_folder`: whether the folder can be looked into
    *(("found", name) for name in ("stat", "lstat", "is_file", "is_dir", "readlink", "open")),
    ("speech.clips", "is_dir"),  # within `names.entries`, which answers for what it raises
    ("xmc.shuffle", "open"),  # files of its own
    ("cifar100", "open"),
    ("digits", "open"),  # Dataset.open: what was made
    ("synthetic", "open"),
}
OPTIONAL = {"librosa", "numba", "sklearn", "scipy", "matplotlib", "tqdm", "torch", "soundfile"}


def calls(module: str) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Attribute):
                yield function.attr, node
            elif isinstance(function, ast.Name):
                yield function.id, node


@pytest.mark.parametrize("module", OURS)
def test_folders_and_files_are_met_in_one_module(module):
    """`names.entries`, `opened` and `is_missing` answer for what one may not read."""
    for name, call in calls(module):
        if name in WALKS | ASKS | OPENS:
            assert (module, name) in ALLOWED, f"{module}.py, line {call.lineno}: {name}"


def test_speech_asks_within_a_walk_alone():
    inside = [
        node for node in ast.walk(MODULES["speech.clips"]) if isinstance(node, ast.FunctionDef)
    ]
    asking = {
        function.name
        for function in inside
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and node.attr in ASKS
    }
    assert asking == {"_may_be_word"}


@pytest.mark.parametrize("module", sorted(set(OURS) - {"found", "xmc.shuffle"}))
def test_a_file_is_refused_by_one_function(module):
    """A message that begins with the name of a file is made by `found.refused` alone."""
    for name, call in calls(module):
        if name == "InputError":
            first = call.args[0]
            if isinstance(first, ast.JoinedStr):
                first = first.values[0]
            begins_with_text = isinstance(first, ast.Constant)
            # `common` names modules, numbers and options, `what` of memory a line or options.
            assert begins_with_text or module == "common", f"{module}.py, line {call.lineno}"


def test_recordings_are_refused_by_the_same_function():
    source = ast.unparse(MODULES["speech.audio"])
    assert "why(" in source
    assert "import wave" not in source


def test_own_files_of_the_shuffler_are_the_one_exception():
    messages = [ast.unparse(call) for name, call in calls("xmc.shuffle") if name == "InputError"]
    assert messages
    for message in messages:
        assert any(word in message for word in ("is in the way", "cannot make", "cannot be"))


@pytest.mark.parametrize("module", OURS)
def test_libraries_are_imported_by_one_function(module):
    """`common.require` gives them a folder to write to, and says what is wrong with them."""
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Import):
            names = {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {(node.module or "").partition(".")[0]}
        else:
            continue
        assert not names & OPTIONAL, f"{module}.py, line {node.lineno}"
    if module != "common":
        assert "import_module" not in {name for name, _ in calls(module)}


@pytest.mark.parametrize("module", OURS)
def test_what_is_printed_passes_through_one_function(module):
    for function in MODULES[module].body:
        for node in ast.walk(function):
            if isinstance(node, ast.Name) and node.id in ("print", "complain"):
                assert isinstance(function, ast.FunctionDef), f"{module}.py, line {node.lineno}"
                assert (module, function.name) == ("common", "say"), f"line {node.lineno}"


@pytest.mark.parametrize("module", OURS)
def test_names_are_bytes_and_not_encoded_as_text(module):
    """`os.fsencode` takes every name; `str.encode` ends with an exception for some."""
    for name, call in calls(module):
        if name == "encode":
            assert module == "safe_pickle", f"{module}.py, line {call.lineno}"


@pytest.mark.parametrize("module", sorted(set(OURS) - {"common"}))
def test_the_command_is_stored_as_it_can_be_printed(module):
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "command":
                    assert ast.unparse(value).startswith("printable("), module


@pytest.mark.parametrize("module", sorted(DATASETS.values()))
def test_every_converter_answers_for_memory(module):
    (run,) = [
        node
        for node in MODULES[module.removeprefix("ist_hpc.prepare.")].body
        if isinstance(node, ast.FunctionDef) and node.name == "run"
    ]
    assert "answers_for_memory" in [ast.unparse(decorator) for decorator in run.decorator_list]

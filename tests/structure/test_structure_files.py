"""What is put on disk passes through one place: flushing, naming and locking; from the sources."""

import ast
from collections import defaultdict
from pathlib import Path

from ist_hpc.prepare import DATASETS

PACKAGE = Path(__file__).resolve().parents[2] / "ist_hpc"
SOURCES = {
    str(path.relative_to(PACKAGE)): ast.parse(path.read_text(encoding="utf-8"), str(path))
    for path in sorted(PACKAGE.rglob("*.py"))
}


def users_of(wanted):
    """The files in which a call, or any mention, of an attribute `module.name` stands."""
    found = set()
    for file, tree in SOURCES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and wanted(node):
                found.add(file)
    return found


def of_module(module, *names):
    return users_of(
        lambda node: (
            isinstance(node.value, ast.Name)
            and node.value.id == module
            and (node.attr in names or not names)
        )
    )


def test_everything_is_flushed_by_one_function():
    """Which knows of file systems that cannot flush folders."""
    assert of_module("os", "fsync", "fdatasync", "sync") == {"common/disk/files.py"}


def test_locks_are_taken_by_one_module():
    assert of_module("fcntl", "flock", "lockf", "fcntl") == {"common/disk/locks.py"}


def test_files_are_read_without_locks():
    """HDF5's best effort is none where a file system answers ENOLCK, as NFS does; nobody writes."""
    opened = [
        ast.unparse(node)
        for tree in SOURCES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "h5py.File"
    ]
    read = [call for call in opened if "'r'" in call]
    assert read
    assert [call for call in read if "locking=False" not in call] == []


def test_results_get_their_names_by_one_module():
    """`str.replace` has two arguments or more, `Path.replace` has one."""
    assert of_module("os", "replace", "rename", "renames", "link") == {"common/disk/files.py"}
    by_path = defaultdict(set)
    for file, tree in SOURCES.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            named = node.func.attr == "rename"
            named |= node.func.attr == "replace" and len(node.args) + len(node.keywords) == 1
            named |= node.func.attr in ("hardlink_to", "move")
            if named:
                by_path[file].add(node.func.attr)
    # A checkpoint that is damaged is no result, and has no name that another may want.
    assert by_path == {"checkpoint/restore.py": {"rename"}}


def test_hidden_names_are_made_by_one_module():
    made = {
        file
        for file, tree in SOURCES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and any(part in node.value for part in (".partial", ".shuffle", ".old"))
    }
    assert made <= {"common/disk/files.py"}
    # The number of a process is not enough: containers and hosts have the same ones.
    writers = {"prepare/__main__.py", "common/mpi_environment.py"}
    writers |= {f"common/disk/{name}.py" for name in ("files", "locks", "caches")}
    assert of_module("os", "getpid") <= writers


def test_text_is_written_by_functions_that_know_of_names_that_are_no_text():
    """A name that is not UTF-8 ends `write_text` of pathlib with a traceback."""
    written = defaultdict(list)
    for file, tree in SOURCES.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr == "write_text":
                written[file].append(ast.unparse(node))
            modes = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
            modes += [k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)]
            if node.func.attr == "open" and {"w", "a", "x", "w+", "a+"}.intersection(modes):
                written[file].append(ast.unparse(node))
    # A log of a run of a study is what its ranks print; nothing of this package's is in it.
    assert {file: len(calls) for file, calls in written.items()} == {"studies/launches.py": 1}


def test_every_converter_begins_by_looking_at_its_output():
    """Before it reads anything; and its writer is told what its options say of others."""
    for module in DATASETS.values():
        file = module.removeprefix("ist_hpc.").replace(".", "/") + ".py"
        functions = {
            node.name: node for node in SOURCES[file].body if isinstance(node, ast.FunctionDef)
        }
        statements = functions["run"].body
        assert isinstance(statements[0], ast.Expr), file
        assert isinstance(statements[0].value, ast.Constant), file
        assert ast.unparse(statements[1]) == "begin(args)", file
        calls = [ast.unparse(n) for n in ast.walk(SOURCES[file]) if isinstance(n, ast.Call)]
        assert "add_output_arguments" in " ".join(calls), file
        assert any("**of_output(args)" in call for call in calls), file
        writers = [
            call
            for call in ast.walk(SOURCES[file])
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "DatasetWriter"
        ]
        for writer in writers:
            passed = [ast.unparse(k.value) for k in writer.keywords if k.arg is None]
            assert passed in (["of_output(args)"], ["to_writer"]), file


def test_outputs_of_commands_are_refused_by_one_function():
    """`refuse_target` knows devices, folders and links, and gives the same advice everywhere."""
    callers = {
        file
        for file, tree in SOURCES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("refuse_target")
    }
    assert callers == {"evaluate.py", "studies/plots/pictures.py", "show.py"}
    for file in ("plan.py", "plot.py", "quadratic.py"):
        calls = {ast.unparse(n.func) for n in ast.walk(SOURCES[file]) if isinstance(n, ast.Call)}
        assert "pictures.refuse_format" in calls, file

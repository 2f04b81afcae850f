"""The shape of the package: files import downward only, and few of them touch MPI.

Imports are read from the source, those inside functions and those for type checkers included.
"""

import ast
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "ist_hpc"

FLOORS = [
    ["common"],
    ["config"],
    ["runtime"],
    ["data"],
    ["exchange"],
    ["models"],
    ["checkpoint", "cost"],
    ["training"],
    ["prepare", "studies"],
    ["bench"],
    ["commands"],
]
"""The lowest first. A folder imports itself and lower ones, and none of its own floor."""

MOST_MODULES = 14
"""In a folder, without its `__init__`, which only says what the folder is for."""

PURE = {
    "common": {"hdf5_reading", "hdf5_writing"},
    "config": set(),
    "cost": {"prediction"},
    "exchange": {"exchanger", "landing", "staging", "tensors"},
}
"""Folders without MPI, torch and HDF5, but for these modules of them."""

MAY_IMPORT_MPI = {
    "bench.report",
    "check",
    "cost.prediction",
    "runtime.devices",
    "runtime.horovod_start",
    "runtime.launch",
    "training.averaging",
    "training.start",
}
"""Those whose functions import `mpi4py.MPI`, which starts MPI; no module does as it is imported."""

MAY_CALL = {
    "Ialltoallv": {"exchange.exchanger"},
    "Alltoallv": {"bench.exchange", "check", "exchange.exchanger"},
    "Allgatherv": {"data.rows", "training.averaging", "training.evaluation.full_network"},
    "Isend": {"training.evaluation.full_network"},
    "Recv": {"training.evaluation.full_network"},
}
"""Who moves arrays. Of these only the exchanger moves partitioned state: the other two move rows
and activations; the raw Alltoallv of the benchmark and the one of the check bring numbers
that nobody uses."""

MOVES = {
    f"{kind}{name}{suffix}"
    for kind in ("", "I")
    for name in ("Alltoall", "alltoall", "Allgather", "Gather", "Scatter", "Send", "Recv")
    for suffix in ("v", "w")
} | {"Send", "Recv", "Isend", "Irecv", "Sendrecv", "Alltoall", "Put", "Get"}


@dataclass(frozen=True)
class Import:
    """target: a module, of this package without its `ist_hpc.`; when: import | call | typing."""

    target: str
    when: str


def short(module: str) -> str:
    return module.removeprefix("ist_hpc.")


SOURCES = {
    short(".".join(("ist_hpc", *path.relative_to(PACKAGE).with_suffix("").parts)))
    .removesuffix("__init__")
    .removesuffix(".")
    or "ist_hpc": ast.parse(path.read_text(encoding="utf-8"), str(path))
    for path in sorted(PACKAGE.rglob("*.py"))
}
FLOOR_OF = {folder: floor for floor, folders in enumerate(FLOORS) for folder in folders}


def folder_of(module: str) -> str:
    """The folder of the package that a module is in; what has none is a command."""
    if module == "ist_hpc":
        return "common"  # its version, which all may know
    folder = module.partition(".")[0]
    return folder if (PACKAGE / folder).is_dir() else "commands"


def imports_of(tree: ast.AST) -> set[Import]:
    found = set()

    def visit(node: ast.AST, when: str) -> None:
        if isinstance(node, ast.Import):
            found.update(Import(short(alias.name), when) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                inner = short(f"{node.module}.{alias.name}")
                is_module = inner in SOURCES or inner == "mpi4py.MPI"
                found.add(Import(inner if is_module else short(str(node.module)), when))
        for name, value in ast.iter_fields(node):
            inside = when
            if (
                isinstance(node, ast.If)
                and name == "body"
                and "TYPE_CHECKING" in ast.dump(node.test)
            ):
                inside = "typing"
            elif isinstance(node, ast.FunctionDef | ast.Lambda) and when == "import":
                inside = "call"
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    visit(child, inside)

    visit(tree, "import")
    return found


IMPORTS = {module: imports_of(tree) for module, tree in SOURCES.items()}


def in_fresh_python(modules: list[str], unwanted: list[str]) -> str:
    """Imports the modules and prints which of the unwanted ones came with them."""
    names = [module if module == "ist_hpc" else f"ist_hpc.{module}" for module in modules]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        f"print([name for name in {unwanted!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_imports_are_seen():
    """The reading of imports itself: of each kind one that is there."""
    assert Import("mpi4py.MPI", "typing") in IMPORTS["exchange.exchanger"]
    assert Import("mpi4py.MPI", "call") in IMPORTS["runtime.launch"]
    assert Import("exchange.plan", "import") in IMPORTS["exchange.exchanger"]
    assert Import("training.start", "call") in IMPORTS["train"]
    assert Import("ist_hpc", "import") in IMPORTS["common.commandline"]
    source = "if TYPE_CHECKING:\n import a\nelse:\n import b\ndef f():\n if x:\n  import c\n"
    expected = {Import("a", "typing"), Import("b", "import"), Import("c", "call")}
    assert imports_of(ast.parse(source)) == expected


def test_every_folder_has_one_floor():
    assert {folder_of(module) for module in SOURCES} == FLOOR_OF.keys()


def test_folders_import_downward_only():
    """Imports inside functions and for type checkers count, too. Prints the graph (pytest -s)."""
    arrows = defaultdict(set)
    for module, imports in IMPORTS.items():
        for found in imports:
            if found.target in SOURCES and folder_of(found.target) != folder_of(module):
                arrows[folder_of(module)].add((folder_of(found.target), module, found.target))
    for folders in FLOORS:
        for folder in folders:
            below = sorted({target for target, _, _ in arrows[folder]}, key=FLOOR_OF.__getitem__)
            print(f"{FLOOR_OF[folder]:3} {folder:10} -> {' '.join(below)}")
    upward = [
        f"{module} imports {imported}"
        for folder, targets in arrows.items()
        for target, module, imported in targets
        if FLOOR_OF[target] >= FLOOR_OF[folder]
    ]
    assert not upward


def test_no_folder_is_full():
    modules = defaultdict(list)
    for module in SOURCES:
        modules[module.rpartition(".")[0]].append(module)
    inside = {folder: len(set(names) - modules.keys()) for folder, names in modules.items()}
    print(inside)
    assert max(inside.values()) <= MOST_MODULES


def test_git_ignores_nothing_of_the_package_and_its_tests():
    """A pattern such as `data/` is meant for the top folder, and would hide one of ours."""
    files = [str(path) for top in (PACKAGE, PACKAGE.parent / "tests") for path in top.rglob("*.py")]
    words = ["git", "check-ignore", "--no-index", "--stdin"]
    done = subprocess.run(
        words, cwd=PACKAGE, input="\n".join(files), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr  # 1: none of them


def test_no_modules_import_each_other():
    below = {
        module: {found.target for found in imports if found.target in SOURCES}
        for module, imports in IMPORTS.items()
    }
    while below:
        leaves = [module for module, targets in below.items() if not targets & below.keys()]
        assert leaves, f"in a circle, or above one: {sorted(below)}"
        for module in leaves:
            del below[module]


def test_pure_folders_need_nothing_of_the_machine():
    heavy = ["mpi4py", "torch", "horovod", "h5py"]
    pure = [
        module
        for module in SOURCES
        if folder_of(module) in PURE and module.rpartition(".")[2] not in PURE[folder_of(module)]
    ]
    for module in pure:
        used = {found.target.partition(".")[0] for found in IMPORTS[module]}
        assert not used.intersection(heavy), module
    assert in_fresh_python(pure, heavy) == "[]"


def test_importing_starts_no_mpi():
    """Whoever imports the package, a test or a notebook, is not made a rank by it."""
    assert in_fresh_python(sorted(SOURCES), ["mpi4py.MPI", "horovod"]) == "[]"
    importers = defaultdict(set)
    for module, imports in IMPORTS.items():
        for found in imports:
            if found.target == "mpi4py.MPI" or found.target.partition(".")[0] == "horovod":
                importers[found.when].add(module)
    assert not importers["import"]
    assert importers["call"] == MAY_IMPORT_MPI


def test_only_the_exchange_moves_partitioned_state():
    callers = defaultdict(set)
    for module, tree in SOURCES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                callers[node.func.attr].add(module)
    moving = {name: modules for name, modules in callers.items() if name in MOVES}
    assert moving == MAY_CALL

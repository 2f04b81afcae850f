"""The shape of the package: files import downward only, and few of them touch MPI.

Imports are read from the source, those inside functions and those for type checkers included.
"""

import ast
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "ist_hpc"

LAYERS = [
    # pure: no MPI, no torch, no files of a special kind
    [
        "ist_hpc",
        "configtypes",
        "config",
        "config_keys",
        "config_rules",
        "config_yaml",
        "cost",
        "cost_memory",
        "csr",
        "decimals",
        "ending",
        "errors",
        "commandline",
        "blocks",
        "caches",
        "files",
        "geometry",
        "lastresort",
        "locks",
        "models",
        "models.layers",
        "mpi_environment",
        "names",
        "outputs",
        "paper_cost",
        "placement",
        "quadratic",
        "quadratic.problems",
        "quadratic.theory",
        "shard_meta",
        "sizes",
        "streams",
        "transfer",
    ],
    # the machine: MPI and Horovod, what a rank holds and exchanges, shards and rows, run folders
    [
        "averaging",
        "checkpoint_read",
        "exchange",
        "devices",
        "hdf5_reading",
        "hdf5_writing",
        "held",
        "horovod_start",
        "images",
        "label_counts",
        "memory_limits",
        "meters",
        "network",
        "precision",
        "progress",
        "quadratic.descent",
        "rows",
        "runfolder",
        "runtime",
        "shard_dense",
        "shard_files",
        "shard_layouts",
        "shard_sparse",
        "shard_place",
        "shard_writer",
        "shards",
        "sparse",
        "staging",
        "stopping",
        "watchdog",
        "windows",
    ],
    # the networks and what is applied to them
    [
        "metrics",
        "models.base",
        "models.convolutions",
        "models.initial",
        "models.many_labels",
        "models.mlp",
        "models.networks",
        "models.norms",
        "models.residual",
        "models.resnet",
        "models.resnet_source",
        "models.sparse_input",
        "models.vgg",
        "optimizer",
        "ranking",
    ],
    # networks over the ranks
    [
        "algorithms",
        "algorithms.base",
        "algorithms.data_parallel",
        "algorithms.ddp",
        "algorithms.ist",
        "algorithms.local_sgd",
        "algorithms.replicas",
        "checkpoint",
        "checkpoint_restore",
        "evaluation",
        "prediction",
        "pretrained",
        "training",
        "starting",
    ],
    # data sets
    [
        "prepare",
        "prepare.cifar100",
        "prepare.common",
        "prepare.digits",
        "prepare.file_kinds",
        "prepare.found",
        "prepare.safe_pickle",
        "prepare.speech",
        "prepare.speech_audio",
        "prepare.synthetic",
        "prepare.synthetic_rows",
        "prepare.xmc",
        "prepare.xmc_line",
        "prepare.xmc_shuffle",
        "prepare.xmc_source",
        "prepare.xmc_split",
        "prepare.xmc_statistics",
        "prepare.xmc_text",
    ],
    # commands
    [
        "__main__",
        "bench",
        "bench.__main__",
        "bench.convergence",
        "bench.exchange",
        "bench.made",
        "bench.plan",
        "bench.precision",
        "bench.products",
        "bench.report",
        "bench.save",
        "bench.scaling",
        "bench.step",
        "bench.study",
        "bench.study_launch",
        "bench.study_levels",
        "bench.study_run",
        "bench.study_state",
        "bench.study_tables",
        "check",
        "check_starts",
        "evaluate",
        "figure2",
        "pictures",
        "plan",
        "plan_table",
        "plot",
        "plot_curves",
        "plot_draw",
        "plot_runs",
        "plot_study",
        "prepare.__main__",
        "quadratic.__main__",
        "quadratic.figures",
        "quadratic.formulas",
        "show",
        "show_run",
        "train",
    ],
]
"""The lowest first. A module imports those of its own layer, without a circle, and lower ones."""

MAY_IMPORT_MPI = {
    "averaging",
    "bench.report",
    "check",
    "devices",
    "horovod_start",
    "prediction",
    "runtime",
    "starting",
}
"""Those whose functions import `mpi4py.MPI`, which starts MPI; no module does as it is imported."""

MAY_CALL = {
    "Ialltoallv": {"exchange"},
    "Alltoallv": {"bench.exchange", "check", "exchange"},
    "Allgatherv": {"evaluation", "rows"},
    "Isend": {"evaluation"},
    "Recv": {"evaluation"},
}
"""Who moves arrays. Of these only `exchange` moves partitioned state: `evaluation` and `rows` move
rows and activations; the raw Alltoallv of the benchmark and the one of the check bring numbers
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
LAYER_OF = {module: level for level, layer in enumerate(LAYERS) for module in layer}


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
    assert Import("mpi4py.MPI", "typing") in IMPORTS["exchange"]
    assert Import("mpi4py.MPI", "call") in IMPORTS["runtime"]
    assert Import("transfer", "import") in IMPORTS["exchange"]
    assert Import("starting", "call") in IMPORTS["train"]
    assert Import("ist_hpc", "import") in IMPORTS["train"]
    source = "if TYPE_CHECKING:\n import a\nelse:\n import b\ndef f():\n if x:\n  import c\n"
    expected = {Import("a", "typing"), Import("b", "import"), Import("c", "call")}
    assert imports_of(ast.parse(source)) == expected


def test_every_module_has_one_layer():
    listed = [module for layer in LAYERS for module in layer]
    assert sorted(listed) == sorted(SOURCES)


@pytest.mark.parametrize("when", ["import", "call", "typing"])
def test_modules_import_downward_only(when):
    upward = [
        f"{module} imports {found.target}"
        for module, imports in IMPORTS.items()
        for found in imports
        if found.when == when and LAYER_OF.get(found.target, 0) > LAYER_OF[module]
    ]
    assert not upward


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


def test_pure_modules_need_nothing_of_the_machine():
    heavy = ["mpi4py", "torch", "horovod", "h5py"]
    for module in LAYERS[0]:
        used = {found.target.partition(".")[0] for found in IMPORTS[module]}
        assert not used.intersection(heavy), module
    assert in_fresh_python(LAYERS[0], heavy) == "[]"


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

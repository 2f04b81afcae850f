"""Do the tests see a mistake in the package? Random ones, one at a time, in a copy of the checkout.

    python tests/helpers/mutants.py [--count 50] [--after 0] [--seed 0] [--jobs 2]
                                    [--only FOLDER ...]

A mutant changes one operator, constant or condition of one module. It is killed if a test fails: of
the module's own folder (but for the `long` ones), of what else imports the module, or of
`tests/mpi` on two ranks; others are not tried, so a survivor may be killed by the whole suite.
Prints a line a mutant, and at the end those that survive: each is either the same program, or a gap
of the tests.
"""

import argparse
import ast
import copy
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.helpers import launching

ROOT = Path(__file__).resolve().parents[2]
_LIMIT_S = 600
_NO_TEST = 5  # exit code of pytest
_OF_RANKS = ("exchange", "models", "training", "data", "runtime", "checkpoint")
_COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
Change = Callable[[], None]


@dataclass(frozen=True)
class Mutant:
    """A module's source with one mistake."""

    module: Path
    line: int
    what: str
    source: str


def changes(tree: ast.AST) -> Iterator[tuple[int, str, Change]]:
    """(line, what, function that makes the change in the tree), for each place that can change."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARED:
            new = _COMPARED[type(node.ops[0])]
            what = f"{type(node.ops[0]).__name__} to {new.__name__}"
            yield line, what, lambda node=node, new=new: node.ops.__setitem__(0, new())
        elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in _COMPUTED:
            if isinstance(node, ast.BinOp) and isinstance(node.left, ast.JoinedStr):
                continue
            other = _COMPUTED[type(node.op)]
            what = f"{type(node.op).__name__} to {other.__name__}"
            yield line, what, lambda node=node, new=other: setattr(node, "op", new())
        elif isinstance(node, ast.BoolOp):
            joined = ast.Or if isinstance(node.op, ast.And) else ast.And
            yield (
                *(line, f"to {joined.__name__}"),
                lambda node=node, new=joined: setattr(node, "op", new()),
            )
        elif isinstance(node, ast.If | ast.While | ast.IfExp):
            denied = ast.UnaryOp(ast.Not(), copy.deepcopy(node.test))
            yield line, "condition denied", lambda n=node, new=denied: setattr(n, "test", new)
        elif isinstance(node, ast.Constant) and type(node.value) in (int, bool):
            value = (not node.value) if isinstance(node.value, bool) else node.value + 1
            what = f"{node.value} to {value}"
            yield line, what, lambda node=node, new=value: setattr(node, "value", new)


def draw(rng: random.Random, modules: list[Path]) -> Mutant:
    """A mutant of a module, which is drawn by its length."""
    while True:
        lengths = [path.stat().st_size for path in modules]
        module = rng.choices(modules, lengths)[0]
        tree = ast.parse(module.read_text(encoding="utf-8"))
        found = list(changes(tree))
        if not found:
            continue
        line, what, change = rng.choice(found)
        change()
        source = ast.unparse(ast.fix_missing_locations(tree)) + "\n"
        return Mutant(module.relative_to(ROOT), line, what, source)


def tests_of(module: Path) -> Iterator[list[str]]:
    """Commands that test a module, the nearest tests first."""
    folder = module.parent.relative_to("ist_hpc")
    while not (ROOT / "tests" / folder).is_dir():
        folder = folder.parent
    own = Path("tests", folder if folder.parts else "commands")
    pytest = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    yield [*pytest, "-m", "not long", str(own)]
    imported = re.compile(rf"^\s*(from|import) .*\b{module.stem}\b", re.M)
    naming = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "mpi" not in path.parts and not path.is_relative_to(ROOT / own)
        if imported.search(path.read_text(encoding="utf-8"))
    ]
    yield [*pytest, *naming, "tests/commands/test_train.py"]
    if folder.parts and folder.parts[0] in _OF_RANKS:
        ranks = ["tools/mpirun.sh", "--quiet", "-np", "2", "tools/rank_pytest.sh"]
        yield [*ranks, "tests/mpi", "-x", "-q"]


def _tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    return [name for name in listed.stdout.decode().split("\0") if (ROOT / name).is_file()]


def kill(mutant: Mutant) -> str:
    """What killed it, or `survived`."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as place:
        copied = Path(place) / "main"
        for name in _tracked():
            (copied / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copied / name)
        (copied.parent / "shared").symlink_to(ROOT.parent / "shared")
        (copied / mutant.module).write_text(mutant.source, encoding="utf-8")
        own = {"PYTHONPATH": str(copied), "OMP_NUM_THREADS": "1", "REPORT": str(copied / "report")}
        for command in tests_of(mutant.module):
            try:
                done = subprocess.run(
                    command,
                    cwd=copied,
                    env=launching.environment(own),
                    capture_output=True,
                    text=True,
                    timeout=_LIMIT_S,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                return f"killed: no end in {_LIMIT_S} s"
            if done.returncode not in (0, _NO_TEST):
                failed = [x for x in done.stdout.splitlines() if x.startswith(("FAILED", "ERROR"))]
                return f"killed: {failed[0] if failed else done.stdout[-200:]}"[:200]
    return "survived"


def main() -> int:
    """Draw mutants and try to kill them; the exit code is 0 whatever comes out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=50, help="of the draw; default 50")
    parser.add_argument("--after", type=int, default=0, help="pass over the first ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=["."], help="folders of the package")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    modules = sorted(
        {
            path
            for name in arguments.only
            for path in (ROOT / "ist_hpc" / name).rglob("*.py")
            if path.name != "__init__.py"
        }
    )
    drawn = [draw(rng, modules) for _ in range(arguments.count)][arguments.after :]

    def tried(mutant: Mutant) -> tuple[Mutant, str, float]:
        begin_s = time.monotonic()
        return mutant, kill(mutant), time.monotonic() - begin_s

    survivors = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for mutant, outcome, took_s in pool.map(tried, drawn):
            where = f"{mutant.module}:{mutant.line}"
            print(f"{where}: {mutant.what}: {outcome} ({took_s:.0f} s)", flush=True)
            if outcome == "survived":
                survivors.append(f"{where}: {mutant.what}")
    print(
        f"{len(drawn) - len(survivors)} of {len(drawn)} killed; survived:", *survivors, sep="\n  "
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

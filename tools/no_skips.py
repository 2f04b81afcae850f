"""Add up the reports of all test runs, and fail on a test that was skipped though it could run.

`python tools/no_skips.py .cache/reports` reads every JUnit report there. The reports of the ranks
of one run (mpi-4-rank0.xml, mpi-4-rank1.xml, ...) count as one: a test failed if it failed on any
rank, and was skipped if it was skipped on any. Two kinds of skip are excused: for want of ranks, of
a test that ran with more of them, and those whose reason fits an `--excuse` pattern.

The last line is `N passed, N failed, N skipped`. Exit code 1 for a failure, a skip that is not
excused, or no tests at all.
"""

from __future__ import annotations

import argparse
import re
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

PASSED, SKIPPED, FAILED = range(3)  # in order of what prevails over the ranks of a run


@dataclass
class Outcome:
    """What became of one test in one run."""

    status: int
    reason: str = ""


def outcome_of(case: ET.Element) -> Outcome:
    """Return the outcome that a `testcase` element states."""
    for tag in ("failure", "error"):
        found = case.find(tag)
        if found is not None:
            return Outcome(FAILED, found.get("message", ""))
    found = case.find("skipped")
    # an expected failure is reported as skipped, and is none: the test ran
    if found is not None and found.get("type") != "pytest.xfail":
        return Outcome(SKIPPED, found.get("message") or (found.text or "").strip())
    return Outcome(PASSED)


def read_runs(folder: Path) -> dict[str, dict[str, Outcome]]:
    """Return run -> test -> outcome, the ranks of a run taken together."""
    runs: dict[str, dict[str, Outcome]] = {}
    for path in sorted(folder.glob("*.xml")):
        run = runs.setdefault(re.sub(r"-rank\d+$", "", path.stem), {})
        for case in ET.parse(path).iter("testcase"):
            name = f"{case.get('classname', '')}::{case.get('name', '')}"
            outcome = outcome_of(case)
            if name not in run or outcome.status > run[name].status:
                run[name] = outcome
    return runs


def excused(
    name: str, outcome: Outcome, runs: dict[str, dict[str, Outcome]], patterns: list[str]
) -> bool:
    """Return whether a skip could not have been avoided in the run that it happened in."""
    if re.search(r"\branks?\b", outcome.reason) and any(
        name in tests and tests[name].status != SKIPPED for tests in runs.values()
    ):
        return True
    return any(re.search(pattern, outcome.reason) for pattern in patterns)


def main(arguments: list[str]) -> int:
    """Print the skips and the total; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--excuse", action="append", default=[], metavar="PATTERN")
    parser.add_argument(
        "--allow-skips", action="store_true", help="list skips, do not fail on them"
    )
    options = parser.parse_args(arguments)

    runs = read_runs(options.folder)
    count = [0, 0, 0]
    bad_skips = 0
    for run, tests in runs.items():
        for name, outcome in tests.items():
            count[outcome.status] += 1
            if outcome.status == SKIPPED:
                fine = excused(name, outcome, runs, options.excuse)
                bad_skips += not fine
                word = "skipped, could not run here" if fine else "SKIPPED"
                print(f"{run}: {word}: {name}: {outcome.reason}")
    if not sum(count):
        print(f"no test reports in {options.folder}")
    elif bad_skips and not options.allow_skips:
        print(f"{bad_skips} tests were skipped that could have run")
    print(f"{count[PASSED]} passed, {count[FAILED]} failed, {count[SKIPPED]} skipped")
    return int(not sum(count) or count[FAILED] > 0 or (bad_skips > 0 and not options.allow_skips))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Of pinned requirements, those that this Python does not have yet; says which are other versions.

    python missing_packages.py WARNINGS FILE ...

For a set-up on packages that are there (SYSTEM_TORCH=1). Prints the lines that pip still has to
install, and appends to the file WARNINGS a line for each version that is not the pinned one. A
command of the name on PATH, such as cmake, counts as there.
"""

import re
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def main(warnings: Path, files: list[Path]) -> None:
    """Print what is missing."""
    for line in (line for file in files for line in file.read_text(encoding="utf-8").splitlines()):
        pinned = re.match(r"([A-Za-z0-9_.-]+)==([^\s#]+)", line)
        if pinned is None:
            continue
        name, tested = pinned[1], pinned[2]
        try:
            found = version(name)
        except PackageNotFoundError:
            if shutil.which(name) is None:
                print(f"{name}=={tested}")
            continue
        if found.partition("+")[0] != tested:
            with warnings.open("a", encoding="utf-8") as file:
                file.write(f"{name} {found} is taken as it is there; tested is {tested}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(file) for file in sys.argv[2:]])

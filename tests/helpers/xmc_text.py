"""Small files of the text that `prepare xmc` reads, and the rows of what it makes, as lists."""

from pathlib import Path

import numpy as np

from ist_hpc.data.csr import Csr
from ist_hpc.data.shards import Dataset

FEATURES, LABELS, TRAIN, TEST = 40, 12, 300, 50

Rows = list[tuple[list[int], list[int], list[float]]]
"""Of each row labels, feature indices, values."""


def lines_of(rows: int, seed: int, first: int = 0) -> list[str]:
    """Rows that are all different: feature 0 has the row's number; some lack labels or features."""
    random = np.random.default_rng(seed)
    lines = []
    for row in range(rows):
        labels = sorted(random.choice(LABELS - 1, size=random.integers(0, 4), replace=False))
        indices = sorted(random.choice(range(1, FEATURES), random.integers(0, 6), replace=False))
        entries = [f"0:{first + row}", *(f"{i}:{random.random():.6f}" for i in indices)]
        lines.append(" ".join([",".join(map(str, labels)), *entries]))
    return lines


def write(path: Path, lines: list[str], end: str = "\n", header: str | None = None) -> Path:
    header = header or f"{len(lines)} {FEATURES} {LABELS}"
    path.write_bytes(end.join([header, *lines, ""]).encode())
    return path


def text_files(folder: Path) -> list[str]:
    """Writes TRAIN and TEST rows; the options that name the files."""
    train = write(folder / "train.txt", lines_of(TRAIN, 1))
    test = write(folder / "test.txt", lines_of(TEST, 2, first=TRAIN))
    return ["--train", str(train), "--test", str(test)]


def rows_in(output: Path, split: str) -> Rows:
    with Dataset.open(output) as data:
        features, labels = data.read(split, 0, data.rows(split))
    return rows_of(features, labels)


def rows_of(features: Csr, labels: Csr) -> Rows:
    rows = []
    for row in range(len(features)):
        one, own = features.part(row, row + 1), labels.part(row, row + 1)
        assert one.values is not None
        rows.append((own.indices.tolist(), one.indices.tolist(), one.values.tolist()))
    return rows


def expected(lines: list[str]) -> Rows:
    rows = []
    for line in lines:
        own, *entries = line.split(" ")
        pairs = sorted(
            (int(i), float(np.float32(float(v)))) for i, v in (e.split(":") for e in entries)
        )
        labels = sorted(map(int, own.split(","))) if own else []
        rows.append((labels, [i for i, _ in pairs], [v for _, v in pairs]))
    return rows

#!/usr/bin/env python
"""MB of text a second of `prepare xmc`, on one core: the parser alone, and the whole conversion.

usage: python bench/xmc_reader.py [MB]     text of the shape of Amazon-670k, values such as 0.123456

Seconds of the processor beside those of the clock: the first say what the program costs, the second
what the machine gave it.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from ist_hpc.prepare.xmc.line import Header
from ist_hpc.prepare.xmc.text import parse_block

FEATURES, LABELS, ENTRIES, LABELS_A_ROW = 135_909, 670_091, 76, 5
BLOCK_BYTES = 1 << 20


def write_text(path: Path, megabytes: int) -> int:
    """Write about so many MB; returns the rows."""
    generator = np.random.Generator(np.random.Philox(0))
    lines: list[str] = []
    size = 0
    while size < megabytes * 10**6:
        features = np.sort(generator.choice(FEATURES, ENTRIES, replace=False))
        values = generator.integers(1, 10**6, ENTRIES)
        labels = ",".join(map(str, np.sort(generator.integers(LABELS, size=LABELS_A_ROW))))
        pairs = zip(features, values, strict=True)
        lines.append(labels + " " + " ".join(f"{f}:0.{v:06d}" for f, v in pairs) + "\n")
        size += len(lines[-1])
    path.write_text(f"{len(lines)} {FEATURES} {LABELS}\n" + "".join(lines))
    return len(lines)


def parse(path: Path, rows: int) -> None:
    """The parser alone, in blocks of whole lines."""
    text = path.read_bytes()
    at = text.index(b"\n") + 1
    header = Header(rows, FEATURES, LABELS)
    while at < len(text):
        end = text.rfind(b"\n", at, at + BLOCK_BYTES) + 1
        parse_block(text[at:end], header)
        at = end


def main(megabytes: int) -> None:
    """Print three repetitions of each."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.txt"
        rows = write_text(path, megabytes)
        size = path.stat().st_size / 1e6
        print(f"{rows} rows, {size:.0f} MB")
        for _ in range(3):
            wall_s, processor_s = time.perf_counter(), time.process_time()
            parse(path, rows)
            wall_s, processor_s = time.perf_counter() - wall_s, time.process_time() - processor_s
            print(
                f"parser: {size / processor_s:.0f} MB/s of processor, {size / wall_s:.0f} by clock"
            )
        command = [sys.executable, "-m", "ist_hpc.prepare", "xmc", "--train", str(path)]
        for k in range(3):
            output = ["--test", str(path), "--output", f"{folder}/data-{k}"]
            begin = time.perf_counter()
            subprocess.run([*command, *output], check=True, capture_output=True)
            wall_s = time.perf_counter() - begin
            print(f"conversion, twice the text: {2 * size / wall_s:.0f} MB/s by clock")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)

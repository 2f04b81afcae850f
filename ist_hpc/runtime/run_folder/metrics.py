"""metrics.jsonl of a run: a row a round, and a row an evaluation or a save."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ist_hpc.common.disk.files import json_text, open_text, write_text
from ist_hpc.runtime.meters import KINDS


class MetricsFile:
    """Rows of JSON at `path`, which need not be there yet."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, round_index: int) -> None:
        """Drop the rows of rounds that a resume from `round_index` trains again."""
        if not self.path.exists():
            return
        kept = [json_text(row, indent=None) for row in self.rows() if row["round"] <= round_index]
        write_text(self.path, "".join(line + "\n" for line in kept))

    def rows(self) -> Iterator[dict[str, Any]]:
        """The whole rows of the metrics; a killed run, or a lost host, may leave half a row."""
        if not self.path.exists():
            return
        with self.path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                whole = isinstance(row, dict) and isinstance(row.get("round"), int)
                if whole and isinstance(row.setdefault("seconds", {}), dict):
                    yield row

    def totals(self) -> dict[str, dict[str, Any]]:
        """Seconds by kind (means over ranks) and bytes of all rows, over all starts of the run."""
        seconds, sizes = dict.fromkeys(KINDS, 0.0), {"sent": 0, "received": 0, "averaged": 0}
        for row in self.rows():
            for kind in KINDS:
                seconds[kind] += row["seconds"].get(kind, 0.0)
            for direction in sizes:
                sizes[direction] += row.get(f"bytes_{direction}", 0)
        return {"seconds": seconds, "bytes": sizes}

    def add(self, row: dict[str, Any]) -> None:
        """Append a row; numbers that are not finite, which JSON does not have, become null.

        Raises OSError for a row that cannot be written, of which then nothing is left.
        """
        line = json_text(finite(row), indent=None) + "\n"
        whole_bytes = None
        try:
            with open_text(self.path, "a") as file:
                whole_bytes = file.tell()
                file.write(line)
        except OSError:
            if whole_bytes is not None:  # the row may have been written in part
                with suppress(OSError):
                    os.truncate(self.path, whole_bytes)
            raise


def finite(value: Any) -> Any:
    """A copy in which numbers that are not finite, which JSON does not have, are None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

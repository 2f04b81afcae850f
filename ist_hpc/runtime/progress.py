"""Reports the progress of a run: a bar on a terminal, else a line now and then."""

import sys
import time
from typing import Any

from tqdm import tqdm

from ist_hpc.common.disk.names import spoken
from ist_hpc.runtime.launch import log

_LINE_EVERY_S = 10.0


class Narrator:
    """Reports on rank 0 alone. `steps_done` and `steps_total` are local steps.

    metric  the key of the result to report
    """

    def __init__(self, rank: int, steps_done: int, steps_total: int, metric: str) -> None:
        self._metric = metric
        self._watched = rank == 0 and sys.stderr.isatty()
        self._last_line = time.monotonic()
        self._tested: dict[str, str] = {}
        self._bar = tqdm(
            total=steps_total, initial=steps_done, unit="step", disable=not self._watched
        )

    def after_round(self, row: dict[str, Any], result: dict[str, float] | None) -> None:
        """Report a round's metrics; `result` are those of its evaluation, if there was one."""
        if result:
            self._tested = {f"test_{self._metric}": f"{result[self._metric]:.4f}"}
        if self._watched:
            self._bar.update(row["steps"] - self._bar.n)
            self._bar.set_postfix(loss=f"{row['loss']:.4f}", **self._tested, refresh=False)
        elif result or time.monotonic() - self._last_line > _LINE_EVERY_S:
            tested = f", test {spoken(self._metric)} {result[self._metric]:.4f}" if result else ""
            line = f"round {row['round']}, epoch {row['epoch']:.1f}, loss {row['loss']:.4f}{tested}"
            log.info("%s", line)
            self._last_line = time.monotonic()

    def close(self) -> None:
        """Leave the terminal in order."""
        self._bar.close()

"""How long a run takes for work it cannot interrupt, and whether its limits allow for that."""

import math
from collections.abc import Iterable

from ist_hpc.common.sizes import ELEMENT_BYTES
from ist_hpc.config.keys import RuntimeConfig
from ist_hpc.exchange.placement import TensorSpec
from ist_hpc.runtime.launch import log

_ASSUMED_SAVING = 50e6  # bytes per second and rank, if many write to one file system


def assumed_checkpoint_s(specs: Iterable[TensorSpec], ranks: int) -> float:
    """Seconds that the first checkpoint of these tensors may take. Local."""
    saved_bytes = ELEMENT_BYTES * sum(math.prod(spec.shape) for spec in specs) / ranks
    return saved_bytes / _ASSUMED_SAVING


class Durations:
    """The longest round and checkpoint so far; rank 0 warns of each limit once. Local.

    checkpoint_s  seconds that the first checkpoint is expected to take
    limits        `lead_time_s` between a job's warning and its kill, 0 if unknown; `silence_s`
                  after which a rank counts as lost
    """

    def __init__(self, checkpoint_s: float, limits: RuntimeConfig, rank: int) -> None:
        self._round_s, self._checkpoint_s = 0.0, checkpoint_s
        self._lead_time_s, self._silence_s = limits.lead_time_s, limits.silence_s
        self._warns = rank == 0
        self._warned: set[str] = set()

    def add_round(self, seconds: float) -> None:
        """Record a round; warn if it is too long."""
        self._round_s = max(self._round_s, seconds)
        self._warn()

    def add_checkpoint(self, seconds: float) -> None:
        """Record a checkpoint, including the exchange home; warn if it is too long."""
        self._checkpoint_s = max(self._checkpoint_s, seconds)
        self._warn()

    def _warn(self) -> None:
        if self._checkpoint_s > self._silence_s / 2:
            self._warn_once(
                "a checkpoint takes about %.0f s; a rank that is silent for %.0f s is taken for "
                "lost: raise runtime.silence_s",
                self._checkpoint_s,
                self._silence_s,
            )
        if 0 < self._lead_time_s < self._round_s + self._checkpoint_s:
            self._warn_once(
                "a round takes %.0f s and a checkpoint about %.0f s, but the warning comes only "
                "%.0f s before the kill (runtime.lead_time_s): ask for an earlier one (sbatch "
                "--signal; LEAD_TIME_S in slurm/env.sh), or take fewer train.local_steps",
                self._round_s,
                self._checkpoint_s,
                self._lead_time_s,
            )

    def _warn_once(self, text: str, *seconds: float) -> None:
        if self._warns and text not in self._warned:
            self._warned.add(text)
            log.warning(text, *seconds)

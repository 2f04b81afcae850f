"""What happens to a run in which a loss or a weight is not finite."""

from collections.abc import Sequence
from pathlib import Path

from ist_hpc.runtime.launch import AgreedRunError, log
from ist_hpc.training.algorithms.base import Algorithm

_MOST_SKIPPED = 10  # rounds in a row
_MOST_NAMED = 8  # ranks


class DivergencePolicy:
    """Ends the run, or gives up single rounds if allowed (`train.on_nan: skip_round`).

    In a round: `keep` after it has begun, `undo_if_unfit` after its steps, `answer` when its row is
    written.
    """

    def __init__(self, algorithm: Algorithm, may_skip: bool) -> None:
        self._algorithm, self._may_skip = algorithm, may_skip
        self._skipped = 0  # rounds in a row

    def keep(self) -> None:
        """Copy what the round will change, if rounds may be given up. Local."""
        if self._may_skip:
            self._algorithm.keep_round()

    def undo_if_unfit(self, diverged: bool) -> list[int]:
        """Give the round up if it is not finite on any rank; return those ranks, the same on all.

        diverged  whether a loss of this rank's steps is not finite, or too large

        Returns none, and undoes nothing, if rounds may not be given up. Collective.
        """
        if not self._may_skip:
            return []
        algorithm = self._algorithm
        is_fit = not diverged and algorithm.is_finite()
        with algorithm.meter.timing("wait"):
            unfit = [rank for rank, fit in enumerate(algorithm.comm.allgather(is_fit)) if not fit]
        if unfit:
            algorithm.undo_round()
        else:
            algorithm.forget_kept()
        return unfit

    def answer(
        self, round_index: int, diverged: Sequence[int], unfit: Sequence[int], saved: Path | None
    ) -> None:
        """Warn of a round that was given up, or end the run if it cannot be. Local.

        diverged  ranks whose loss is not finite, or too large
        unfit     ranks for which the round was given up
        saved     the newest checkpoint

        All four are the same on all ranks, and so is the `AgreedRunError`. The tenth round in a row
        that was given up also raises it.
        """
        self._skipped = self._skipped + 1 if unfit else 0
        ranks = diverged or unfit
        if not ranks:
            return
        what = "the loss" if diverged else "a weight"
        of = ", ".join(map(str, ranks[:_MOST_NAMED])) + (", ..." if ranks[_MOST_NAMED:] else "")
        where = f"{what} of round {round_index} is not finite or above 1e9 (rank {of})"
        if 0 < self._skipped < _MOST_SKIPPED:
            if self._algorithm.rank == 0:
                log.warning("%s; the round is given up", where)
            return
        newest = f"the newest checkpoint is {saved}" if saved else "nothing was saved"
        many = f", as were those of {self._skipped} rounds in a row" if self._skipped else ""
        raise AgreedRunError(
            f"{where}{many}; {newest}. A lower optimizer.lr usually helps, and train.on_nan: "
            "skip_round gives single rounds up"
        )

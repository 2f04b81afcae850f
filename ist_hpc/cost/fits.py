"""Whether a planned run fits into the memory of a rank, and whether its ranks fit the shards."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ist_hpc.common.errors import InputError
from ist_hpc.config.keys import Config
from ist_hpc.cost.limits import BASE_BYTES
from ist_hpc.data.meta_reading import load_meta
from ist_hpc.data.shard_meta import META_FILE


def fits(
    memory_bytes: int,
    needs_bytes: Mapping[str, int],
    needs_of_ranks: Callable[[int], int],
    most_ranks: int,
) -> dict[str, Any]:
    """Which algorithms fit into the memory of a rank, and the fewest ranks with which IST does."""
    fewest = fewest_ranks(lambda n: needs_of_ranks(n) <= memory_bytes, most_ranks)
    return {
        "memory_bytes": memory_bytes,
        "base_bytes": BASE_BYTES,
        **{
            name: {"needs_bytes": need, "fits": need <= memory_bytes}
            for name, need in needs_bytes.items()
        },
        "fewest_ranks_ist": fewest,
        "most_ranks_tried": most_ranks,
    }


def fewest_ranks(fits: Callable[[int], bool], most_ranks: int) -> int | None:
    """The fewest ranks for which `fits` is true; None if there are none up to `most_ranks`.

    One rank is tried separately, as it exchanges nothing. From two on, a number that fits is
    assumed to fit with more ranks, too: the search doubles, then halves.
    """
    if fits(1):
        return 1
    too_few, enough = 1, 2
    while enough < most_ranks and not fits(enough):
        too_few, enough = enough, 2 * enough
    enough = min(enough, most_ranks)
    if enough <= too_few or not fits(enough):
        return None
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if fits(middle):
            enough = middle
        else:
            too_few = middle
    return enough


def refuse_unfit(config: Config, report: Mapping[str, Any]) -> None:
    """Raise `InputError` for a run that its `plan_report` or the shards rule out. Local."""
    algorithm, ranks = config.train.algorithm, report["ranks"]
    if "fits" in report:
        # DDP keeps the same weights and gradients as Horovod's data parallel training.
        fit = report["fits"]["data_parallel" if algorithm == "ddp" else algorithm]
        if not fit["fits"]:
            raise InputError(
                f"{algorithm} on {ranks} ranks does not fit: a rank needs "
                f"{fit['needs_bytes'] / 1e9:.2f} GB and may have "
                f"{report['fits']['memory_bytes'] / 1e9:.2f} GB; take "
                f"{_enough_ranks(algorithm, report)}fewer ranks on a node, or nodes with more "
                "memory"
            )
    path = Path(config.data.path)
    if config.data.assign == "files" and (path / META_FILE).exists():
        count = len(load_meta(path).shards.get("train", ()))
        if count < ranks:
            raise InputError(
                f"{path}: {count} train shards are too few for {ranks} ranks under `data.assign: "
                "files`; take `data.assign: rows`, or prepare the data with more shards"
            )


def _enough_ranks(algorithm: str, report: Mapping[str, Any]) -> str:
    """How many more ranks would help, as the beginning of a list; empty if none would."""
    fewest = report["fits"]["fewest_ranks_ist"]
    if fewest is None:
        return ""
    if algorithm == "ist":
        return f"{fewest} ranks or more, "
    return f"`train.algorithm: ist` on {fewest} ranks or more, "  # a replica is as large on any

"""Whether a checkpoint is whole: every byte as it was written, every value finite."""

import math
from collections.abc import Iterator

from ist_hpc.checkpoint.folder import Checkpoint
from ist_hpc.checkpoint.statistics import GROUPS, statistics_of
from ist_hpc.common.errors import InputError


def verify(checkpoint: Checkpoint) -> Iterator[str]:
    """Yield a verdict on each file and on all values, as soon as it is known. Local.

    Compares the SHA-256 of every file with the manifest, then reads every dataset, which checks
    HDF5's own checksums. Raises `InputError` for the first damaged file or value not finite.
    """
    yield str(checkpoint.folder)
    problems = []
    for name in sorted(checkpoint.files):
        try:
            checkpoint.check_files([name])
            yield f"  ok       {name}"
        except InputError as error:
            problems.append(error)
            yield f"  DAMAGED  {name}"
    if problems:
        more = f" (and {len(problems) - 1} more files)" if len(problems) > 1 else ""
        raise InputError(f"{problems[0]}{more}")
    tensors = values = 0
    with checkpoint.opened() as opened:
        for group in GROUPS:
            for key in opened.keys(group):
                shape = opened.shape(group, key)
                unusable = statistics_of(opened, group, key, shape).unusable
                if unusable:
                    raise InputError(
                        f"{opened.path}: {unusable} of {math.prod(shape)} values of {group}/{key} "
                        "are NaN or infinite, and were when it was written: training diverged"
                    )
                tensors, values = tensors + 1, values + math.prod(shape)
    yield f"  ok       {tensors} tensors, {values:,} values, all finite"

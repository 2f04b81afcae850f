"""Which clips are train rows and which test rows, by their speakers, and the order of each."""

import hashlib
import os

from ist_hpc.common.errors import InputError
from ist_hpc.common.random_streams import permutation
from ist_hpc.prepare.speech.report import Clip

NUM_FOLDS = 5

_HASH_BYTES = 8  # of a SHA-1; a fold is a fifth of their range


def fold_of(speaker: str) -> int:
    """The fold, 0 to 4, in whose test set the speaker is: a fifth of the range of a SHA-1.

    Its leading bytes decide. The data set's publisher divides by the last 27 bits; dividing by the
    same bits would make nearly all of the official test archive test rows in one fold and train
    rows in the others. The leading bytes divide that archive, and any other part, evenly.
    """
    digest = hashlib.sha1(os.fsencode(speaker), usedforsecurity=False).digest()
    leading = int.from_bytes(digest[:_HASH_BYTES], "big")
    return leading * NUM_FOLDS >> (8 * _HASH_BYTES)


def split_rows(clips: list[Clip], fold: int, seed: int) -> dict[str, list[int]]:
    """The positions in `clips` of the train and of the test rows, each in its random order.

    The order matters: a rank gets a contiguous range of rows, which unshuffled would have only a
    few words. Raises InputError if either part is empty.
    """
    is_test = [fold_of(clip.speaker) == fold for clip in clips]
    order = permutation("prepare speech rows", seed, 0, len(clips)).tolist()
    rows = {
        "train": [row for row in order if not is_test[row]],
        "test": [row for row in order if is_test[row]],
    }
    for split, chosen in rows.items():
        if not chosen:
            speakers = len({clip.speaker for clip in clips})
            raise InputError(
                f"fold {fold} of {speakers} speakers leaves no {split} clips; "
                "give another --fold or an --input with more speakers"
            )
    return rows

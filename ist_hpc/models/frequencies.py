"""How often the labels of a data set occur, for networks that draw labels."""

import torch
from torch import Tensor

from ist_hpc.common.errors import InputError
from ist_hpc.data.shards import Dataset


def label_frequencies(dataset: Dataset) -> Tensor | None:
    """The part of the training rows that has each label; float32 [labels]. Local.

    None where rows have one class. Raises `InputError` for data that do not say it.
    """
    if not dataset.sparse:
        return None
    counts = dataset.label_counts()
    if counts is None:
        raise InputError(
            f"{dataset.path} does not say how often each label occurs, which `model.loss: "
            "sampled_softmax` needs; prepare the data again"
        )
    return torch.from_numpy(counts / dataset.rows("train")).float()

"""Weights without an axis: Horovod broadcasts them at the start and averages them each round."""

from types import ModuleType

from torch import Tensor


class SharedWeights:
    """Horovod's part of the model. `hvd` is an initialised `horovod.torch`."""

    def __init__(self, hvd: ModuleType) -> None:
        self._hvd = hvd

    def broadcast(self, tensors: dict[str, Tensor]) -> None:
        """Give rank 0's values to all, in place. Collective."""
        if tensors:
            self._hvd.broadcast_parameters(tensors, root_rank=0)

    def average(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its mean over the ranks, in one grouped call. Collective.

        With four or more ranks an allreduce sums in an order of its own, so means are equal on all
        ranks but, to the last bit, not those of another summation.
        """
        self._hvd.grouped_allreduce_(tensors, name="shared", op=self._hvd.Average)

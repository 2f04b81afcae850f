"""How ranks train together. A new algorithm is one file here and one entry in `build`."""

from typing import TYPE_CHECKING

from ist_hpc import optimizer
from ist_hpc.algorithms.base import Algorithm
from ist_hpc.algorithms.ist import IndependentSubnets
from ist_hpc.config import Config
from ist_hpc.exchange import Exchanger
from ist_hpc.models.base import Model
from ist_hpc.runtime import start_horovod
from ist_hpc.shared import SharedWeights

if TYPE_CHECKING:
    from mpi4py import MPI


def build(comm: "MPI.Comm", config: Config, model: Model) -> Algorithm:
    """The algorithm that a configuration names; starts Horovod if the model shares weights.

    Collective.
    """
    shared = None
    if model.shared:
        shared = SharedWeights(start_horovod(comm, config.runtime.silence_s))
    return IndependentSubnets(
        comm,
        model,
        optimizer.build(config.optimizer),
        Exchanger(comm, config.exchange.buffer_mib),
        config.seed,
        config.optimizer.state == "carry",
        shared,
    )

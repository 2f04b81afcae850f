"""How ranks train together. A new algorithm is one file here and one entry in `build`."""

from typing import TYPE_CHECKING

import torch

from ist_hpc import devices, optimizer
from ist_hpc.algorithms.base import Algorithm
from ist_hpc.algorithms.ist import IndependentSubnets
from ist_hpc.config import Config
from ist_hpc.exchange import Exchanger
from ist_hpc.models.base import Model
from ist_hpc.runtime import start_horovod
from ist_hpc.shared import SharedWeights
from ist_hpc.staging import staging_of

if TYPE_CHECKING:
    from mpi4py import MPI


def build(
    comm: "MPI.Comm", config: Config, model: Model, device: torch.device = devices.CPU
) -> Algorithm:
    """The algorithm that a configuration names, on this rank's device (of `devices.choose`).

    Starts Horovod if the model shares weights. Collective.
    """
    shared = None
    if model.shared:
        shared = SharedWeights(start_horovod(comm, config.runtime.silence_s))
    return IndependentSubnets(
        comm,
        model,
        optimizer.build(config.optimizer),
        Exchanger(
            comm,
            config.exchange.buffer_mib,
            staging_of(device, config.exchange.cuda_aware),
        ),
        config.seed,
        config.optimizer.state == "carry",
        shared,
    )

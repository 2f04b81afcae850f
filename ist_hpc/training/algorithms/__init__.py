"""How ranks train together. A new algorithm is one file here and one entry in `build`."""

from typing import TYPE_CHECKING

import torch

from ist_hpc.common.errors import InputError
from ist_hpc.config.keys import Config
from ist_hpc.exchange.exchanger import Exchanger
from ist_hpc.exchange.placement import at_round, elements
from ist_hpc.exchange.staging import staging_of
from ist_hpc.models import optimizer
from ist_hpc.models.base import Model
from ist_hpc.runtime import devices, horovod_start
from ist_hpc.runtime.launch import check_on_all
from ist_hpc.training import averaging
from ist_hpc.training.algorithms.base import Algorithm
from ist_hpc.training.algorithms.data_parallel import DataParallel
from ist_hpc.training.algorithms.ddp import Ddp
from ist_hpc.training.algorithms.ist import IndependentSubnets
from ist_hpc.training.algorithms.local_sgd import LocalSgd

if TYPE_CHECKING:
    from mpi4py import MPI

_MOST_ELEMENTS = 2**31


def refuse_unfit(config: Config, model: Model, ranks: int) -> None:
    """Raise `InputError` if the ranks cannot train the model with the algorithm. Local."""
    algorithm = config.train.algorithm
    if algorithm == "ist":
        at_round(model.axes, ranks, config.seed, 0)  # refuses axes with fewer units than ranks
    if algorithm == "ddp" and not model.differentiable:
        raise InputError(
            "`train.algorithm: ddp` wants a loss for autograd, which there is neither for sparse "
            "rows nor for labels in blocks; take data_parallel"
        )
    largest = max(model.specs, key=elements)
    if algorithm == "data_parallel" and elements(largest) >= _MOST_ELEMENTS:
        raise InputError(
            f"{largest.key} has {elements(largest):,} elements, and Horovod averages gradients of "
            "less than 2^31; take local_sgd or ist"
        )


def build(
    comm: "MPI.Comm", config: Config, model: Model, device: torch.device = devices.CPU
) -> Algorithm:
    """The algorithm that a configuration names, on this rank's device (of `devices.choose`).

    Starts Horovod or its substitute for data parallel training and local SGD, and for independent
    subnets if the model shares weights; for DDP a process group of PyTorch.
    Collective. Raises `AgreedInputError` if the configuration needs what only Horovod has.
    """
    train, rule, seed = config.train, optimizer.build(config.optimizer), config.seed
    carry, silence_s = config.optimizer.state == "carry", config.runtime.silence_s
    if train.algorithm == "ddp":
        return Ddp(comm, model, rule, seed, carry, silence_s)
    if train.algorithm == "data_parallel":
        check_on_all(comm, lambda: _refuse_compression(train.compression))
        averages = averaging.start(comm, silence_s)
        return DataParallel(comm, model, rule, device, seed, carry, averages, train.compression)
    if train.algorithm == "local_sgd":
        averages = averaging.start(comm, silence_s)
        return LocalSgd(comm, model, rule, device, seed, carry, averages, train.warmup_steps)
    exchange = config.exchange
    exchanger = Exchanger(comm, exchange.buffer_mib, staging_of(device, exchange.cuda_aware))
    shared = averaging.start(comm, silence_s) if model.shared else None
    return IndependentSubnets(comm, model, rule, exchanger, seed, carry, shared)


def _refuse_compression(compression: str) -> None:
    """Raise `InputError` for compressed gradients without Horovod. Local."""
    if compression != "none" and not horovod_start.is_installed():
        raise InputError(
            f"`train.compression: {compression}` is Horovod's, which is not installed: install it "
            "(INSTALL.md), or take none"
        )

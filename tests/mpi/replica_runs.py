"""Training whole models on the ranks, and the plain loops that it is compared with."""

import numpy as np
import torch
from torch import Tensor

from ist_hpc.models import optimizer
from ist_hpc.models.convolutional.resnet import ResNet
from ist_hpc.models.gradients import RowGradient
from ist_hpc.models.local_step import LocalStep
from ist_hpc.models.perceptrons.mlp import MultiLayerPerceptron
from ist_hpc.runtime.devices import CPU
from ist_hpc.training.algorithms.data_parallel import DataParallel
from ist_hpc.training.algorithms.ddp import Ddp
from ist_hpc.training.algorithms.local_sgd import LocalSgd
from tests.mpi.helpers import INPUTS, OUTPUTS, batch, full, rule

SEED, STEPS = 3, 3
RULES = {
    "momentum": rule(momentum=0.9),
    "momentum, reset": rule(momentum=0.9, state="reset"),
    # Where rounding decides the sign of a gradient, Adam's step has the size of a step.
    "adam": rule(kind="adam", lr=0.01, eps=1e-4),
}
SPARSE = {"output_norm": False, "loss": "softmax", "label_block": 3, "sparse": True}


def perceptron():
    return MultiLayerPerceptron(INPUTS, [9, 7], OUTPUTS, output_norm=False, output_bias=True)


def residual():
    return ResNet((1, 1, 3, 1), (4, 5, 6, 7), OUTPUTS)


def images(rank, step):
    generator = torch.Generator().manual_seed(1000 * rank + step)
    return torch.randn(8, 3 * 32 * 32, generator=generator), batch(rank, step)[1]


def algorithm_of(world, averages, kind, model, config, device=CPU, warmup=0, compression="none"):
    update, carry = optimizer.build(config), config.state == "carry"
    if kind == "ddp":
        return Ddp(world, model, update, SEED, carry, silence_s=30)
    if kind == "data_parallel":
        return DataParallel(world, model, update, device, SEED, carry, averages, compression)
    return LocalSgd(world, model, update, device, SEED, carry, averages, warmup)


def started(world, averages, kind, model, config, **options):
    algorithm = algorithm_of(world, averages, kind, model, config, **options)
    algorithm.start_new()
    return algorithm


def train(world, algorithm, config, rounds, draw=batch, first=0):
    for index in range(first, first + rounds):
        algorithm.begin_round(index)
        for step in range(STEPS * index, STEPS * (index + 1)):
            algorithm.step(*draw(world.Get_rank(), step), config.lr, step)
        algorithm.end_round()


def everything(world, algorithm):
    """All weights and carried slots, whole; they are the same on all ranks, to the bit."""
    specs = (*algorithm.model.specs, *algorithm.slot_specs)
    whole = full(world, algorithm, specs) | algorithm.shared | algorithm.shared_slots
    own = np.concatenate([whole[key].detach().numpy().ravel() for key in sorted(whole)])
    for other in world.allgather(own):
        assert np.array_equal(own, other)
    for spec in algorithm.model.specs:  # the replicas, too, and not only the blocks at home
        own = algorithm._weights[spec.key].detach().numpy()
        for other in world.allgather(own):
            assert np.array_equal(own, other), spec.key
    return {key: tensor.detach().clone() for key, tensor in whole.items()}


class Plain:
    """One copy of the model, trained by an optimiser of PyTorch's; tensors in logical order."""

    def __init__(self, model, config):
        self.model, self.config = model, config
        self.weights = {
            spec.key: torch.from_numpy(model.initial_rows(spec, SEED, (0, spec.rows)))
            for spec in model.specs
        } | {spec.key: torch.from_numpy(model.initial_shared(spec, SEED)) for spec in model.shared}
        self.turned = {spec.key for spec in model.specs if spec.transposed}
        self.begin()

    def begin(self):
        """Begin the optimiser's state anew."""
        untrained = {spec.key for spec in self.model.shared if not spec.trained}
        self.trained = [key for key in self.weights if key not in untrained]
        leaves = [self.weights[key].requires_grad_() for key in self.trained]
        if self.config.kind == "adam":
            options = {"betas": self.config.betas, "eps": self.config.eps}
            self.optimizer = torch.optim.Adam(leaves, self.config.lr, foreach=False, **options)
        else:
            momentum = self.config.momentum
            self.optimizer = torch.optim.SGD(
                leaves, self.config.lr, momentum=momentum, foreach=False
            )

    def gradients(self, features, labels, step=0):
        stored = {
            key: weight.detach().t().contiguous() if key in self.turned else weight.detach()
            for key, weight in self.weights.items()
        }
        local_step = LocalStep(SEED, index=step)
        _, found = self.model.loss_and_gradients(stored, features, labels, local_step)
        whole = {key: dense(gradient, stored[key]) for key, gradient in found.items()}
        return {key: one.t() if key in self.turned else one for key, one in whole.items()}

    def step(self, gradients):
        for key in self.trained:
            self.weights[key].grad = gradients[key].contiguous()
        self.optimizer.step()

    def slots(self):
        names = {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq", "momentum": "momentum_buffer"}
        return {
            f"{slot}/{key}": self.optimizer.state[weight][name]
            for key, weight in self.weights.items()
            for slot, name in names.items()
            if name in self.optimizer.state[weight]
        }


def dense(gradient, weight):
    if isinstance(gradient, Tensor):
        return gradient
    if isinstance(gradient, RowGradient):
        return torch.zeros_like(weight).index_add(0, gradient.rows, gradient.values)
    return torch.cat([values for _, values in gradient.blocks], dim=1)


def on_mean_gradients(world, model, config, rounds, draw=batch):
    """The weights of one process that averages the gradients of all ranks' batches."""
    plain, ranks = Plain(model, config), world.Get_size()
    for index in range(rounds):
        if config.state == "reset":
            plain.begin()
        for step in range(STEPS * index, STEPS * (index + 1)):
            own = [plain.gradients(*draw(rank, step), step) for rank in range(ranks)]
            plain.step({key: sum(one[key] for one in own) / ranks for key in own[0]})
    return plain.weights

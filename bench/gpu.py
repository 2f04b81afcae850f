#!/usr/bin/env python
"""What bench/gpu.sh measures itself, on one device: CUDA, or the CPU for a rehearsal.

tools/mpirun.sh -np 2 python bench/gpu.py check --device cuda     weights through MPI and averaged
python bench/gpu.py steps --device cuda [--tiny]                  local steps: a Markdown table
python bench/gpu.py images FOLDER                                 made images, where there are none
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ist_hpc.bench.made import trainer_in_a_round
from ist_hpc.common.commandline import Parser, given_path
from ist_hpc.common.errors import InputError
from ist_hpc.config import loading
from ist_hpc.cost.counts import step_flops
from ist_hpc.data.shards import DatasetWriter
from ist_hpc.exchange.exchanger import Exchanger, allocate_home
from ist_hpc.exchange.placement import at_round, home
from ist_hpc.exchange.staging import staging_of
from ist_hpc.models.layers import Layer
from ist_hpc.models.perceptrons.mlp import MultiLayerPerceptron
from ist_hpc.runtime import devices, precision
from ist_hpc.runtime.ending import run
from ist_hpc.runtime.launch import Runtime, launch
from ist_hpc.training import averaging

ROOT = Path(__file__).resolve().parent.parent
# The networks that are measured, and what makes a small one of each.
TINY = {
    "speech2": ["model.hidden=[64,64]"],
    "speech3": ["model.hidden=[64,64,64]"],
    "vgg11_cifar100": ["model.channels=[4,4,6,5,6,5,6,7]", "model.hidden=[16,16]"],
    "resist_cifar100": ["model.channels=[4,4,8,8]", "model.sections=[1,1,5,1]"],
    "amazon670k": ["model.hidden=[16]", "model.inputs=900", "model.outputs=1200"],
}
_MATRIX = {False: 8192, True: 192}  # of the product and the copy that stand for the device's best
_REPEATS = {False: 20, True: 2}


def main() -> int:
    """Do what is asked for; the exit code."""
    return launch("gpu", _arguments, lambda runtime, given: given.body(runtime, given))


def _arguments() -> argparse.Namespace:
    parser = Parser(prog="bench/gpu.py", description=__doc__)
    commands = parser.add_subparsers(required=True)
    for name, body in (("check", check), ("steps", steps)):
        command = commands.add_parser(name)
        command.add_argument("--device", choices=("cuda", "cpu"), required=True)
        command.add_argument("--tiny", action="store_true")
        command.set_defaults(body=body)
    command = commands.add_parser("images")
    command.add_argument("folder", type=given_path)
    command.set_defaults(body=images)
    return parser.parse_args()


def check(runtime: Runtime, given: argparse.Namespace) -> int:
    """Weights on the device, exchanged and brought home; a tensor on it, averaged. Collective."""
    comm, device = runtime.comm, devices.choose(runtime.comm, given.device)
    model = MultiLayerPerceptron(40, [30, 20], 5)
    exchanger = Exchanger(comm, 0.001, staging_of(device, cuda_aware=False))
    state = allocate_home(model.specs, runtime.rank, runtime.ranks, device)
    for held in state.values():
        held.place("home").normal_()
    before = {key: held.place("home").clone() for key, held in state.items()}
    source = home(runtime.ranks)
    for target in (*(at_round(model.axes, runtime.ranks, 3, i) for i in range(3)), source):
        exchanger.exchange(model.specs, source, target, state)
        source = target
    for key, values in before.items():
        if not torch.equal(state[key].place("home"), values):
            raise InputError(f"{key} came back from three rounds as other numbers")
    means = averaging.start(comm, 60.0)
    mine = torch.arange(1000.0, device=device) + runtime.rank
    means.average([mine])
    wanted = torch.arange(1000.0, device=device) + (runtime.ranks - 1) / 2
    if not torch.allclose(mine, wanted):
        raise InputError(f"{means.by} averaged wrongly on {device}")
    if runtime.rank == 0:
        print(f"{runtime.ranks} ranks on {device}: exchanged, and averaged by {means.by}: right")
    return 0


def steps(runtime: Runtime, given: argparse.Namespace) -> int:
    """Seconds of a local step of each network and precision, and what of the device it uses."""
    device = devices.choose(runtime.comm, given.device)
    runtime = runtime.with_threads(0)
    peaks = {name: _peak_flops(name, device, given.tiny) for name in precisions_of(given.device)}
    bandwidth = _bandwidth(device, given.tiny)
    best = ", ".join(f"{name} {peak / 1e12:.3g} TFLOP/s" for name, peak in peaks.items())
    print(f"a product of {_MATRIX[given.tiny]}^3: {best}; a copy: {bandwidth / 1e9:.3g} GB/s\n")
    columns = ("network", "precision", "step, ms", "bare products, ms", "ratio")
    print(f"| {' | '.join(columns)} | of the best product | of the copy |")
    print("|:--|:--|--:|--:|--:|--:|--:|")
    for name, tiny in TINY.items():
        for kind, peak in peaks.items():
            settings = [f"device={given.device}", f"train.precision={kind}"]
            settings += tiny if given.tiny else []
            own = loading.load(ROOT / f"configs/{name}.yaml", settings)
            if given.tiny:
                own = replace(own, data=replace(own.data, batch_size=8))
            with trainer_in_a_round(runtime, own) as trainer:
                layers, batch = trainer.model.layers, own.data.batch_size
                repeats = _REPEATS[given.tiny]
                precision.prepare(kind)
                step_s = _seconds(lambda: trainer.local_steps(1), device, repeats)
                bare_s = _seconds(_bare(layers, batch, device, kind), device, repeats)
            flops = step_flops(layers, batch, 1)
            weights = sum(layer.outputs * layer.inputs * layer.kernel for layer in layers)
            # read by three products, its gradient written and read, itself and nothing else updated
            moved = 4 * (3 + 2 + 2) * weights
            cells = [name, kind, f"{step_s * 1e3:.3f}", f"{bare_s * 1e3:.3f}"]
            cells += [f"{step_s / bare_s:.2f}", f"{flops / step_s / peak:.1%}"]
            cells.append(f"{moved / step_s / bandwidth:.1%}")
            print(f"| {' | '.join(cells)} |", flush=True)
    return 0


def precisions_of(device: str) -> tuple[str, ...]:
    """Those that a device has."""
    return ("float32", "tf32", "bf16") if device == "cuda" else ("float32", "bf16")


def images(runtime: Runtime, given: argparse.Namespace) -> int:
    """Made images of four classes, the brightest corner; on one rank."""
    generator = np.random.default_rng(0)
    with DatasetWriter(
        given.folder, name="corners", feature_shape=(3, 32, 32), feature_dtype="uint8", classes=100
    ) as writer:
        for split, rows in (("train", 2000), ("test", 400)):
            labels = generator.integers(4, size=rows)
            pixels = generator.integers(0, 120, (rows, 3, 32, 32), dtype=np.uint8)
            for row, label in zip(pixels, labels, strict=True):
                row[:, 16 * (label // 2) :, 16 * (label % 2) :][:, :16, :16] += 120
            writer.append(split, pixels, labels)
    return 0


def _seconds(body: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The median of so many, after two to warm up."""
    found = []
    for _ in range(repeats + 2):
        devices.synchronise(device)
        begin = time.perf_counter()
        body()
        devices.synchronise(device)
        found.append(time.perf_counter() - begin)
    return float(np.median(found[2:]))


@contextmanager
def _in(kind: str, device: torch.device) -> Iterator[None]:
    precision.prepare(kind)
    with precision.computing(kind, device):
        yield


def _peak_flops(kind: str, device: torch.device, tiny: bool) -> float:
    size = _MATRIX[tiny]
    one = torch.rand(size, size, device=device, dtype=torch.bfloat16 if kind == "bf16" else None)
    with _in(kind, device):
        return 2 * size**3 / _seconds(lambda: one @ one, device, 5)


def _bandwidth(device: torch.device, tiny: bool) -> float:
    """Bytes read and written a second."""
    source = torch.rand(_MATRIX[tiny], _MATRIX[tiny] * 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source), device, 10)


def _bare(
    layers: Sequence[Layer], batch: int, device: torch.device, kind: str
) -> Callable[[], None]:
    """Forward and backward of each layer alone: products and convolutions, of ready tensors."""
    alone: list[tuple[Tensor, Tensor, Tensor, int]] = []
    for layer in layers:
        for _ in range(layer.own_copies(1)):
            if layer.kernel == 1 and layer.positions == 1:
                entering = torch.rand(batch, layer.inputs, device=device, requires_grad=True)
                weight = torch.rand(layer.outputs, layer.inputs, device=device, requires_grad=True)
                leaving, stride = torch.rand(batch, layer.outputs, device=device), 0
            else:
                side, out = round(layer.positions_in**0.5), round(layer.positions**0.5)
                width, stride = round(layer.kernel**0.5), side // out
                entering = torch.rand(batch, layer.inputs, side, side, device=device)
                entering.requires_grad_()
                shape = (layer.outputs, layer.inputs, width, width)
                weight = torch.rand(*shape, device=device, requires_grad=True)
                leaving = torch.rand(batch, layer.outputs, out, out, device=device)
            alone.append((entering, weight, leaving, stride))

    def body() -> None:
        for entering, weight, leaving, stride in alone:
            with _in(kind, device):
                if stride:
                    width = weight.shape[-1]
                    values = F.conv2d(entering, weight, stride=stride, padding=width // 2)
                else:
                    values = F.linear(entering, weight)
            torch.autograd.grad(values, (entering, weight), leaving.to(values.dtype))

    return body


if __name__ == "__main__":
    run("gpu", main)

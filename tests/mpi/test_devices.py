"""Training on a device: staged through the host, and on a GPU that is only pretended.

To the last bit as on the CPU: what is computed is the same, only where it lies is not.
"""

import functools

import h5py
import numpy as np
import pytest
import torch

from ist_hpc.checkpoint import restore
from ist_hpc.checkpoint.folder import Checkpoint
from ist_hpc.checkpoint.read import Progress
from ist_hpc.config import loading
from ist_hpc.data.rows import rank_segments
from ist_hpc.data.shards import Dataset
from ist_hpc.data.sparse_rows import to_device
from ist_hpc.exchange.exchanger import Exchanger
from ist_hpc.exchange.staging import InPlace, Staging, ThroughHost
from ist_hpc.models import networks, optimizer
from ist_hpc.models.perceptrons.mlp import MultiLayerPerceptron
from ist_hpc.models.perceptrons.sampled_labels import Sampling
from ist_hpc.runtime import devices
from ist_hpc.runtime.devices import CPU
from ist_hpc.runtime.run_folder.folder import RunFolder
from ist_hpc.training import algorithms
from ist_hpc.training.algorithms.ist import IndependentSubnets
from ist_hpc.training.evaluation.full_network import HomeNetwork
from ist_hpc.training.trainer import Setup, Trainer
from tests.helpers.data_sets import write
from tests.helpers.pretended_gpu import GPU, PretendedGpu
from tests.helpers.sparse_rows import write_numbered
from tests.mpi.helpers import INPUTS, OUTPUTS, batch, rule, same_bits, sparse_batch

SEED, ROUNDS = 5, 5
LABELS = {"output_norm": False, "loss": "softmax", "label_block": 2}
SAMPLED = {"output_norm": False, "loss": "sampled_softmax", "sparse": True, "dropout": 0.25}
MANY = 60  # labels, of which a round trains few
few_labels = functools.partial(sparse_batch, outputs=MANY, density=0.02)
CASES = {
    "dense, momentum": ({}, batch, rule(momentum=0.9)),
    "dense, adam": ({}, batch, rule(kind="adam", lr=0.01)),
    "dense, reset": ({}, batch, rule(momentum=0.9, state="reset")),
    "sparse, adam": (LABELS | {"sparse": True}, sparse_batch, rule(kind="adam", lr=0.01)),
    "sparse, rowwise": (LABELS | {"sparse": True}, sparse_batch, rule(kind="rowwise_adagrad")),
    "bce": (LABELS | {"sparse": True, "loss": "bce"}, sparse_batch, rule(kind="adagrad")),
    "sampled, rowwise": (SAMPLED, few_labels, rule(kind="rowwise_adagrad")),
    "sampled, momentum": (SAMPLED, few_labels, rule(momentum=0.9)),
}


class Tensors(InPlace):
    """Blocking, with tensors for MPI in place of arrays: the calls of a CUDA-aware exchange."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.overlaps = False

    def _as_mpi_takes_it(self, buffer: torch.Tensor) -> torch.Tensor:
        return buffer


def rounds(world, case, staging: Staging, buffer_mib: float, averages=None):
    """(weights and slots in whole, losses, bytes of each exchange) of some rounds."""
    options, draw, config = case
    outputs = OUTPUTS
    if options.get("loss") == "sampled_softmax":  # it keeps a tensor on the device
        outputs = MANY
        options = options | {"sampling": Sampling(MANY, 3, torch.full((MANY,), 0.02))}
    model = MultiLayerPerceptron(INPUTS, [11, 7], outputs, **options)
    algorithm = IndependentSubnets(
        world,
        model,
        optimizer.build(config),
        Exchanger(world, buffer_mib, staging),
        SEED,
        config.state == "carry",
        averages,
    )
    algorithm.start_new()
    device, losses, reports = staging.device, [], []
    for index in range(ROUNDS):
        batches = [draw(world.Get_rank(), step + index) for step in range(2)]
        reports.append(algorithm.begin_round(index, batches, 2 * index))
        for step, of_cpu in enumerate(batches):
            rows = (to_device(part, device) for part in of_cpu)
            losses.append(algorithm.step(*rows, config.lr, 2 * index + step))
        algorithm.end_round()
        if index == 2:
            reports.append(algorithm.visit_home(with_slots=True))
            algorithm.leave_home()
    for held_tensors in algorithm.state.values():
        parts = (held_tensors.home, held_tensors.subnet)
        assert {part.device for part in parts if part is not None} == {device}
    assert all(tensor.device == device for tensor in algorithm.shared.values())
    algorithm.visit_home(with_slots=True)
    whole = {}
    for spec in (*model.specs, *algorithm.slot_specs):
        block = algorithm.state[spec.key].place("home").detach().cpu().numpy().copy()
        whole[spec.key] = torch.from_numpy(np.concatenate(world.allgather(block)))
    whole |= {key: tensor.cpu() for key, tensor in algorithm.shared.items()}
    bytes_moved = [(r.bytes_sent, r.bytes_received, r.chunks) for r in reports]
    return whole, torch.stack(losses).tolist(), bytes_moved


@pytest.fixture(scope="module")
def on_cpu(world):
    """What every other way is compared with, computed once: (case, buffer_mib) -> its rounds."""
    return functools.cache(lambda name, mib: rounds(world, CASES[name], InPlace(CPU), mib))


def assert_same(one, other) -> None:
    for key, tensor in one[0].items():
        assert same_bits(tensor, other[0][key]), key
    assert one[1:] == other[1:]


@pytest.mark.parametrize(
    ("kind", "buffer_mib"), [(ThroughHost, 1.0), (ThroughHost, 0.0003), (Tensors, 0.0003)]
)
@pytest.mark.parametrize("name", ["dense, momentum", "sparse, adam", "sampled, rowwise"])
def test_every_staging_gives_the_same_bits_and_bytes(world, on_cpu, name, kind, buffer_mib):
    direct = on_cpu(name, buffer_mib)
    if world.Get_size() > 1 and buffer_mib < 1:
        assert max(chunks for *_, chunks in direct[2]) > 2
    assert_same(rounds(world, CASES[name], kind(CPU), buffer_mib), direct)


@pytest.mark.parametrize(
    ("name", "buffer_mib"),
    [*((name, 1.0) for name in CASES), ("dense, momentum", 0.0003), ("sparse, adam", 0.0003)],
)
def test_a_gpu_mixes_nothing_and_gives_the_same_bits(world, on_cpu, name, buffer_mib):
    direct = on_cpu(name, buffer_mib)
    with PretendedGpu() as gpu:
        staged = rounds(world, CASES[name], ThroughHost(GPU), buffer_mib)
    assert gpu.waits >= ROUNDS
    assert_same(staged, direct)


def test_shared_weights_pass_through_the_cpu(world, averages):
    case = ({"output_norm": False, "output_bias": True}, batch, rule(momentum=0.9))
    direct = rounds(world, case, InPlace(CPU), 1.0, averages)
    with PretendedGpu():
        staged = rounds(world, case, ThroughHost(GPU), 1.0, averages)
    assert staged[0]["out.bias"].abs().max() > 0
    for key, tensor in direct[0].items():  # of four or more ranks means differ in the last bit
        torch.testing.assert_close(staged[0][key], tensor, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_the_sharded_network_is_evaluated_there(world, sparse):
    options, draw = (LABELS | {"sparse": True}, sparse_batch) if sparse else ({}, batch)
    model = MultiLayerPerceptron(INPUTS, [11, 7], OUTPUTS, **options)
    blocks = {}
    for spec in model.specs:
        rows = spec.home_rows(world.Get_rank(), world.Get_size())
        blocks[spec.key] = torch.from_numpy(model.initial_rows(spec, SEED, rows))
    calibration, features = draw(7, 1, 40)[0], draw(7, 2, 9)[0]

    def found(weights):
        network = HomeNetwork(world, model, weights)
        network.calibrate(calibration)
        again = HomeNetwork(world, model, weights, network.statistics)
        results = [again.outputs(features), *network.top(features, 3)]
        assert all(tensor.device == CPU for tensor in results)
        return results

    direct = found(blocks)
    with PretendedGpu():
        there = found({key: block.to(GPU) for key, block in blocks.items()})
    for one, other in zip(direct, there, strict=True):
        assert torch.equal(one, other)


@pytest.fixture
def place(world, tmp_path):
    """A folder that all ranks see, with dense rows and sparse ones."""
    shared = world.bcast(tmp_path)
    if world.Get_rank() == 0:
        write(shared / "dense", train=200, test=30)
        write_numbered(shared / "sparse", {"train": 60, "test": 20}, INPUTS, OUTPUTS)
    world.Barrier()
    return shared


def trained(world, place, name: str, device: torch.device, kind: str) -> tuple[dict, RunFolder]:
    """A run of the round loop, which is what `train` builds; its summary and folder."""
    settings = [f"data.path={place / kind}", "model.hidden=[12,9]", "train.rounds=3"]
    settings += ["train.local_steps=4", "optimizer.momentum=0.9", f"device={device.type}"]
    settings += ["model.output_norm=none", "data.batch_size=8"]
    if kind == "sparse":
        settings += ["model.loss=softmax", "evaluate.top=[1,3]"]
    config = loading.load(None, settings)
    with Dataset.open(config.data.path) as dataset:
        model = networks.build(config.model, dataset.features, dataset.outputs, dataset.sparse)
        algorithm = algorithms.build(world, config, model, device)
        assert algorithm.device == device
        algorithm.start_new()
        segments = rank_segments(dataset, "train", "rows", world.Get_rank(), world.Get_size())
        folder = RunFolder(place / name)
        if world.Get_rank() == 0:
            folder.create(resume=False)
        world.Barrier()
        setup = Setup(
            config=config,
            dataset=dataset,
            algorithm=algorithm,
            folder=folder,
            segments=segments,
            progress=Progress(ranks=world.Get_size()),
        )
        return Trainer(setup).run(), folder


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_the_round_loop_and_its_checkpoints(world, place, kind):
    direct, folder = trained(world, place, "on cpu", CPU, kind)
    with PretendedGpu() as gpu:
        there, folder_there = trained(world, place, "on gpu", GPU, kind)
    assert there["test"] == direct["test"]
    assert there["bytes"] == direct["bytes"]
    assert "peak_gpu_mib" not in direct
    assert there["peak_gpu_mib"] == [gpu.peak / 2**20] * world.Get_size()
    files = [f.checkpoints / "round-00000003" / "checkpoint.h5" for f in (folder, folder_there)]
    with h5py.File(files[0]) as one, h5py.File(files[1]) as other:
        for group in ("parameters", "optimizer/momentum", "statistics"):
            assert one[group].keys() == other[group].keys()
            for key in one[group]:
                assert np.array_equal(one[group][key][...], other[group][key][...]), key


def test_a_checkpoint_goes_to_the_device(world, place):
    """What was saved on the CPU comes back on a GPU, and is what it was when it comes home."""
    _, folder = trained(world, place, "saved", CPU, "dense")
    saved = Checkpoint(folder.checkpoints / "round-00000003")
    rank, ranks = world.Get_rank(), world.Get_size()
    rule_of_run = optimizer.build(rule(momentum=0.9))
    with saved.opened() as opened:
        data = opened.data
        model = MultiLayerPerceptron(data.features, [12, 9], data.outputs, output_norm=False)
        slots = rule_of_run.slot_specs(model.specs)
        restored = restore.restore(opened, model, slots, (), rank, ranks)
    expected = {key: parts.place("home").clone() for key, parts in restored.state.items()}
    with PretendedGpu():
        exchanger = Exchanger(world, 1.0, ThroughHost(GPU))
        algorithm = IndependentSubnets(world, model, rule_of_run, exchanger, SEED, True, None)
        algorithm.start_from(restored.state, {}, {})
        algorithm.begin_round(3)
        algorithm.visit_home(with_slots=True)
        for key, tensor in expected.items():
            home = algorithm.state[key].place("home")
            assert home.device == GPU
            assert same_bits(home.cpu(), tensor), key


def test_ranks_of_a_node_count_themselves(world):
    """These tests run on one node; on several the ranks of each are counted from 0."""
    assert devices.rank_on_node(world) == world.Get_rank()

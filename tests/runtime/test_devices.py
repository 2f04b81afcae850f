"""Choosing a device, and copying and staging as a GPU needs it; on a GPU itself where there is one.

More of `device: cuda` is tested on pretended GPUs, over MPI: tests/mpi/test_devices.py.
"""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ist_hpc.common.errors import InputError
from ist_hpc.data.sparse_rows import to_device
from ist_hpc.exchange.exchanger import Exchanger
from ist_hpc.exchange.placement import TensorSpec, at_round, home
from ist_hpc.exchange.plan import Piece
from ist_hpc.exchange.staging import InPlace, ThroughHost, staging_of
from ist_hpc.exchange.tensors import (
    CpuCopies,
    DeviceCopies,
    Held,
    copies_of,
    gather,
    piece_shape,
    scatter,
)
from ist_hpc.models.optimizer import build
from ist_hpc.models.perceptrons.mlp import MultiLayerPerceptron
from ist_hpc.runtime import devices
from ist_hpc.runtime.meters import Meter
from ist_hpc.training.algorithms.ist import IndependentSubnets
from tests.exchange.test_exchange import assert_holds, at_home, perceptron
from tests.helpers.launching import one_error_line, run_ranks
from tests.helpers.pretended_gpu import GPU, PretendedGpu
from tests.helpers.sparse_rows import write_numbered
from tests.helpers.threads import ThreadRanks
from tests.mpi.helpers import INPUTS, OUTPUTS, rule, sparse_batch

HAS_GPU = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="needs a GPU, and this machine has none")
needs_no_gpu = pytest.mark.skipif(HAS_GPU, reason="of machines without a GPU")

SMALL = ["data.path=digits", "model.hidden=[24,17]", "train.rounds=4", "optimizer.lr=0.05"]


# Copies.


def selections(size: int) -> st.SearchStrategy:
    """A range of `size` places, or some of them in any order, as numpy's int64."""
    ranges = st.tuples(st.integers(0, size), st.integers(0, size)).map(lambda p: slice(*sorted(p)))
    units = st.lists(st.integers(0, size - 1), unique=True, min_size=0, max_size=size)
    return ranges | units.map(lambda chosen: np.array(chosen, dtype=np.int64))


def pieces() -> st.SearchStrategy:
    """Any piece of a vector, a matrix, a transposed matrix or a kernel, at home or in a subnet."""
    shapes = [((7,), ("a",), False), ((6, 5), ("a", "b"), False), ((6, 5), (None, "b"), True)]
    shapes += [((4, 6, 3), ("a", "b", None), False), ((4, 6, 3), ("a", "b", None), True)]

    def piece(shape, axes, transposed) -> st.SearchStrategy:
        spec = TensorSpec("w", shape, axes, transposed=transposed)
        columns = selections(shape[1]) if len(shape) > 1 else st.just(slice(0, 1))
        places = st.sampled_from(["home", "subnet"])
        return st.builds(Piece, st.just(spec), places, selections(shape[0]), columns)

    return st.one_of([piece(*shape) for shape in shapes])


def as_stored(piece: Piece) -> torch.Tensor:
    """A whole tensor in the order of its place, every element another."""
    shape = list(piece.spec.shape)
    if piece.spec.transposed and piece.place == "subnet":
        shape[:2] = shape[1::-1]
    return torch.arange(1.0, 1.0 + np.prod(shape)).view(shape)


def reference(piece: Piece, tensor: torch.Tensor) -> np.ndarray:
    """The elements of a piece in storage order, by plain numpy indexing."""
    whole = tensor.numpy()
    if len(piece.spec.shape) == 1:
        return whole[piece.rows]
    if piece.spec.transposed:
        whole = whole.swapaxes(0, 1) if piece.place == "home" else whole
        return whole[piece.columns][:, piece.rows]
    return whole[piece.rows][:, piece.columns]


@settings(max_examples=150, deadline=None)
@given(pieces(), st.sampled_from([1, 5, 1 << 22]))
@pytest.mark.parametrize("copies", [CpuCopies(), DeviceCopies()], ids=["cpu", "device"])
def test_pieces_are_copied_out_and_in(copies, piece, at_once):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ist_hpc.exchange.tensors._ELEMENTS_AT_ONCE", at_once)
        tensor = as_stored(piece)
        out = torch.zeros(piece.size)
        gather(tensor, piece, out, copies)
        assert np.array_equal(out.numpy(), reference(piece, tensor).reshape(-1))
        into = torch.zeros_like(tensor)
        scatter(into, piece, out, copies)
    assert np.array_equal(reference(piece, into), reference(piece, tensor))
    assert int(torch.count_nonzero(into)) == piece.size  # and nothing beside it


def test_the_device_decides_how_copies_are_made():
    assert isinstance(copies_of(torch.device("cpu")), CpuCopies)
    assert isinstance(copies_of(torch.device("cuda", 1)), DeviceCopies)
    view = torch.zeros(3, 4)
    assert piece_shape(view, slice(0, 2), np.arange(3)) == (2, 3)


# Staging.


class Blocking(InPlace):
    """As in place on a GPU: the call to MPI blocks."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.overlaps = False


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.sampled_from([1 << 20, 600, 64]), st.booleans())
def test_every_element_arrives_whatever_the_staging(ranks, buffer_bytes, through_host):
    axes, specs = perceptron(ranks + 6, ranks + 4, 3)
    rounds = [at_round(axes, ranks, 3, index) for index in range(2)]

    def body(comm):
        kind = ThroughHost if through_host else Blocking
        exchanger = Exchanger(comm, buffer_bytes / 2**20, kind(devices.CPU))
        state, source = at_home(specs, comm), home(ranks)
        for target in (*rounds, home(ranks)):
            exchanger.exchange(specs, source, target, state)
            assert_holds(specs, state, target, comm.Get_rank())
            source = target

    ThreadRanks(ranks).run(body)


def test_a_device_has_its_staging():
    assert isinstance(staging_of(devices.CPU, cuda_aware=True), InPlace)
    assert staging_of(devices.CPU, cuda_aware=True).overlaps
    assert isinstance(staging_of(GPU, cuda_aware=False), ThroughHost)
    aware = staging_of(GPU, cuda_aware=True)
    assert isinstance(aware, InPlace)
    assert not aware.overlaps


def test_a_gpu_has_one_buffer_and_the_host_pinned_ones():
    with PretendedGpu() as gpu:
        staging = ThroughHost(GPU)
        for slot in (0, 1):
            packed = staging.packing(slot, 100)
            packed.fill_(slot + 1.0)
            assert (staging.outgoing(slot, packed) == slot + 1).all()
            staging.receiving(slot, 50)[:] = slot + 5
        first = staging.arrived(0, 50).cpu().tolist()
        second = staging.arrived(1, 50).cpu().tolist()
        assert (first, second) == ([5.0] * 50, [6.0] * 50)
        on_gpu = [name for name, buffer in staging.buffers.items() if buffer in gpu.marked]
        pinned = {name for name, buffer in staging.buffers.items() if buffer in gpu.pinned}
    assert on_gpu == ["device"]
    assert pinned == {"send0", "send1", "receive0", "receive1"}


def test_the_pretended_gpu_notices_what_a_gpu_would():
    """Or the tests that use it would show nothing."""
    with PretendedGpu() as gpu:
        there, here = torch.zeros(3, device=GPU), torch.zeros(3)
        assert there.device == GPU
        assert (there * 2)[1:].device == GPU
        with pytest.raises(AssertionError, match="on the GPU and on the CPU"):
            torch.add(there, here)
        with pytest.raises(AssertionError, match="numpy array"):
            there.numpy()
        there += 4
        here.copy_(there, non_blocking=True)
        assert here.tolist() == [0, 0, 0]  # not yet
        gpu.wait()
        assert here.tolist() == [4, 4, 4]
        pinned = torch.ones(3, pin_memory=True)
        there.copy_(pinned, non_blocking=True)
        pinned += 1
        with pytest.raises(AssertionError, match="pinned memory changed"):
            gpu.wait()


# Choosing, and what a reading says of memory.


def test_the_cpu_is_always_there():
    assert devices.choose(ThreadRanks(1), "cpu") == torch.device("cpu")
    assert devices.peak_gpu_mib(devices.CPU) == 0
    assert Meter().device == devices.CPU


@needs_no_gpu
class TestWithoutAGpu:
    @pytest.mark.parametrize("ranks", [1, 2])
    def test_training_there_is_refused_once_and_writes_nothing(self, trained, tmp_path, ranks):
        (tmp_path / "digits").symlink_to(trained.data)
        before = sorted(tmp_path.rglob("*"))
        command = ["-m", "ist_hpc.train", "--name", "a", "--set", *SMALL, "device=cuda"]
        line = one_error_line(run_ranks(ranks, command, cwd=tmp_path, check=False))
        assert line.startswith("train: error: `device: cuda` needs ")
        assert f"(rank 0 of {ranks} on " in line
        assert "set `device: cpu`" in line
        assert sorted(tmp_path.rglob("*")) == before

    def test_a_pytorch_for_gpus_finds_none(self, monkeypatch):
        """As on a login node."""
        monkeypatch.setattr(torch.version, "cuda", "12.4")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        with pytest.raises(InputError, match=r"none is visible \(rank 1 of 2.*DEVICES is ''\)"):
            devices._visible_gpus("rank 1 of 2 on a")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        with pytest.raises(InputError, match="CUDA_VISIBLE_DEVICES is not set"):
            devices._visible_gpus("rank 1 of 2 on a")

    def test_a_gpu_that_does_not_work_is_named(self, monkeypatch):
        def broken(device):
            raise RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA")

        monkeypatch.setattr(torch.cuda, "set_device", broken)
        with pytest.raises(InputError) as caught:
            devices._take(torch.device("cuda", 3), "rank 3 of 4 on b")
        message = str(caught.value)
        assert message.startswith("the GPU 3 cannot be used (rank 3 of 4 on b): CUDA error: out of")
        assert "\n" not in message


@needs_gpu
class TestOnAGpu:
    """Sums are added in another order there, so to a tolerance."""

    def summaries(self, place, ranks, *more) -> list[dict]:
        found = []
        for device in ("cpu", "cuda"):
            arguments = ["-m", "ist_hpc.train", "--name", device, "--set", *more]
            run_ranks(ranks, [*arguments, f"device={device}"], cwd=place, timeout_s=300)
            found.append(json.loads((place / "runs" / device / "summary.json").read_text()))
        return found

    @pytest.mark.parametrize("ranks", [1, 3])
    @pytest.mark.parametrize("buffer", ["exchange.buffer_mib=1", "exchange.buffer_mib=256"])
    def test_dense_rows(self, trained, tmp_path, ranks, buffer):
        """Three ranks share the GPU, if it is one."""
        (tmp_path / "digits").symlink_to(trained.data)
        wide = [*SMALL, "model.hidden=[600,400]", "optimizer.momentum=0.9", buffer]
        cpu, gpu = self.summaries(tmp_path, ranks, *wide)
        assert gpu["test"]["accuracy"] == pytest.approx(cpu["test"]["accuracy"], abs=0.03)
        assert gpu["test"]["loss"] == pytest.approx(cpu["test"]["loss"], rel=0.05)
        assert gpu["bytes"] == cpu["bytes"]
        assert min(gpu["peak_gpu_mib"]) > 0
        assert len(gpu["peak_gpu_mib"]) == ranks

    @pytest.mark.parametrize("ranks", [1, 2])
    def test_a_resumed_run(self, trained, tmp_path, ranks):
        (tmp_path / "digits").symlink_to(trained.data)
        first = ["-m", "ist_hpc.train", "--name", "a"]
        run_ranks(ranks, [*first, "--set", *SMALL, "device=cuda"], cwd=tmp_path, timeout_s=300)
        longer = ["--resume", "--set", *SMALL, "device=cuda", "train.rounds=6"]
        run_ranks(ranks, [*first, *longer], cwd=tmp_path, timeout_s=300)
        assert json.loads((tmp_path / "runs/a/summary.json").read_text())["rounds"] == 6

    @pytest.mark.parametrize("ranks", [1, 2])
    def test_sparse_rows(self, tmp_path, ranks):
        write_numbered(tmp_path / "sparse", {"train": 600, "test": 60}, 40, 64)
        settings = [*SMALL, "data.path=sparse", "model.loss=softmax", "model.output_norm=none"]
        cpu, gpu = self.summaries(tmp_path, ranks, *settings, "train.rounds=20")
        assert gpu["test"].keys() == cpu["test"].keys()
        assert gpu["test"]["ndcg_at_5"] == pytest.approx(cpu["test"]["ndcg_at_5"], abs=0.05)
        assert gpu["bytes"] == cpu["bytes"]

    @pytest.mark.parametrize("loss", ["softmax", "bce"])
    def test_steps_with_sparse_rows_and_sets_of_labels(self, loss):
        """One network on both devices, step by step."""
        model = MultiLayerPerceptron(
            INPUTS, [11, 7], OUTPUTS, False, loss=loss, label_block=2, sparse=True
        )

        def body(comm):
            exchanger = Exchanger(comm, 1.0, staging_of(torch.device(name), cuda_aware=False))
            algorithm = IndependentSubnets(comm, model, build(rule()), exchanger, 1, True, None)
            algorithm.start_new()
            algorithm.begin_round(0)
            losses = []
            for step in range(6):
                rows = (to_device(part, algorithm.device) for part in sparse_batch(0, step))
                losses.append(algorithm.step(*rows, 0.05, step))
            algorithm.end_round()
            algorithm.visit_home(with_slots=False)
            home_blocks = {key: held.place("home").cpu() for key, held in algorithm.state.items()}
            return {"losses": torch.stack(losses).cpu()} | home_blocks

        found = {}
        for name in ("cpu", "cuda"):
            (found[name],) = ThreadRanks(1).run(body)
        for key, values in found["cpu"].items():
            torch.testing.assert_close(found["cuda"][key], values, atol=1e-4, rtol=1e-3)

    @pytest.mark.parametrize("kib", [1024, 1])
    def test_exchanges_through_pinned_memory(self, kib):
        """Exactly; the ranks are threads."""
        axes, specs = perceptron(40, 30, 5)
        rounds = [at_round(axes, 3, 3, index) for index in range(3)]
        device = torch.device("cuda")

        def body(comm):
            exchanger = Exchanger(comm, kib / 1024, ThroughHost(device))
            state, source = at_home(specs, comm), home(3)
            for held in state.values():
                held.home = held.home.to(device)
            for target in (*rounds, home(3)):
                exchanger.exchange(specs, source, target, state)
                copy = {
                    key: Held(*(part if part is None else part.cpu() for part in parts))
                    for key, held in state.items()
                    for parts in [(held.home, held.subnet)]
                }
                assert_holds(specs, copy, target, comm.Get_rank())
                source = target

        ThreadRanks(3).run(body)

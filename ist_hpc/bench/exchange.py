"""`bench exchange`: the exchange of a round against a raw Alltoallv of the same bytes.

In each repetition the two follow each other, so a slow spell of machine or network hits both. The
raw one sends what the round's plan sends from buffers that are ready, and does nothing else.
"""

import argparse
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ist_hpc.bench.report import slowest, spread, table
from ist_hpc.common.commandline import add_configuration, count
from ist_hpc.common.errors import InputError
from ist_hpc.config import loading
from ist_hpc.config.keys import Config, draws_labels
from ist_hpc.cost import prediction
from ist_hpc.exchange.exchanger import Exchanger, allocate_home
from ist_hpc.exchange.placement import at_round, home
from ist_hpc.exchange.staging import staging_of
from ist_hpc.models import networks, optimizer
from ist_hpc.runtime import devices
from ist_hpc.runtime.devices import synchronise
from ist_hpc.runtime.launch import Runtime, check_on_all

if TYPE_CHECKING:
    from mpi4py import MPI

    from ist_hpc.exchange.plan import Plan
    from ist_hpc.runtime.meters import ExchangeReport

HELP = "seconds, bytes and packing share of an exchange, against a raw Alltoallv of the same bytes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `bench exchange`."""

    add_configuration(parser, such_as="configs/speech2.yaml")
    parser.add_argument("--rounds", type=count, default=20, help="repetitions after 3 to warm up")
    parser.add_argument(
        "--stagger-ms",
        type=float,
        default=0.0,
        help="measure also a raw Alltoallv that each rank begins so much later than the one before "
        "it; on links that drop packets when all begin at once it may be the faster one",
    )


def run(runtime: Runtime, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure; returns the figures, the same on all ranks. Collective."""
    comm = runtime.comm
    config = check_on_all(comm, lambda: load_dealt(arguments.config, arguments.set))
    assert config.model.inputs is not None
    assert config.model.outputs is not None
    sparse = prediction.is_sparse(config, None)
    model = networks.build(config.model, config.model.inputs, config.model.outputs, sparse)
    check_on_all(comm, lambda: at_round(model.axes, runtime.ranks, config.seed, 0))
    rule = optimizer.build(config.optimizer)
    carried = rule.slot_specs(model.specs) if config.optimizer.state == "carry" else ()
    specs = (*model.specs, *carried)
    device = devices.choose(comm, config.device)
    staging = staging_of(device, config.exchange.cuda_aware)
    exchanger = Exchanger(comm, config.exchange.buffer_mib, staging)
    state = allocate_home(specs, runtime.rank, runtime.ranks, device)
    for held in state.values():
        held.place("home").normal_()
    source = at_round(model.axes, runtime.ranks, config.seed, 0)
    exchanger.exchange(specs, home(runtime.ranks), source, state)
    reports: list[ExchangeReport] = []
    whole_s, raw_s, staggered_s, copy_s = [], [], [], []
    for index in range(1, arguments.rounds + 4):
        target = at_round(model.axes, runtime.ranks, config.seed, index)
        plan = exchanger.plan(specs, source, target)
        raw = _raw(comm, plan)
        staggered = _raw(comm, plan, runtime.rank * arguments.stagger_ms / 1000)
        comm.Barrier()
        begin = time.perf_counter()
        report = exchanger.exchange(specs, source, target, state)
        synchronise(device)
        seconds = time.perf_counter() - begin
        source = target
        if index > 3:
            whole_s.append(seconds)
            raw_s.append(raw)
            staggered_s.append(staggered)
            copy_s.append(_copy(device, report.bytes_received))
            reports.append(report)
    figures = _figures(comm, runtime, whole_s, raw_s, reports)
    figures |= {"device": str(device), "copy_s": slowest(comm, copy_s).tolist()}
    if arguments.stagger_ms:
        figures["raw_staggered_s"] = slowest(comm, staggered_s).tolist()
    return figures


def load(path: Any, settings: list[str]) -> Config:
    """A configuration that names the widths of its data. Raises `InputError`."""
    config = loading.load(path, settings)
    if config.model.inputs is None or config.model.outputs is None:
        raise InputError(
            f"a benchmark uses no data, so `model.inputs` and `model.outputs` must be in {path}"
        )
    return config


def load_dealt(path: Any, settings: list[str]) -> Config:
    """As `load`, of a network whose exchange follows from deals alone. Raises `InputError`."""
    config = load(path, settings)
    if draws_labels(config.model):
        raise InputError(
            "this benchmark is of exchanges that follow from the seed; with `model.loss: "
            "sampled_softmax` ranks ask for the rows that they use: see bench/amazon_sampled.sh"
        )
    return config


def _raw(comm: "MPI.Comm", plan: "Plan", late_s: float = 0.0) -> float:
    """Seconds of the Alltoallv of a plan from ready buffers, begun `late_s` late on this rank.

    Counted from when all ranks are ready, so that the waiting is included.
    """
    seconds = 0.0
    for chunk in plan.chunks:
        # Written once, so that no page is touched for the first time while the clock runs.
        send = np.ones(int(chunk.send_counts.sum()), dtype=np.float32)
        receive = np.ones(int(chunk.recv_counts.sum()), dtype=np.float32)
        comm.Barrier()
        begin = time.perf_counter()
        time.sleep(late_s)
        comm.Alltoallv(
            [send, (chunk.send_counts, chunk.send_displacements)],
            [receive, (chunk.recv_counts, chunk.recv_displacements)],
        )
        seconds += time.perf_counter() - begin
    return seconds


def _copy(device: torch.device, size_bytes: int) -> float:
    """Seconds of a bare copy of this many bytes: in memory, or to a GPU from pinned memory."""
    pinned = device.type == "cuda"
    source = torch.ones(size_bytes, dtype=torch.uint8, pin_memory=pinned)
    target = torch.ones(size_bytes, dtype=torch.uint8, device=device)
    synchronise(device)
    begin = time.perf_counter()
    target.copy_(source)
    synchronise(device)
    return time.perf_counter() - begin


def _figures(
    comm: "MPI.Comm",
    runtime: Runtime,
    whole_s: list[float],
    raw_s: list[float],
    reports: "list[ExchangeReport]",
) -> dict[str, Any]:
    whole, raw = slowest(comm, whole_s), slowest(comm, raw_s)
    pack = slowest(comm, [report.pack_s for report in reports])
    plan = slowest(comm, [report.plan_s for report in reports])
    received = comm.allreduce(sum(report.bytes_received for report in reports))
    return {
        "ranks": runtime.ranks,
        "threads_a_rank": torch.get_num_threads(),
        "mib_received_a_rank": received / len(reports) / runtime.ranks / 2**20,
        "chunks": reports[0].chunks,
        "exchange_s": whole.tolist(),
        "raw_alltoallv_s": raw.tolist(),
        "pack_s": pack.tolist(),
        "plan_s": plan.tolist(),
        "ratio": (whole / np.maximum(raw, 1e-9)).tolist(),
        "packing_share": (pack / whole).tolist(),
    }


def show(figures: dict[str, Any]) -> str:
    """The figures as a table: median (lowest to highest) over repetitions."""
    values = {key: np.array(value) for key, value in figures.items() if isinstance(value, list)}
    staggered = values.get("raw_staggered_s")
    gigabytes = figures["mib_received_a_rank"] * 2**20 / 1e9
    return table(
        [
            ("ranks", f"{figures['ranks']}, {figures['threads_a_rank']} thread(s) each"),
            ("weights are on", figures["device"]),
            ("MiB received a rank", f"{figures['mib_received_a_rank']:.2f}"),
            ("Alltoallv calls", str(figures["chunks"])),
            ("exchange, s", spread(values["exchange_s"])),
            ("GB/s received a rank", spread(gigabytes / values["exchange_s"], 3)),
            ("a bare copy of them, s", spread(values["copy_s"])),
            ("raw Alltoallv, s", spread(values["raw_alltoallv_s"])),
            *([("raw, staggered, s", spread(staggered))] if staggered is not None else []),
            ("ratio", spread(values["ratio"], 2)),
            ("of it packing, s", spread(values["pack_s"])),
            ("of it planning, s", spread(values["plan_s"])),
            ("packing share", spread(values["packing_share"], 2)),
        ]
    )

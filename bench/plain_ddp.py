#!/usr/bin/env python
"""Seconds a step of PyTorch's own DistributedDataParallel over gloo: nothing of ist_hpc is used.

The paper's two-layer perceptron, 4096-4096-35 with batch norms, on random rows, batches of 128.

  mpirun -np 4 python bench/plain_ddp.py
  bench/hosts.sh up 4 1gbit
  bench/hosts.sh mpirun 4 env OMP_NUM_THREADS=1 python bench/plain_ddp.py

Rank and ranks are taken from Open MPI's launcher, which starts the processes and does no more.
Hosts other than the first need MASTER_ADDR, the first one's address, unless it is 10.9.0.1.
"""

import argparse
import os
import socket
import statistics
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

HOSTS_SUBNET = "10.9.0."  # of bench/hosts.sh


def main() -> None:
    """Train, and print the seconds of a step on rank 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=15, help="steps after 3 to warm up")
    steps = parser.parse_args().steps
    rank, ranks = (int(os.environ[f"OMPI_COMM_WORLD_{name}"]) for name in ("RANK", "SIZE"))
    # gloo listens at the address of the host's name unless it is told an interface.
    on_hosts = socket.gethostbyname(socket.gethostname()).startswith(HOSTS_SUBNET)
    if on_hosts:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", f"e{socket.gethostname().removeprefix('h')}")
    os.environ.setdefault("MASTER_ADDR", f"{HOSTS_SUBNET}1" if on_hosts else "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29511")
    dist.init_process_group("gloo", rank=rank, world_size=ranks)

    torch.manual_seed(rank)
    network = nn.Sequential(
        nn.Linear(4096, 4096, bias=False),
        nn.BatchNorm1d(4096),
        nn.ReLU(),
        nn.Linear(4096, 35, bias=False),
        nn.BatchNorm1d(35, affine=False),
    )
    model = DistributedDataParallel(network)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    seconds = []
    for step in range(steps + 3):
        rows, classes = torch.randn(128, 4096), torch.randint(35, (128,))
        begin = time.perf_counter()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(rows), classes).backward()
        optimizer.step()
        if step >= 3:
            seconds.append(time.perf_counter() - begin)
    if rank == 0:
        middle, low, high = statistics.median(seconds), min(seconds), max(seconds)
        print(f"{ranks} ranks, {steps} steps: {middle:.3f} s a step ({low:.3f} to {high:.3f})")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

"""Where a rank computes: the CPU, or a GPU that it has alone or shares with ranks of its node.

Only this module and the pinned allocation in staging.py call CUDA itself; the rest of the package
puts tensors on the given device.
"""

import os
import socket
from typing import TYPE_CHECKING

import torch

from ist_hpc.common.errors import InputError
from ist_hpc.runtime.launch import check_on_all

if TYPE_CHECKING:
    from mpi4py import MPI

CPU = torch.device("cpu")


def choose(comm: "MPI.Comm", name: str) -> torch.device:
    """The device of this rank for the configured `device`; makes it the current one. Collective.

    name  cpu, or cuda: the ranks of a node take the GPUs that they see in turn, by their order on
          the node, so several ranks may share one. If a launcher shows each rank its own GPU
          (CUDA_VISIBLE_DEVICES, srun --gpus-per-task), the rank uses it: only visible GPUs count.

    Raises `AgreedInputError`, on all ranks, if a rank has no GPU that it can use.
    """
    if name == "cpu":
        return CPU
    place = f"rank {comm.Get_rank()} of {comm.Get_size()} on {socket.gethostname()}"
    visible = check_on_all(comm, lambda: _visible_gpus(place))
    device = torch.device("cuda", rank_on_node(comm) % visible)
    check_on_all(comm, lambda: _take(device, place))
    return device


def rank_on_node(comm: "MPI.Comm") -> int:
    """How many ranks of the same node come before this one. Collective."""
    from mpi4py import MPI

    node = comm.Split_type(MPI.COMM_TYPE_SHARED, key=comm.Get_rank())
    position = node.Get_rank()
    node.Free()
    return position


def _visible_gpus(place: str) -> int:
    """How many GPUs this process sees; `InputError` if none. Local."""
    instead = "or set `device: cpu`"
    if torch.version.cuda is None and torch.version.hip is None:
        raise InputError(
            f"`device: cuda` needs a PyTorch that was built for GPUs, got {torch.__version__} "
            f"({place}); install one, {instead}"
        )
    visible = torch.cuda.device_count()
    if not visible:
        shown = os.environ.get("CUDA_VISIBLE_DEVICES")
        chosen = "is not set" if shown is None else f"is {shown!r}"
        raise InputError(
            f"`device: cuda` needs a GPU, and none is visible ({place}; CUDA_VISIBLE_DEVICES "
            f"{chosen}); ask the scheduler for GPUs, see what nvidia-smi says there, {instead}"
        )
    return visible


def _take(device: torch.device, place: str) -> None:
    """Make the device the current one, and check that it works. Local."""
    try:
        torch.cuda.set_device(device)
        torch.zeros(1, device=device)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"the GPU {device.index} cannot be used ({place}): {reason}; see what nvidia-smi says "
            "there, or set `device: cpu`"
        ) from None


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done all its work; the CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ranks_on_gpu(comm: "MPI.Comm", device: torch.device) -> int:
    """How many ranks of this node compute on the same GPU. Collective."""
    from mpi4py import MPI

    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    # By its identity: each rank may see one GPU only, and number it 0.
    mine = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else "cpu"
    sharing = node.allgather(mine).count(mine)
    node.Free()
    return sharing


def free_gpu_bytes(device: torch.device) -> int:
    """Free bytes of a GPU's memory. Local."""
    return int(torch.cuda.mem_get_info(device)[0])


def peak_gpu_mib(device: torch.device) -> float:
    """The most memory that this rank's tensors took on its GPU so far; 0 on the CPU."""
    if device.type == "cpu":
        return 0.0
    return torch.cuda.max_memory_allocated(device) / 2**20

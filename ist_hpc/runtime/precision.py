"""The number types of local steps: float32, TF32, or bfloat16 with float32 weights.

Under bf16, products and convolutions use bfloat16 (PyTorch's autocast), while weights, their
gradients, optimiser state, reductions and losses are float32. So ranks exchange, save and resume
float32 as always, and an evaluation computes in float32.
"""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

TF32, BF16 = "tf32", "bf16"
_CPU_FLAGS = {"avx512_bf16", "amx_bf16", "bf16", "svebf16"}  # x86, x86, Arm, Arm


def computing(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context of a local step, forward and backward. Local.

    precision  as `train.precision` of the configuration
    """
    if precision == BF16:
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def prepare(precision: str) -> None:
    """Allow or forbid TF32 in products and convolutions on a GPU, in the whole process. Local."""
    torch.backends.cuda.matmul.allow_tf32 = precision == TF32
    torch.backends.cudnn.allow_tf32 = precision == TF32  # PyTorch's own default is yes


def product_bytes(precision: str) -> int:
    """Bytes per number that enters or leaves a product in a local step. Local."""
    return (torch.bfloat16 if precision == BF16 else torch.float32).itemsize


def low_type(device: torch.device) -> torch.dtype | None:
    """The type of products under autocast; None without, where tensors keep their type. Local.

    For products that autocast does not cast: those that write into given memory.
    """
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return None


def lacks_bf16(precision: str, device: torch.device) -> bool:
    """Whether bf16 is configured on a CPU without instructions for it, which is slow. Local."""
    if precision != BF16 or device.type != "cpu":
        return False
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False  # unknown
    lines = [line for line in text.splitlines() if line.lower().startswith(("flags", "features"))]
    return bool(lines) and not _CPU_FLAGS & set(lines[0].split())

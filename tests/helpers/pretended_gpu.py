"""A GPU that is not there: tensors on the CPU, kept apart as if they were on another device.

Under `PretendedGpu` a tensor that is made on, or moved to, the device `cuda` is marked, and so is
whatever is computed from it. Mixing marked and unmarked tensors, or asking a marked one for its
numpy array, fails as it would with a GPU. So does what a GPU makes wrong without an error: a copy
to the host that does not block arrives only when the device is waited for, and pinned memory from
which such a copy goes must not change before that.

The arithmetic is the CPU's, so results are those of the CPU to the last bit. What it cannot show is
whether CUDA's own kernels do the same.
"""

from contextlib import ExitStack
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")
_ASK_DEVICE = torch.Tensor.device.__get__


class _Marked:
    """A set of storages that does not keep them."""

    def __init__(self) -> None:
        self._references: dict[int, StorageWeakRef] = {}

    def __contains__(self, tensor: Tensor) -> bool:
        reference = self._references.get(tensor.untyped_storage()._cdata)
        return reference is not None and not reference.expired()

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._references[storage._cdata] = StorageWeakRef(storage)


class PretendedGpu(TorchFunctionMode):
    """A context in which `cuda` can be used.

    waits  how often the device was waited for
    peak   bytes of a made-up peak memory
    """

    def __init__(self) -> None:
        super().__init__()
        self.marked, self.pinned = _Marked(), _Marked()
        self.waits, self.peak = 0, 3 << 20
        self._to_arrive: list[tuple[Tensor, Tensor]] = []
        self._to_stay: list[tuple[Tensor, Tensor]] = []
        self._around = ExitStack()

    def __enter__(self):
        for name, stand_in in (
            ("synchronize", lambda device=None: self.wait()),
            ("max_memory_allocated", lambda device=None: self.peak),
        ):
            self._around.enter_context(mock.patch.object(torch.cuda, name, stand_in))
        super().__enter__()
        self._around.enter_context(_Operations(self))
        return self

    def __exit__(self, *error):
        self._around.close()
        return super().__exit__(*error)

    def wait(self) -> None:
        """Let all copies arrive."""
        self.waits += 1
        with torch._C.DisableTorchFunction(), torch.utils._python_dispatch._disable_current_modes():
            for source, as_it_was in self._to_stay:
                assert torch.equal(source, as_it_was), "pinned memory changed under a copy"
            for target, values in self._to_arrive:
                target.copy_(values)
        self._to_arrive.clear()
        self._to_stay.clear()

    def copy_without_blocking(self, target: Tensor, source: Tensor) -> bool:
        """Whether a copy is put off."""
        if source in self.marked and target not in self.marked:
            self._to_arrive.append((target, source.clone()))
            return True
        if target in self.marked and source in self.pinned:
            self._to_stay.append((source, source.clone()))
        return False

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function == _ASK_DEVICE:
            return GPU if args[0] in self.marked else function(*args, **kwargs)
        if function is Tensor.numpy:
            assert args[0] not in self.marked, "the numpy array of a tensor on the GPU"
        if function in (Tensor.to, Tensor.cpu):
            wanted = [CPU] if function is Tensor.cpu else [*args[1:], *kwargs.values()]
            devices = [value for value in wanted if isinstance(value, torch.device)]
            if devices:
                return self._moved(args[0], devices[0])
            return function(*args, **kwargs)
        on_gpu = torch.device(kwargs["device"]).type == "cuda" if kwargs.get("device") else False
        if on_gpu:
            kwargs["device"] = CPU
        pinned = kwargs.pop("pin_memory", False)
        result = function(*args, **kwargs)
        if on_gpu or (function is Tensor.new_tensor and args[0] in self.marked):
            self.marked.add(result)
        if pinned:
            self.pinned.add(result)
        return result

    def _moved(self, tensor: Tensor, device: torch.device) -> Tensor:
        if (tensor in self.marked) == (device.type == "cuda"):
            return tensor
        with torch.utils._python_dispatch._disable_current_modes():
            result = tensor.clone()
        if device.type == "cuda":
            self.marked.add(result)
        return result


class _Operations(TorchDispatchMode):
    """Every operation, those of autograd included."""

    def __init__(self, gpu: PretendedGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        marked = self.gpu.marked
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if operation is torch.ops.aten.copy_.default:
            blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
            if not blocking and self.gpu.copy_without_blocking(args[0], args[1]):
                return args[0]
            return operation(*args, **kwargs)
        places = {tensor in marked for tensor in tensors if tensor.dim() or tensor in marked}
        assert len(places) < 2, f"{operation} of tensors on the GPU and on the CPU"
        results = operation(*args, **kwargs)
        if True in places:
            for result in tree_leaves(results):
                if isinstance(result, Tensor):
                    marked.add(result)
        return results

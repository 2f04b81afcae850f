"""Counting the memory of tensors while code runs."""

from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


class LiveBytes(TorchDispatchMode):
    """The most bytes of tensors that were alive at the same time, of those made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, Tensor):
                reference = StorageWeakRef(tensor.untyped_storage())
                self._storages[reference.cdata] = (reference, tensor.untyped_storage().nbytes())
        alive = {key: held for key, held in self._storages.items() if not held[0].expired()}
        self._storages = alive
        self.most = max(self.most, sum(size for _, size in alive.values()))
        return result

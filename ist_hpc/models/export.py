"""The full network in plain PyTorch, as `show --export` prints it."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pprint import pformat
from textwrap import indent

import torch
from torch import nn


@dataclass(frozen=True)
class ExportEntry:
    """One entry of the plain PyTorch state dict that `show --export` writes.

    name    the name in the state dict, such as `bn1.running_mean`
    shape   the global shape
    source  (group, key) in a checkpoint, such as ("statistics", "bn1.mean"); None for a counter of
            batches, which is int64 and zero
    """

    name: str
    shape: tuple[int, ...]
    source: tuple[str, str] | None


@dataclass(frozen=True)
class Plain:
    """A call that makes a network in plain PyTorch.

    function   a function from a file in `plain/`
    arguments  by name: numbers, words and containers of these, or another such call
    """

    function: Callable[..., nn.Module]
    arguments: Mapping[str, object]

    def module(self) -> nn.Module:
        """The module that the call makes, on the current device."""
        found = {k: v.module() if isinstance(v, Plain) else v for k, v in self.arguments.items()}
        return self.function(**found)

    def entries(self, sources: Mapping[str, tuple[str, str]]) -> tuple[ExportEntry, ...]:
        """The module's state dict, in its order; `sources` by name, with `.` or `_` between words.

        Raises `KeyError` for a tensor without a source.
        """
        by_name = {name.replace(".", "_"): source for name, source in sources.items()}
        with torch.device("meta"):  # no memory is needed to ask for names and shapes
            state = self.module().state_dict()
        return tuple(
            ExportEntry(
                name,
                tuple(tensor.shape),
                None if name.endswith(".num_batches_tracked") else by_name[name.replace(".", "_")],
            )
            for name, tensor in state.items()
        )

    def source(self) -> str:
        """Python source that leaves the module in the variable `model`."""
        files = (path.read_text(encoding="utf-8") for path in self._files())
        return "\n\n".join((*files, f"import torch\n\nmodel = {self._text()}"))

    def _files(self) -> list[Path]:
        inner = (value for value in self.arguments.values() if isinstance(value, Plain))
        own = Path(inspect.getfile(self.function))
        return [own, *(path for value in inner for path in value._files())]

    def _text(self) -> str:
        arguments = (
            value._text() if isinstance(value, Plain) else pformat(value, sort_dicts=False)
            for value in self.arguments.values()
        )
        lines = [f"{k}={v},\n" for k, v in zip(self.arguments, arguments, strict=True)]
        return f"{self.function.__name__}(\n{indent(''.join(lines), '    ')})"

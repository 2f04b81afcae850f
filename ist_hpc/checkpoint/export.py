"""A checkpoint's model as a PyTorch state dict, which loads without this package."""

import math
from pathlib import Path

import torch
from torch import Tensor

from ist_hpc.checkpoint.folder import Checkpoint
from ist_hpc.checkpoint.read import OpenCheckpoint
from ist_hpc.common.disk.files import exists_error, replacing
from ist_hpc.common.errors import InputError
from ist_hpc.config.keys import subnets_of
from ist_hpc.models import networks
from ist_hpc.models.export import ExportEntry

_SCALED = """

def scaled(rows):
    mean = torch.tensor({mean}).unsqueeze(1)
    std = torch.tensor({std}).unsqueeze(1)
    return ((rows.view(len(rows), len(mean), -1) - mean) / std).flatten(1)"""


class Export:
    """The export of a checkpoint, after a check of its files. Local.

    mib  MiB that `write` holds in memory, the whole model

    Raises `InputError` for a damaged file.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        checkpoint.check_files(checkpoint.files)
        self._checkpoint = checkpoint
        with checkpoint.opened() as opened:
            self._data, self._config = opened.data, opened.config
            subnets = subnets_of(opened.config, opened.progress.ranks)
        data = self._data
        self._model = networks.build(
            self._config.model, data.features, data.outputs, data.sparse, subnets
        )
        self._entries = self._model.export_entries()
        self.mib = sum(4 * math.prod(entry.shape) / 2**20 for entry in self._entries)

    def write(self, target: Path, overwrite: bool) -> None:
        """Write the state dict; `target` appears complete or not at all.

        Raises `InputError`; without `overwrite` also for a file that appeared meanwhile.
        """
        with self._checkpoint.opened() as opened:
            state = {entry.name: _value(opened, entry) for entry in self._entries}
        try:
            with replacing(target, overwrite) as beside:
                torch.save(state, beside)
        except FileExistsError:
            raise exists_error(target, "--export") from None
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError for a full disk
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"--export {target}: cannot be written ({reason})") from None

    def loading_source(self, target: Path) -> str:
        """The Python code that loads `target`."""
        data, mean, std = self._data, self._config.data.mean, self._config.data.std
        stored = (
            "dense rows, sparse ones filled with zeros"
            if data.sparse
            else "uint8 data divided by 255"
        )
        scaled = ", then by scaled()" if mean else ""
        lines = [
            self._model.module_source(),
            f"model.load_state_dict(torch.load({str(target)!r}, weights_only=True), strict=True)",
            "model.eval()",
            f"# float32 [rows, {data.features}] -> logits [rows, {data.outputs}]; {stored}{scaled}",
        ]
        if mean:
            lines.append(_SCALED.format(mean=mean, std=std))
        return "\n".join(lines)


def _value(opened: OpenCheckpoint, entry: ExportEntry) -> Tensor:
    if entry.source is None:
        return torch.zeros(entry.shape, dtype=torch.int64)
    group, key = entry.source
    return torch.from_numpy(opened.rows(group, key, entry.shape))

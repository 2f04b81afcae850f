"""Keys of one kind of network in the section of another.

Until version 0.1.0 a configuration held the keys of all kinds, and so do checkpoints from then.
Such a key is dropped if its value could be there without a meaning, and refused if someone set it
on purpose.
"""

import dataclasses
import json
import typing
from typing import Any

from ist_hpc.common.errors import InputError, show
from ist_hpc.config.filling import Where, kind_of_section
from ist_hpc.config.keys import ModelConfig, kind_of

_KEYS = {
    kind_of_section(section): {field.name for field in dataclasses.fields(section)}
    for section in typing.get_args(ModelConfig)
}
_MEANINGLESS: dict[str, tuple[Any, ...]] = {
    "hidden": ([],),
    "sections": ([],),
    "min_blocks": (1,),
    "channels": ([],),
    "deal_channels": (False,),
    "body_from": (None,),
    "freeze_body": (False,),
    "output_norm": ("none",),
    "output_bias": (True,),
    "loss": ("auto", "cross_entropy"),
    "label_block": (2048,),
    "negatives": (1000,),
    "dropout": (0.0,),
    "output_start": ("uniform",),
}


def drop_foreign(values: Any, where: Where) -> None:
    """Take the keys of other kinds out of `model` in a mapping. Raises `InputError`."""
    model = values.get("model") if isinstance(values, dict) else None
    kind = kind_of(model)
    if not isinstance(model, dict) or kind not in _KEYS:
        return
    for name in [name for name in model if name not in _KEYS[kind]]:
        owners = [other for other, keys in _KEYS.items() if name in keys]
        if not owners:
            continue  # no section's key: the check of keys reports it
        value = model[name]
        if not any(value == none and type(value) is type(none) for none in _MEANINGLESS[name]):
            raise InputError(
                f"`model.{name}` is of `model.kind: {' or '.join(owners)}`, not of {kind}; leave "
                f"it out, or write `{name}: {_written(_MEANINGLESS[name][0])}`, got {show(value)} "
                f"{where(f'model.{name}')}"
            )
        del model[name]


def _written(value: Any) -> str:
    """A value in YAML."""
    return value if isinstance(value, str) else json.dumps(value)

"""Rules between the keys of a configuration: what values do not allow together."""

from collections.abc import Callable

from ist_hpc.common.errors import InputError, show
from ist_hpc.common.streams import SEED_LIMIT
from ist_hpc.config.keys import (
    CHANNELS,
    RESNET_SECTIONS,
    Config,
    ModelConfig,
    is_folder_name,
    sections_of,
)

_FEWEST_EPOCHS = 1e-6  # between evaluations; fewer is less than a row of any data set
_KINDS_WITH = {  # model.* keys that not every model.kind has
    "sections": ("resnet",),
    "min_blocks": ("resnet",),
    "channels": ("vgg11", "resnet"),
    "deal_channels": ("vgg11",),
    "body_from": ("vgg11",),
    "freeze_body": ("vgg11",),
}


def check_together(config: Config, where: Callable[[str], str]) -> None:
    """Raise `InputError` for what keys do not allow together.

    where  says of a key, by its dotted name, where its value comes from
    """
    train, model, optimizer = config.train, config.model, config.optimizer
    evaluate = config.evaluate
    if (train.epochs is None) == (train.rounds is None):
        got = "neither" if train.epochs is None else "both"
        raise InputError(
            f"give either `train.epochs` or `train.rounds`, got {got} {where('train')}"
        )
    for name, owner in (("warmup_steps", "local_sgd"), ("compression", "data_parallel")):
        value = getattr(train, name)
        if value not in (0, "none") and train.algorithm != owner:
            raise InputError(
                f"`train.{name}` is of {owner}, not of {train.algorithm}; leave it out, got "
                f"{show(value)} {where(f'train.{name}')}"
            )
    if train.algorithm == "ddp" and config.device != "cpu":
        raise InputError(
            "`train.algorithm: ddp` averages over gloo, on the CPU; set `device: cpu`, or take "
            f"data_parallel, got {config.device} {where('device')}"
        )
    if train.precision == "tf32" and config.device == "cpu":
        raise InputError(
            "`train.precision: tf32` is of GPUs; set `device: cuda`, or take bf16 or float32, got "
            f"cpu {where('device')}"
        )
    is_mlp = model.kind == "mlp"  # others take neither, which _check_images says
    if is_mlp and model.loss in ("softmax", "bce") and model.output_norm != "none":
        raise InputError(
            f"`model.loss: {model.loss}` is computed in blocks of labels, without batch norm of "
            f"outputs; set `model.output_norm: none`, got {model.output_norm} "
            f"{where('model.output_norm')}"
        )
    if len(config.data.mean) != len(config.data.std):
        raise InputError(
            "`data.mean` and `data.std` must have as many numbers, one a channel, got "
            f"{len(config.data.mean)} and {len(config.data.std)} {where('data.mean')}"
        )
    entries = config.data.row_entries
    if entries is not None and (config.data.mean or config.data.augment != "none"):
        raise InputError(
            "`data.row_entries` is of sparse rows, `data.mean` and `data.augment` of dense ones; "
            f"leave out what is not of the data {where('data.row_entries')}"
        )
    if entries is not None and model.inputs is not None and entries > model.inputs:
        raise InputError(
            f"`data.row_entries` must be at most `model.inputs`, {model.inputs}, got {entries} "
            f"{where('data.row_entries')}"
        )
    if not evaluate.top:
        raise InputError(f"`evaluate.top` must name at least one k {where('evaluate.top')}")
    if not model.hidden and model.kind != "resnet":
        raise InputError(
            f"`model.hidden` must name at least one hidden layer, got [] {where('model.hidden')}"
        )
    _check_images(model, where)
    if model.output_bias and model.output_norm == "batch":
        raise InputError(
            "`model.output_bias` has no effect before batch norm; set `model.output_norm: none` "
            f"or leave the bias out, got true {where('model.output_bias')}"
        )
    if optimizer.momentum and optimizer.kind != "sgd":
        raise InputError(
            f"`optimizer.momentum` is of sgd, not of {optimizer.kind}; set it to 0, got "
            f"{optimizer.momentum} {where('optimizer.momentum')}"
        )
    if optimizer.weight_decay and optimizer.kind != "sgd":
        raise InputError(
            f"`optimizer.weight_decay` is of sgd, not of {optimizer.kind}; set it to 0, got "
            f"{optimizer.weight_decay} {where('optimizer.weight_decay')}"
        )
    if optimizer.kind == "rowwise_adagrad" and model.kind == "resnet":
        raise InputError(
            "`optimizer.kind: rowwise_adagrad` has a number a dealt unit, which of "
            "`model.kind: resnet` is a whole block; take adagrad, sgd or adam "
            f"{where('optimizer.kind')}"
        )
    if 0 < config.evaluate.every_epochs < _FEWEST_EPOCHS:
        raise InputError(
            f"`evaluate.every_epochs` must be 0 or at least {_FEWEST_EPOCHS}, got "
            f"{config.evaluate.every_epochs} {where('evaluate.every_epochs')}"
        )
    if config.seed >= SEED_LIMIT:
        raise InputError(f"`seed` must be below 2^64, got {config.seed} {where('seed')}")
    if not is_folder_name(config.name):
        raise InputError(
            "`name` names a folder: letters, digits, dots, dashes and underscores, a letter or "
            f"digit first, got {show(config.name)} {where('name')}"
        )


def _check_images(model: ModelConfig, where: Callable[[str], str]) -> None:
    """Rules between the keys of the networks for images."""
    default = ModelConfig(hidden=[])
    for name, kinds in _KINDS_WITH.items():
        if model.kind not in kinds and getattr(model, name) != getattr(default, name):
            raise InputError(
                f"`model.{name}` is of `model.kind: {' or '.join(kinds)}`, not of {model.kind} "
                f"{where(f'model.{name}')}"
            )
    if model.kind == "mlp":
        return
    usual = CHANNELS[model.kind]
    if model.channels and len(model.channels) != len(usual):
        what = "convolutions" if model.kind == "vgg11" else "sections"
        raise InputError(
            f"`model.channels` names those of {len(usual)} {what}, or none, got "
            f"{show(model.channels)} {where('model.channels')}"
        )
    if model.loss not in ("auto", "cross_entropy"):
        raise InputError(
            f"`model.kind: {model.kind}` takes `model.loss: cross_entropy`, got {model.loss} "
            f"{where('model.loss')}"
        )
    if model.kind == "resnet":
        _check_resnet(model, where)
    for name in ("body_from", "freeze_body"):
        if model.deal_channels and getattr(model, name):
            raise InputError(
                f"`model.{name}` is of convolutions that all ranks share; leave it out, or "
                f"`model.deal_channels`, got both {where(f'model.{name}')}"
            )


def _check_resnet(model: ModelConfig, where: Callable[[str], str]) -> None:
    """Rules between the keys of resnet."""
    if model.hidden:
        raise InputError(
            "`model.kind: resnet` has no hidden layers of neurons: write `hidden: []`, got "
            f"{show(model.hidden)} {where('model.hidden')}"
        )
    if model.output_norm != "none" or not model.output_bias:
        raise InputError(
            "`model.kind: resnet` ends in a linear layer with a bias: write `output_norm: none` "
            f"and `output_bias: true`, got {model.output_norm} and "
            f"{str(model.output_bias).lower()} {where('model.output_norm')}"
        )
    sections = sections_of(model)
    if len(sections) != len(RESNET_SECTIONS) or sections[2] < 2:
        raise InputError(
            "`model.sections` has the blocks of four sections, two or more of the third, got "
            f"{show(model.sections)} {where('model.sections')}"
        )
    if model.min_blocks > sections[2] - 1:
        raise InputError(
            f"`model.min_blocks` must be at most the {sections[2] - 1} blocks that are dealt out, "
            f"got {model.min_blocks} {where('model.min_blocks')}"
        )

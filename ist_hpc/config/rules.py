"""Rules between the keys of a configuration: values that exclude each other."""

from ist_hpc.common.errors import InputError, show
from ist_hpc.common.random_streams import SEED_LIMIT
from ist_hpc.config.filling import Where
from ist_hpc.config.keys import (
    RESNET_CHANNELS,
    RESNET_SECTIONS,
    VGG11_CHANNELS,
    Config,
    MlpConfig,
    ResnetConfig,
    Vgg11Config,
    is_folder_name,
    sections_of,
)

_FEWEST_EPOCHS = 1e-6  # between evaluations; less is below one row of any data set


def check_together(config: Config, where: Where) -> None:
    """Raise `InputError` for values that exclude each other.

    where  from a dotted key to where its value was given, for errors
    """
    train, model, optimizer = config.train, config.model, config.optimizer
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
    if isinstance(model, ResnetConfig):
        _check_resnet(model, where)
    else:
        _check_perceptron(model, where)
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


def _check_perceptron(model: MlpConfig | Vgg11Config, where: Where) -> None:
    """Rules between the keys of a perceptron, and of the convolutions before it."""
    if isinstance(model, MlpConfig):
        if model.loss in ("softmax", "bce", "sampled_softmax") and model.output_norm != "none":
            raise InputError(
                f"`model.loss: {model.loss}` is computed in blocks of labels, without batch norm "
                f"of outputs; set `model.output_norm: none`, got {model.output_norm} "
                f"{where('model.output_norm')}"
            )
        if model.loss == "sampled_softmax" and model.output_bias:
            raise InputError(
                "`model.output_bias` is averaged over the ranks each round, for which "
                "`model.loss: sampled_softmax` would need every label; leave the bias out, got "
                f"true {where('model.output_bias')}"
            )
    else:
        _check_channels(model, "convolutions", where)
    if model.output_bias and model.output_norm == "batch":
        raise InputError(
            "`model.output_bias` has no effect before batch norm; set `model.output_norm: none` "
            f"or leave the bias out, got true {where('model.output_bias')}"
        )
    if isinstance(model, Vgg11Config) and model.deal_channels:
        for name in ("body_from", "freeze_body"):
            if getattr(model, name):
                raise InputError(
                    f"`model.{name}` is of convolutions that all ranks share; leave it out, or "
                    f"`model.deal_channels`, got both {where(f'model.{name}')}"
                )


def _check_channels(model: Vgg11Config | ResnetConfig, of: str, where: Where) -> None:
    usual = len(VGG11_CHANNELS if isinstance(model, Vgg11Config) else RESNET_CHANNELS)
    if model.channels and len(model.channels) != usual:
        raise InputError(
            f"`model.channels` names those of {usual} {of}, or none, got "
            f"{show(model.channels)} {where('model.channels')}"
        )


def _check_resnet(model: ResnetConfig, where: Where) -> None:
    """Rules between the keys of resnet."""
    _check_channels(model, "sections", where)
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

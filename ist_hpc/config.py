"""The configuration of a run: sections, defaults, ranges, and reading them from YAML and --set."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from ist_hpc.config_yaml import read_yaml
from ist_hpc.configtypes import describe, fill, key, show
from ist_hpc.errors import InputError
from ist_hpc.streams import SEED_LIMIT

_FEWEST_EPOCHS = 1e-6  # between evaluations; fewer is less than a row of any data set

QUICKSTART = Path(__file__).parent / "quickstart.yaml"
"""The configuration of a run that names none."""

MOST_TOP = 10_000
"""Of `evaluate.top`: every rank keeps so many labels for each row of a batch."""

_LEAST_SCALE, _MOST_SCALE = 1e-30, 1e30  # of data.mean and data.std, so that float32 holds them
VGG11_CHANNELS = (64, 128, 256, 256, 512, 512, 512, 512)
"""Of the paper that VGG11 is from, configuration A (Simonyan and Zisserman 2015)."""
RESNET_SECTIONS = (3, 4, 23, 3)
"""Basic blocks of the network of ResIST (section 4)."""
_CHANNELS = {"vgg11": VGG11_CHANNELS, "resnet": (64, 128, 256, 512)}
_KINDS_WITH = {  # model.* keys that not every model.kind has
    "sections": ("resnet",),
    "min_blocks": ("resnet",),
    "channels": ("vgg11", "resnet"),
    "deal_channels": ("vgg11",),
    "body_from": ("vgg11",),
    "freeze_body": ("vgg11",),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the shards are and how batches are drawn from them."""

    path: str = key(help="folder of shards made by python -m ist_hpc.prepare")
    batch_size: int = key(128, "rows a rank trains on in one local step", low=2, high=2**24)
    assign: str = key(
        "rows",
        "rows: all shards, rows divided evenly over the ranks; files: rank r reads the shards "
        "whose number modulo the ranks is r, which other nodes need not have",
        choices=("rows", "files"),
    )
    window_mib: int = key(
        256, "memory for shuffling; fewer rows than that are kept and shuffled whole", low=1
    )
    verify: bool = key(True, "check every shard's SHA-256 before training")
    row_entries: float | None = key(
        None,
        "non-zeros of a sparse row on average, for a plan without the data; null: as they have",
        above=0,
    )
    augment: str = key(
        "none",
        "crop_flip: training images are padded with 4 zeros, cut back at random and mirrored with "
        "probability 1/2; none",
        choices=("none", "crop_flip"),
    )
    mean: list[float] = key(
        [],
        "subtracted from dense features, one a channel (an index of the first dimension), in the "
        "unit in which uint8 features are 0 to 1; []: nothing",
        low=-_MOST_SCALE,
        high=_MOST_SCALE,
    )
    std: list[float] = key(
        [],
        "by which they are then divided, one a channel; with data.mean",
        low=_LEAST_SCALE,
        high=_MOST_SCALE,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network."""

    kind: str = key(
        "mlp",
        "mlp: a perceptron; vgg11: eight convolutions with batch norm before it, for images of 3 x "
        "32 x 32; resnet: a residual network for them, whose blocks are dealt out",
        choices=("mlp", "vgg11", "resnet"),
    )
    hidden: list[int] = key(
        help="widths of the hidden layers; [] for resnet, which has none", low=1, high=2**26
    )
    sections: list[int] = key(
        [],
        "of resnet: blocks in each of the four sections, of which the third's are dealt out but "
        "for its first; []: 3, 4, 23, 3",
        low=1,
        high=2**16,
    )
    min_blocks: int = key(
        1,
        "of resnet: dealt blocks that a rank trains; where an even deal gives fewer, ranks share "
        "some, whose weights are averaged (4 in the paper)",
        low=1,
        high=2**16,
    )
    channels: list[int] = key(
        [],
        "of vgg11: channels of the eight convolutions; []: 64, 128, 256, 256, 512, 512, 512, 512. "
        "Of resnet: of the four sections; []: 64, 128, 256, 512",
        low=1,
        high=2**16,
    )
    deal_channels: bool = key(
        False,
        "of vgg11, true: channels are dealt out as neurons are; false: every rank has and trains "
        "all convolutions, which are averaged each round (the paper)",
    )
    body_from: str | None = key(
        None,
        "of vgg11: a checkpoint, run folder or HDF5 file with the convolutions to start from",
    )
    freeze_body: bool = key(False, "of vgg11: leave the convolutions as they are")
    inputs: int | None = key(None, "features a row; null: as the data has", low=1)
    outputs: int | None = key(None, "classes; null: as the data has", low=1)
    output_norm: str = key(
        "batch",
        "batch: batch norm without scale and shift on the outputs (the paper's authors); none",
        choices=("batch", "none"),
    )
    output_bias: bool = key(False, "a bias on the outputs, averaged over the ranks each round")
    loss: str = key(
        "auto",
        "cross_entropy: one class a row; softmax: label mass spread over a row's labels; bce: "
        "binary cross-entropy of every label; auto: cross_entropy for classes, softmax for sets",
        choices=("auto", "cross_entropy", "softmax", "bce"),
    )
    label_block: int = key(
        2048,
        "labels computed at a time by softmax and bce, which bounds memory; slow below 64",
        low=1,
        high=2**24,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The algorithm and how long it runs."""

    algorithm: str = key(
        "ist",
        "ist: independent subnets; data_parallel: Horovod averages the gradient of every step; "
        "local_sgd: whole models, averaged by Horovod each round; ddp: PyTorch's "
        "DistributedDataParallel over gloo",
        choices=("ist", "data_parallel", "local_sgd", "ddp"),
    )
    local_steps: int = key(
        20,
        "steps in a round (J in the paper), which ist and local_sgd train alone; of the others a "
        "round is only what is reported and saved at a time",
        low=1,
    )
    warmup_steps: int = key(
        0, "first steps of the run that local_sgd trains as data_parallel does", low=0
    )
    compression: str = key(
        "none",
        "fp16: data_parallel sends gradients as half precision numbers; none",
        choices=("none", "fp16"),
    )
    on_nan: str = key(
        "stop",
        "when a loss is not finite or above 1e9, on any rank: stop the run before anything is "
        "saved, or skip_round, which gives the round up on all ranks, also for a weight that is "
        "not finite (and keeps a copy of what a round trains)",
        choices=("stop", "skip_round"),
    )
    epochs: float | None = key(None, "length: passes over the training rows, by all ranks", above=0)
    rounds: int | None = key(None, "length: rounds, instead of epochs", low=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimiser of the local steps."""

    kind: str = key(
        "sgd",
        "the update rule; rowwise_adagrad keeps one number a neuron of a matrix",
        choices=("sgd", "adam", "adagrad", "rowwise_adagrad"),
    )
    lr: float = key(0.01, "learning rate", low=0)
    momentum: float = key(0.0, "momentum of sgd", low=0, high=1)
    weight_decay: float = key(0.0, "of sgd: so much of the weight is added to its gradient", low=0)
    betas: tuple[float, float] = key((0.9, 0.999), "decay of adam's moments", low=0, high=0.999999)
    eps: float = key(1e-8, "added to the root, of adam and both adagrads", above=0)
    state: str = key(
        "carry",
        "carry: momentum and moments travel with their weights; reset: begun anew each round",
        choices=("carry", "reset"),
    )
    decay_epochs: list[float] = key([], "epochs at which the learning rate steps down", above=0)
    decay_factor: float = key(0.1, "what it is multiplied by there", above=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """When and how the full network is evaluated."""

    every_epochs: float = key(1.0, "epochs between evaluations; 0: only at the end", low=0)
    every_rounds: int = key(0, "rounds between evaluations, beside every_epochs; 0: none", low=0)
    calibration_rows: int = key(
        2048, "training rows from which batch-norm statistics are computed", low=2
    )
    batch_rows: int = key(1024, "rows evaluated at a time, on all ranks", low=1)
    top: list[int] = key(
        [1, 3, 5], "k of P@k, nDCG@k and PSP@k, for sets of labels", low=1, high=MOST_TOP
    )
    propensity: tuple[float, float] = key(
        (0.55, 1.5),
        "A and B of the propensities of PSP@k (Jain et al. 2016); 0.6, 2.6 for Amazon sets",
        low=0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExchangeConfig:
    """The exchange of weights."""

    buffer_mib: int = key(
        256, "bound of all send and receive buffers; more goes in chunks", low=1, high=8192
    )
    cuda_aware: bool = key(
        False,
        "pass GPU memory to MPI, which must have been built for it; false: through pinned memory",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are saved; there is always one at the end."""

    every_minutes: float = key(30.0, "minutes between checkpoints; 0: only at the end", low=0)
    every_rounds: int = key(0, "rounds between checkpoints, beside every_minutes; 0: none", low=0)
    keep: int = key(2, "newest checkpoints that are kept", low=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """The processes."""

    threads: int = key(0, "threads a rank; 0: OMP_NUM_THREADS, else cores over ranks", low=0)
    memory_gb: float | None = key(
        None,
        "memory of a node for the run, GB (10^9 bytes); null: what the node, its cgroup, ulimit or "
        "Slurm grants. A run that would need more does not start",
        above=0,
    )
    silence_s: float = key(
        600.0,
        "seconds after which a rank that comes to no end of something ends the run: it waits for "
        "the slowest rank, so more than the longest round, evaluation batch or checkpoint of any",
        above=0,
    )
    lead_time_s: float = key(
        0.0,
        "seconds from the batch system's warning signal to the kill; a round and a checkpoint that "
        "take longer are warned about. 0: not known",
        low=0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A whole configuration."""

    data: DataConfig = key()
    model: ModelConfig = key()
    name: str = key("run", "names the run folder, runs/NAME-TIME")
    seed: int = key(0, "deals, initial weights and data order follow from it", low=0)
    device: str = key("cpu", "where the ranks compute", choices=("cpu", "cuda"))
    train: TrainConfig = key(TrainConfig())
    optimizer: OptimizerConfig = key(OptimizerConfig())
    evaluate: EvaluateConfig = key(EvaluateConfig())
    exchange: ExchangeConfig = key(ExchangeConfig())
    checkpoint: CheckpointConfig = key(CheckpointConfig())
    runtime: RuntimeConfig = key(RuntimeConfig())


def load(path: Path | None, settings: Sequence[str] = ()) -> Config:
    """The configuration of a file (the quickstart's if None) with `section.key=value` settings.

    Local; every rank reads the same file. Raises `InputError`.
    """
    source = path or QUICKSTART
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot read the configuration {source}: {reason}") from None
    return parse(text, str(source), settings)


def parse(text: str, source: str, settings: Sequence[str] = ()) -> Config:
    """The configuration of a YAML text; `source` names it in errors. Raises `InputError`."""
    lines: dict[str, str] = {}
    values = read_yaml(text, f"in {source}", lambda key, line: lines.update({key: f"line {line}"}))
    if values is None:
        values = {}
    given: dict[str, str] = {}
    for setting in settings if isinstance(values, dict) else ():
        _apply_setting(values, setting, given)
    _let_length_replace(values, given)

    def where(dotted: str) -> str:
        if dotted in given:
            return f"in --set {given[dotted]}"
        return f"in {source}" + (f", {lines[dotted]}" if dotted in lines else "")

    config: Config = fill(Config, values, where)
    _check_together(config, where)
    return config


def _apply_setting(values: dict[Any, Any], setting: str, given: dict[str, str]) -> None:
    dotted, separator, text = setting.partition("=")
    names = dotted.strip().split(".")
    if not separator or not all(names):
        raise InputError(f"--set wants key=value, such as optimizer.lr=0.1, got {setting!r}")
    target = ".".join(names)

    def on_key(key: str, line: int) -> None:
        given[f"{target}.{key}"] = setting

    value = read_yaml(text, f"in --set {setting}", on_key)
    section: Any = values
    for depth, name in enumerate(names[:-1], start=1):
        parent = ".".join(names[:depth])
        given[parent] = setting
        section = section.setdefault(name, {})
        if not isinstance(section, dict):
            raise InputError(
                f"--set {setting}: `{parent}` must be a mapping of keys to values, got "
                f"{show(section)}"
            )
    section[names[-1]] = value
    given[target] = setting


def _let_length_replace(values: Any, given: dict[str, str]) -> None:
    """A length that is set replaces the other kind of length in the file."""
    train = values.get("train") if isinstance(values, dict) else None
    if not isinstance(train, dict):
        return
    for name, other in (("rounds", "epochs"), ("epochs", "rounds")):
        replaces = f"train.{name}" in given and f"train.{other}" not in given
        if replaces and train.get(name) is not None:
            train.pop(other, None)


def channels_of(model: ModelConfig) -> tuple[int, ...]:
    """Channels of the convolutions, or of the sections; none of a model without."""
    return tuple(model.channels) or _CHANNELS.get(model.kind, ())


def sections_of(model: ModelConfig) -> tuple[int, ...]:
    """Blocks in the sections of a residual network."""
    return tuple(model.sections) or RESNET_SECTIONS


def subnets_of(config: Config, ranks: int) -> int:
    """How many networks such ranks train at a time; 1 where every rank trains the whole one."""
    return ranks if config.train.algorithm == "ist" else 1


def is_folder_name(name: str) -> bool:
    """Whether a run may have this name."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) is not None


def _check_together(config: Config, where: Callable[[str], str]) -> None:
    """Rules between keys."""
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
    if model.loss in ("softmax", "bce") and model.output_norm != "none":
        raise InputError(
            f"`model.loss: {model.loss}` is computed in blocks of labels, without batch norm of "
            f"outputs; set `model.output_norm: none` {where('model.output_norm')}"
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
            f"or leave the bias out {where('model.output_bias')}"
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
    if 0 < config.evaluate.every_epochs < _FEWEST_EPOCHS:
        raise InputError(
            f"`evaluate.every_epochs` must be 0 or at least {_FEWEST_EPOCHS}, got "
            f"{config.evaluate.every_epochs} {where('evaluate.every_epochs')}"
        )
    if config.seed >= SEED_LIMIT:
        raise InputError(f"`seed` must be below 2^64, got {config.seed} {where('seed')}")
    if not is_folder_name(config.name):
        raise InputError(
            "`name` names a folder: letters, digits, dots, dashes and underscores, got "
            f"{show(config.name)} {where('name')}"
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
    usual = _CHANNELS[model.kind]
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
                f"`model.deal_channels` {where(f'model.{name}')}"
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
            f"and `output_bias: true` {where('model.output_norm')}"
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


def dump(config: Config) -> str:
    """The resolved configuration as YAML that `parse` reads back to an equal one."""
    plain = dataclasses.asdict(config)
    plain["optimizer"]["betas"] = list(config.optimizer.betas)
    plain["evaluate"]["propensity"] = list(config.evaluate.propensity)
    return yaml.safe_dump(plain, sort_keys=False)


def describe_keys() -> str:
    """Every key with its type, default and meaning, for --help."""
    lines = []

    def walk(section: type, prefix: str) -> None:
        for field in dataclasses.fields(section):
            dotted = prefix + field.name
            if dataclasses.is_dataclass(field.type):
                assert isinstance(field.type, type)
                walk(field.type, dotted + ".")
                continue
            if field.default is not dataclasses.MISSING:
                default = f"default {field.default}"
            elif field.default_factory is not dataclasses.MISSING:
                default = f"default {field.default_factory()}"
            else:
                default = "required"
            lines.append(f"  {dotted:28} {describe(field.type)}; {default}")
            lines.append(f"      {field.metadata['help']}")

    walk(Config, "")
    return "\n".join(lines)

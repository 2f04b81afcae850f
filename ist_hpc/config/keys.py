"""The keys of a configuration: sections, types, defaults and ranges."""

import re
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import Discriminator, Tag
from pydantic.dataclasses import dataclass

from ist_hpc.config.filling import NO_OTHERS, FilePath, Flag, Number, Text, Whole, key

MOST_TOP = 10_000
"""Maximum of `evaluate.top`: every rank keeps as many labels for each row of a batch."""

VGG11_CHANNELS = (64, 128, 256, 256, 512, 512, 512, 512)
"""From the VGG paper, configuration A (Simonyan and Zisserman 2015)."""
RESNET_CHANNELS = (64, 128, 256, 512)
RESNET_SECTIONS = (3, 4, 23, 3)
"""Basic blocks in the network of ResIST (section 4)."""

Scale = Annotated[Number, Ge(1e-30), Le(1e30)]  # so that float32 holds it
Width = Annotated[Whole, Ge(1), Le(2**26)]
Count = Annotated[Whole, Ge(1), Le(2**16)]
Size = Annotated[Whole, Ge(1)] | None
Decay = Annotated[Number, Ge(0), Le(0.999999)]
Precision = Literal["float32", "tf32", "bf16"]
Constant = Annotated[Number, Ge(0)]


@dataclass(frozen=True, kw_only=True, config=NO_OTHERS)
class DataConfig:
    """Where the shards are and how batches are drawn from them."""

    path: FilePath = key(help="folder of shards made by python -m ist_hpc.prepare")
    batch_size: Whole = key(128, "rows a rank trains on in one local step", ge=2, le=2**24)
    assign: Literal["rows", "files"] = key(
        "rows",
        "rows: all shards, rows divided evenly over the ranks; files: rank r reads the shards "
        "whose number modulo the ranks is r, which other nodes need not have",
    )
    window_mib: Whole = key(
        256, "memory for shuffling; fewer rows than that are kept and shuffled whole", ge=1
    )
    verify: Flag = key(True, "check every shard's SHA-256 before training")
    row_entries: Number | None = key(
        None,
        "non-zeros of a sparse row on average, for a plan without the data; null: as they have",
        gt=0,
    )
    augment: Literal["none", "crop_flip"] = key(
        "none",
        "crop_flip: training images are padded with 4 zeros, cut back at random and mirrored with "
        "probability 1/2; none",
    )
    mean: list[Annotated[Number, Ge(-1e30), Le(1e30)]] = key(
        [],
        "subtracted from dense features, one a channel (an index of the first dimension), in the "
        "unit in which uint8 features are 0 to 1; []: nothing",
    )
    std: list[Scale] = key(
        [],
        "by which they are then divided, one a channel; with data.mean",
    )


_KIND = (
    "mlp: a perceptron; vgg11: eight convolutions with batch norm before it, for images of 3 x 32 "
    "x 32; resnet: a residual network for them, whose blocks are dealt out"
)
_HIDDEN = "widths of the hidden layers"
_INPUTS, _OUTPUTS = "features a row; null: as the data has", "classes; null: as the data has"
_NORM = "batch: batch norm without scale and shift on the outputs (the paper's authors); none"
_BIAS = "a bias on the outputs, averaged over the ranks each round"


@dataclass(frozen=True, kw_only=True, config=NO_OTHERS)
class MlpConfig:
    """A perceptron."""

    kind: Literal["mlp"] = key("mlp", _KIND)
    hidden: Annotated[list[Width], MinLen(1)] = key(help=_HIDDEN)
    inputs: Size = key(None, _INPUTS)
    outputs: Size = key(None, _OUTPUTS)
    output_norm: Literal["batch", "none"] = key("batch", _NORM)
    output_bias: Flag = key(False, _BIAS)
    loss: Literal["auto", "cross_entropy", "softmax", "bce", "sampled_softmax"] = key(
        "auto",
        "cross_entropy: one class a row; softmax: label mass spread over a row's labels; bce: "
        "binary cross-entropy of every label; sampled_softmax: softmax over the labels of a step, "
        "for very many; auto: cross_entropy for classes, softmax for sets",
    )
    negatives: Width = key(
        1000, "labels that sampled_softmax draws in each step, beside those of its rows"
    )
    dropout: Number = key(
        0.0, "part of the hidden units that a local step leaves out, drawn anew", ge=0, le=0.99
    )
    output_start: Literal["uniform", "zero"] = key(
        "uniform", "initial output weights: uniform in +-1/sqrt(width of the last hidden layer)"
    )
    label_block: Whole = key(
        2048,
        "labels computed at a time by softmax and bce, which bounds memory; slow below 64",
        ge=1,
        le=2**24,
    )


@dataclass(frozen=True, kw_only=True, config=NO_OTHERS)
class Vgg11Config:
    """Eight convolutions with batch norm before a perceptron, for images of 3 x 32 x 32."""

    kind: Literal["vgg11"] = key("vgg11", _KIND)
    hidden: Annotated[list[Width], MinLen(1)] = key(help=_HIDDEN)
    channels: list[Count] = key(
        [], "of the eight convolutions; []: 64, 128, 256, 256, 512, 512, 512, 512"
    )
    deal_channels: Flag = key(
        False,
        "true: channels are dealt out as neurons are; false: every rank has and trains all "
        "convolutions, which are averaged each round (the paper)",
    )
    body_from: FilePath | None = key(
        None, "a checkpoint, run folder or HDF5 file with the convolutions to start from"
    )
    freeze_body: Flag = key(False, "leave the convolutions as they are")
    inputs: Size = key(None, _INPUTS)
    outputs: Size = key(None, _OUTPUTS)
    output_norm: Literal["batch", "none"] = key("batch", _NORM)
    output_bias: Flag = key(False, _BIAS)


@dataclass(frozen=True, kw_only=True, config=NO_OTHERS)
class ResnetConfig:
    """A residual network for images of 3 x 32 x 32, whose blocks are dealt out (ResIST)."""

    kind: Literal["resnet"] = key("resnet", _KIND)
    sections: list[Count] = key(
        [],
        "blocks in each of the four sections, of which the third's are dealt out but for its "
        "first; []: 3, 4, 23, 3",
    )
    channels: list[Count] = key([], "of the four sections; []: 64, 128, 256, 512")
    min_blocks: Count = key(
        1,
        "dealt blocks that a rank trains; where an even deal gives fewer, ranks share some, whose "
        "weights are averaged (4 in the paper)",
    )
    inputs: Size = key(None, _INPUTS)
    outputs: Size = key(None, _OUTPUTS)


ModelConfig = MlpConfig | Vgg11Config | ResnetConfig
"""The network: a section for each kind."""


def kind_of(model: Any) -> str:
    """The kind of a network, from its section or a mapping of its keys."""
    if isinstance(model, ModelConfig):
        return model.kind
    return str(model.get("kind", "mlp")) if isinstance(model, dict) else "mlp"


@dataclass(frozen=True, kw_only=True, config=NO_OTHERS)
class TrainConfig:
    """The algorithm and how long it runs."""

    algorithm: Literal["ist", "data_parallel", "local_sgd", "ddp"] = key(
        "ist",
        "ist: independent subnets; data_parallel: Horovod averages the gradient of every step; "
        "local_sgd: whole models, averaged by Horovod each round; ddp: PyTorch's "
        "DistributedDataParallel over gloo",
    )
    local_steps: Whole = key(
        20,
        "steps in a round (J in the paper), which ist and local_sgd train alone; of the others a "
        "round is only what is reported and saved at a time",
        ge=1,
    )
    warmup_steps: Whole = key(
        0, "first steps of the run that local_sgd trains as data_parallel does", ge=0
    )
    compression: Literal["none", "fp16"] = key(
        "none",
        "fp16: data_parallel sends gradients as half precision numbers; none",
    )
    precision: Precision = key(
        "float32",
        "numbers of a local step's products and convolutions: bf16 (weights, sums and what is "
        "exchanged and saved stay float32), tf32 (of GPUs), float32",
    )
    on_nan: Literal["stop", "skip_round"] = key(
        "stop",
        "when a loss is not finite or above 1e9, on any rank: stop the run before anything is "
        "saved, or skip_round, which gives the round up on all ranks, also for a weight that is "
        "not finite (and keeps a copy of what a round trains)",
    )
    epochs: Number | None = key(None, "length: passes over the training rows, by all ranks", gt=0)
    rounds: Whole | None = key(None, "length: rounds, instead of epochs", ge=1)


@dataclass(frozen=True, kw_only=True, config=NO_OTHERS)
class OptimizerConfig:
    """The optimiser of the local steps."""

    kind: Literal["sgd", "adam", "adagrad", "rowwise_adagrad"] = key(
        "sgd",
        "the update rule; rowwise_adagrad keeps one number a neuron of a matrix",
    )
    lr: Number = key(0.01, "learning rate", ge=0)
    momentum: Number = key(0.0, "momentum of sgd", ge=0, le=1)
    weight_decay: Number = key(0.0, "of sgd: so much of the weight is added to its gradient", ge=0)
    betas: tuple[Decay, Decay] = key((0.9, 0.999), "decay of adam's moments")
    eps: Number = key(1e-8, "added to the root, of adam and both adagrads", gt=0)
    state: Literal["carry", "reset"] = key(
        "carry",
        "carry: momentum and moments travel with their weights; reset: begun anew each round",
    )
    decay_epochs: list[Annotated[Number, Gt(0)]] = key(
        [], "epochs at which the learning rate steps down"
    )
    decay_factor: Number = key(0.1, "what it is multiplied by there", gt=0)


@dataclass(frozen=True, kw_only=True, config=NO_OTHERS)
class EvaluateConfig:
    """When and how the full network is evaluated."""

    every_epochs: Number = key(1.0, "epochs between evaluations; 0: only at the end", ge=0)
    every_rounds: Whole = key(0, "rounds between evaluations, beside every_epochs; 0: none", ge=0)
    calibration_rows: Whole = key(
        2048, "training rows from which batch-norm statistics are computed", ge=2
    )
    batch_rows: Whole = key(1024, "rows evaluated at a time, on all ranks", ge=1)
    rows: Size = key(
        None,
        "test rows of an evaluation in the course of the run, drawn by the seed; at the end, and "
        "by python -m ist_hpc.evaluate, all are evaluated, of which alone the best is kept. null: "
        "always all",
    )
    top: Annotated[list[Annotated[Whole, Ge(1), Le(MOST_TOP)]], MinLen(1)] = key(
        [1, 3, 5], "k of P@k, nDCG@k and PSP@k, for sets of labels"
    )
    propensity: tuple[Constant, Constant] = key(
        (0.55, 1.5),
        "A and B of the propensities of PSP@k (Jain et al. 2016); 0.6, 2.6 for Amazon sets",
    )


@dataclass(frozen=True, kw_only=True, config=NO_OTHERS)
class ExchangeConfig:
    """The exchange of weights."""

    buffer_mib: Whole = key(
        256, "bound of all send and receive buffers; more goes in chunks", ge=1, le=8192
    )
    cuda_aware: Flag = key(
        False,
        "pass GPU memory to MPI, which must have been built for it; false: through pinned memory",
    )


@dataclass(frozen=True, kw_only=True, config=NO_OTHERS)
class CheckpointConfig:
    """When checkpoints are saved; there is always one at the end."""

    every_minutes: Number = key(30.0, "minutes between checkpoints; 0: only at the end", ge=0)
    every_rounds: Whole = key(0, "rounds between checkpoints, beside every_minutes; 0: none", ge=0)
    keep: Whole = key(2, "newest checkpoints that are kept", ge=1)


@dataclass(frozen=True, kw_only=True, config=NO_OTHERS)
class RuntimeConfig:
    """The processes."""

    threads: Whole = key(0, "threads a rank; 0: OMP_NUM_THREADS, else cores over ranks", ge=0)
    memory_gb: Number | None = key(
        None,
        "memory of a node for the run, GB (10^9 bytes); null: what the node, its cgroup, ulimit or "
        "Slurm grants. A run that would need more does not start",
        gt=0,
    )
    silence_s: Number = key(
        600.0,
        "seconds after which a rank that makes no progress ends the run: it waits for "
        "the slowest rank, so more than the longest round, evaluation batch or checkpoint of any",
        gt=0,
    )
    lead_time_s: Number = key(
        0.0,
        "seconds from the batch system's warning signal to the kill; a round and a checkpoint that "
        "take longer are warned about. 0: not known",
        ge=0,
    )


@dataclass(frozen=True, kw_only=True, config=NO_OTHERS)
class Config:
    """A whole configuration."""

    data: DataConfig = key()
    model: Annotated[
        Annotated[MlpConfig, Tag("mlp")]
        | Annotated[Vgg11Config, Tag("vgg11")]
        | Annotated[ResnetConfig, Tag("resnet")],
        Discriminator(kind_of),
    ] = key()
    name: Text = key("run", "names the run folder, runs/NAME-TIME")
    seed: Whole = key(0, "deals, initial weights and data order follow from it", ge=0)
    device: Literal["cpu", "cuda"] = key("cpu", "where the ranks compute")
    train: TrainConfig = key(TrainConfig)
    optimizer: OptimizerConfig = key(OptimizerConfig)
    evaluate: EvaluateConfig = key(EvaluateConfig)
    exchange: ExchangeConfig = key(ExchangeConfig)
    checkpoint: CheckpointConfig = key(CheckpointConfig)
    runtime: RuntimeConfig = key(RuntimeConfig)


def channels_of(model: Vgg11Config | ResnetConfig) -> tuple[int, ...]:
    """Channels of the convolutions, or of the sections."""
    usual = VGG11_CHANNELS if isinstance(model, Vgg11Config) else RESNET_CHANNELS
    return tuple(model.channels) or usual


def sections_of(model: ResnetConfig) -> tuple[int, ...]:
    """Blocks in the sections of a residual network."""
    return tuple(model.sections) or RESNET_SECTIONS


def draws_labels(model: ModelConfig) -> bool:
    """Whether a step trains labels that are drawn, and those of its rows, in place of all."""
    return isinstance(model, MlpConfig) and model.loss == "sampled_softmax"


def is_frozen(model: ModelConfig) -> bool:
    """Whether the convolutions before a perceptron stay as they are."""
    return isinstance(model, Vgg11Config) and model.freeze_body


def subnets_of(config: Config, ranks: Whole) -> int:
    """How many networks the ranks train at a time; 1 if every rank trains the whole network."""
    return ranks if config.train.algorithm == "ist" else 1


def is_folder_name(name: str) -> bool:
    """Whether a run may have this name."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) is not None

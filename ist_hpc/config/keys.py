"""The keys of a configuration: sections, types, defaults and ranges."""

import dataclasses
import re

from ist_hpc.config.types import key

MOST_TOP = 10_000
"""Of `evaluate.top`: every rank keeps so many labels for each row of a batch."""

_LEAST_SCALE, _MOST_SCALE = 1e-30, 1e30  # of data.mean and data.std, so that float32 holds them
VGG11_CHANNELS = (64, 128, 256, 256, 512, 512, 512, 512)
"""Of the paper that VGG11 is from, configuration A (Simonyan and Zisserman 2015)."""
RESNET_SECTIONS = (3, 4, 23, 3)
"""Basic blocks of the network of ResIST (section 4)."""
CHANNELS = {"vgg11": VGG11_CHANNELS, "resnet": (64, 128, 256, 512)}
"""Usual channels, by `model.kind`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the shards are and how batches are drawn from them."""

    path: str = key(help="folder of shards made by python -m ist_hpc.prepare", is_path=True)
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
        is_path=True,
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
    precision: str = key(
        "float32",
        "numbers of a local step's products and convolutions: bf16 (weights, sums and what is "
        "exchanged and saved stay float32), tf32 (of GPUs), float32",
        choices=("float32", "tf32", "bf16"),
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


def channels_of(model: ModelConfig) -> tuple[int, ...]:
    """Channels of the convolutions, or of the sections; none of a model without."""
    return tuple(model.channels) or CHANNELS.get(model.kind, ())


def sections_of(model: ModelConfig) -> tuple[int, ...]:
    """Blocks in the sections of a residual network."""
    return tuple(model.sections) or RESNET_SECTIONS


def subnets_of(config: Config, ranks: int) -> int:
    """How many networks such ranks train at a time; 1 where every rank trains the whole one."""
    return ranks if config.train.algorithm == "ist" else 1


def is_folder_name(name: str) -> bool:
    """Whether a run may have this name."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) is not None

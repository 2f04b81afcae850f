"""The data and the model that a configuration names, and whether they fit each other."""

from pathlib import Path

from torch import Tensor

from ist_hpc.checkpoint.pretrained import read_shared
from ist_hpc.common.errors import InputError
from ist_hpc.config.keys import Config, Vgg11Config, draws_labels, is_frozen, subnets_of
from ist_hpc.data import images
from ist_hpc.data.rows import refuse_uncountable
from ist_hpc.data.shards import Dataset
from ist_hpc.models import networks
from ist_hpc.models.base import Model
from ist_hpc.models.convolutional.convolutions import BODY_PREFIX
from ist_hpc.models.frequencies import label_frequencies
from ist_hpc.training import algorithms
from ist_hpc.training.evaluation.full_network import metrics_for


def open_data_and_model(config: Config, ranks: int) -> tuple[Dataset, Model]:
    """Open the data set and build the model for the given number of ranks. Local.

    Raises `InputError` for settings that do not fit these data.
    """
    dataset = Dataset.open(config.data.path)
    for split in ("train", "test"):
        if dataset.rows(split) == 0:
            raise InputError(f"{dataset.path}: the {split} split has no rows")
    images.scaling_of(config.data, dataset)  # these refuse data that do not fit
    images.augmentation_of(config.data, dataset, config.seed, rank=0)
    model = build_model(config, dataset, ranks)
    algorithms.refuse_unfit(config, model, ranks)
    metrics_for(dataset, config.evaluate)  # refuses impossible propensities
    for split, count in (
        ("train", config.evaluate.calibration_rows),
        ("test", config.evaluate.batch_rows),
    ):
        if not dataset.sparse:
            numbers = max(dataset.features, model.relayed_numbers)
            refuse_uncountable(min(count, dataset.rows(split)), numbers)
    return dataset, model


def build_model(config: Config, dataset: Dataset, ranks: int) -> Model:
    """The configured model for the data; `InputError` if the configured widths differ."""
    subnets = subnets_of(config, ranks)
    widths, draws = _widths(config, dataset), draws_labels(config.model)
    frequencies = label_frequencies(dataset) if draws else None
    model = networks.build(config.model, *widths, dataset.sparse, subnets, frequencies)
    networks.refuse_other_rows(model, dataset.feature_shape, dataset.path)
    return model


def _widths(config: Config, dataset: Dataset) -> tuple[int, int]:
    """(features per row, classes) of the data; `InputError` if the configuration says others."""
    features, classes = dataset.features, dataset.outputs
    for name, configured, found, what in (
        ("inputs", config.model.inputs, features, "features a row"),
        ("outputs", config.model.outputs, classes, "classes"),
    ):
        if configured is not None and configured != found:
            raise InputError(
                f"{dataset.path} has {found} {what}, `model.{name}` says {configured}; is "
                "`data.path` the data this configuration is for?"
            )
    return features, classes


def load_pretrained(config: Config, model: Model) -> dict[str, Tensor]:
    """The shared weights from `model.body_from`; empty if it is not set. Local.

    Raises `InputError` for a file without them, and for a frozen body without a file.
    """
    source = config.model.body_from if isinstance(config.model, Vgg11Config) else None
    if source is None:
        if is_frozen(config.model):
            raise InputError(
                "`model.freeze_body: true` would leave random convolutions as they are; give "
                "`model.body_from`, or go on with a run by --resume"
            )
        return {}
    body = [spec for spec in model.shared if spec.key.startswith(BODY_PREFIX)]
    return read_shared(Path(source), body)


def check_shards(dataset: Dataset, config: Config, rank: int, ranks: int) -> None:
    """Check this rank's part of the shards; the ranks together check all. Local.

    Under `data.assign: files` a rank checks its own shards, the only ones that it needs.
    """
    numbered = [(split, i) for split, shards in dataset.shards.items() for i in range(len(shards))]
    for position, (split, index) in enumerate(numbered):
        mine = index if config.data.assign == "files" else position
        if mine % ranks == rank:
            dataset.check_shard(split, index, checksum=config.data.verify)

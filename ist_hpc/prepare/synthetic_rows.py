"""Synthetic rows of extreme classification: label sets that can be learnt from sparse features.

Labels are ordered by rank, the most frequent first, and cut into topics of neighbouring ranks. A
row has one topic, and its labels are a run of neighbours in the topic, treated as a ring. Some of
its features are drawn from those that mark one of its labels, some from those that mark its topic,
the others from a power law over all features.

Everything follows from raw Philox words by integer arithmetic and the operations that IEEE 754
rounds in one way (+, -, *, /, sqrt), so that a row has the same bits on every machine, whichever
process makes it and whichever rows are made with it. The power laws follow from this, too: with the
exponent 3/4 the inverse of the distribution needs a fourth power, and its edges two square roots.

The worker processes of `prepare synthetic` import only this file.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ist_hpc.common.random_streams import permutation, words
from ist_hpc.data.csr import Csr, concatenate

_ROWS_A_STREAM = 1024  # rows that share a stream of random words; part of what the rows are
_SHARE_UNIT = 256  # unit of the slots' shares: eight bits of a word
_PICK_BITS = 12
_NOISE_SHIFT = 10.0  # ranks; flattens the head of the noise, as stop words are left out
_IDF_LEAST, _IDF_RANGE = 1.0, 3.0  # about that of tf-idf with natural logarithms


@dataclass(frozen=True)
class Recipe:
    """The properties of a synthetic data set; with a seed they determine every row.

    rows             (train, test)
    features, labels their numbers
    row_labels       sizes of the label sets, repeated in a cycle; their mean is the mean of the
                     data set
    row_slots        (least, most) features drawn for a row, uniformly; the same one may be drawn
                     several times, so a row has fewer
    topic_labels     approximate number of labels per topic
    head_shift       label frequencies are in proportion to (rank + head_shift) ** -0.75
    label_share      of 256 drawn features, how many mark a label of the row; ...
    topic_share      ... how many its topic; the others are noise
    label_features   features that mark a label
    topic_features   features that mark a topic
    tf_idf           values like tf-idf in rows of Euclidean length one; else all values are one
    """

    rows: tuple[int, int]
    features: int
    labels: int
    row_labels: tuple[int, ...]
    row_slots: tuple[int, int]
    topic_labels: int
    head_shift: float
    label_share: int
    topic_share: int
    label_features: int
    topic_features: int
    tf_idf: bool

    @property
    def topics(self) -> int:
        """The number of topics; their sizes differ by one label at most."""
        return max(1, round(self.labels / self.topic_labels))


def make_rows(recipe: Recipe, seed: int, split: str, start: int, stop: int) -> tuple[Csr, Csr]:
    """The rows `start` to `stop` of "train" or "test": (features with values, label sets).

    Every row has at least one feature and one label. A row does not depend on the rows made with
    it.
    """
    parts = []
    for unit in range(start // _ROWS_A_STREAM, -(-stop // _ROWS_A_STREAM)):
        begin = unit * _ROWS_A_STREAM
        first, last = max(start, begin), min(stop, begin + _ROWS_A_STREAM)
        made = _unit_rows(recipe, seed, split, unit, last - begin)
        parts.append(tuple(rows.part(first - begin, last - begin) for rows in made))
    return concatenate([part[0] for part in parts]), concatenate([part[1] for part in parts])


def _unit_rows(recipe: Recipe, seed: int, split: str, unit: int, rows: int) -> tuple[Csr, Csr]:
    """The first `rows` rows that share the stream `unit`."""
    tables = _tables(recipe, seed)
    most_slots = recipe.row_slots[1]
    raw = words(f"synthetic {split} rows", seed, unit, rows * (most_slots + 1))
    high, low = _halves(raw.reshape(rows, most_slots + 1))
    begin = unit * _ROWS_A_STREAM
    positions = _positions(recipe, seed, split)[begin : begin + rows]
    topics, ranks, sizes = _draw_labels(recipe, split, positions, high[:, 0])
    label_sets = tables.label_of_rank[ranks]
    label_sets[np.arange(ranks.shape[1]) >= sizes[:, np.newaxis]] = recipe.labels
    slots = _draw_features(recipe, tables, topics, ranks, sizes, high[:, 1:], low[:, 1:])
    least = recipe.row_slots[0]
    used = least + _below(low[:, 0], most_slots - least + 1)
    slots[np.arange(most_slots) >= used[:, np.newaxis]] = recipe.features
    features, repeats = _distinct(slots, recipe.features)
    values = _values(recipe, tables, features, repeats)
    labels, _ = _distinct(label_sets, recipe.labels)
    return Csr(features.indptr, features.indices, values, recipe.features), labels


def _draw_labels(
    recipe: Recipe, split: str, positions: npt.NDArray[np.int64], random: npt.NDArray[np.uint64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The topic of each row [n], the ranks of its labels [n, most], and how many count [n].

    A row's position among all rows, in order of topic, determines its topic. Train rows of a topic
    follow one another round its ring, so that as few labels as possible have no train row; test
    rows begin anywhere, so that their label sets differ from those of train rows.
    """
    edges = _topic_edges(recipe, split)
    topics = np.searchsorted(edges, positions, side="right") - 1
    starts = topics * recipe.labels // recipe.topics
    ring = (topics + 1) * recipe.labels // recipe.topics - starts
    cycle = np.array(recipe.row_labels, dtype=np.int64)
    before = np.cumsum([0, *recipe.row_labels[:-1]])

    def labels_before(position: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return position // len(cycle) * cycle.sum() + before[position % len(cycle)]

    if split == "train":
        begin = (labels_before(positions) - labels_before(edges[topics])) % ring
    else:
        begin = _below(random, ring)
    sizes = np.minimum(cycle[positions % len(cycle)], ring)
    steps = np.arange(min(cycle.max(), ring.max()))
    ranks = starts[:, np.newaxis] + (begin[:, np.newaxis] + steps) % ring[:, np.newaxis]
    return topics, ranks, sizes


def _draw_features(
    recipe: Recipe,
    tables: "_Tables",
    topics: npt.NDArray[np.int64],
    ranks: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    high: npt.NDArray[np.uint64],
    low: npt.NDArray[np.uint64],
) -> npt.NDArray[np.int32]:
    """A feature for each slot; int32 [n, slots], one random word per slot."""
    kind = low % np.uint64(_SHARE_UNIT)
    pick = (low >> np.uint64(8)) & np.uint64(2**_PICK_BITS - 1)
    label = _below(pick, sizes[:, np.newaxis], _PICK_BITS)
    mark = _below(low >> np.uint64(8 + _PICK_BITS), recipe.label_features, _PICK_BITS)
    of_label = tables.label_features[np.take_along_axis(ranks, label, axis=1), mark]
    of_topic = tables.topic_features[topics[:, np.newaxis], _below(high, recipe.topic_features)]
    noise = tables.feature_of_rank[_power_law_ranks(high, recipe.features)]
    shared = np.where(kind < recipe.label_share + recipe.topic_share, of_topic, noise)
    return np.where(kind < recipe.label_share, of_label, shared)


def _distinct(entries: npt.NDArray[np.int32], columns: int) -> tuple[Csr, npt.NDArray[np.int64]]:
    """The different entries below `columns` of each row, as CSR, and how often each occurs.

    `entries` is [rows, most]; the value `columns` fills up a row. Sorts it in place.
    """
    rows, most = entries.shape
    entries.sort(axis=1)
    is_first = np.ones(entries.shape, dtype=bool)
    np.not_equal(entries[:, 1:], entries[:, :-1], out=is_first[:, 1:])
    flat = entries.reshape(-1)
    firsts = np.flatnonzero(is_first)
    repeats = np.diff(firsts, append=flat.size)
    kept = flat[firsts] < columns
    firsts, repeats = firsts[kept], repeats[kept]
    indptr = np.zeros(rows + 1, dtype=np.int64)
    np.cumsum(np.bincount(firsts // most, minlength=rows), out=indptr[1:])
    return Csr(indptr, flat[firsts], None, columns), repeats


def _values(
    recipe: Recipe, tables: "_Tables", features: Csr, repeats: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    if not recipe.tf_idf:
        return np.ones(features.entries, dtype=np.float32)
    values = np.sqrt(repeats.astype(np.float64)) * tables.idf[features.indices]
    row_of_entry = np.repeat(np.arange(len(features)), np.diff(features.indptr))
    # bincount adds one after the other; a sum by pairs would depend on the row's place in memory.
    squares = np.bincount(row_of_entry, weights=values * values, minlength=len(features))
    return (values / np.sqrt(squares)[row_of_entry]).astype(np.float32)


@dataclass(frozen=True)
class _Tables:
    """Tables that all rows share: about 64 bytes per label and 12 per feature.

    label_of_rank    int32 [labels]
    feature_of_rank  int32 [features]
    idf              float64 [features], by feature: frequent ones weigh less
    label_features   int32 [labels, label_features], by rank
    topic_features   int32 [topics, topic_features]
    """

    label_of_rank: npt.NDArray[np.int32]
    feature_of_rank: npt.NDArray[np.int32]
    idf: npt.NDArray[np.float64]
    label_features: npt.NDArray[np.int32]
    topic_features: npt.NDArray[np.int32]


@lru_cache(maxsize=1)
def _tables(recipe: Recipe, seed: int) -> _Tables:
    # Neighbouring numbers must not have similar frequencies: ranks hold ranges of labels.
    label_of_rank = permutation("synthetic labels", seed, 0, recipe.labels)
    feature_of_rank = permutation("synthetic features", seed, 0, recipe.features)
    rarity = np.sqrt(np.sqrt(np.arange(recipe.features) / recipe.features))
    idf = np.empty(recipe.features)
    idf[feature_of_rank] = _IDF_LEAST + _IDF_RANGE * rarity
    return _Tables(
        label_of_rank.astype(np.int32),
        feature_of_rank.astype(np.int32),
        idf,
        _marks("label", seed, recipe.labels, recipe.label_features, recipe.features),
        _marks("topic", seed, recipe.topics, recipe.topic_features, recipe.features),
    )


def _marks(what: str, seed: int, count: int, each: int, features: int) -> npt.NDArray[np.int32]:
    """The features that mark each of `count` labels or topics; int32 [count, each]."""
    raw = words(f"synthetic {what} features", seed, 0, count * each)
    return _below(raw >> np.uint64(32), features).astype(np.int32).reshape(count, each)


@lru_cache(maxsize=2)
def _positions(recipe: Recipe, seed: int, split: str) -> npt.NDArray[np.int64]:
    """The position of each row of the split in the order of topics."""
    return permutation(f"synthetic {split} positions", seed, 0, _rows(recipe, split))


@lru_cache(maxsize=2)
def _topic_edges(recipe: Recipe, split: str) -> npt.NDArray[np.int64]:
    """Where each topic begins among the rows in the order of topics; int64 [topics + 1]."""
    first_ranks = np.arange(recipe.topics + 1) * recipe.labels // recipe.topics
    roots = np.sqrt(np.sqrt(first_ranks + recipe.head_shift))
    share = (roots - roots[0]) / (roots[-1] - roots[0])
    return np.rint(share * _rows(recipe, split)).astype(np.int64)


def _rows(recipe: Recipe, split: str) -> int:
    return recipe.rows[0] if split == "train" else recipe.rows[1]


def _power_law_ranks(random: npt.NDArray[np.uint64], count: int) -> npt.NDArray[np.int64]:
    """Ranks below `count` in proportion to (rank + shift) ** -0.75, from 32 random bits each."""
    low, high = np.sqrt(np.sqrt(np.array([_NOISE_SHIFT, count + _NOISE_SHIFT])))
    root = low + (random.astype(np.float64) + 0.5) * 2.0**-32 * (high - low)
    square = root * root
    ranks = (square * square - _NOISE_SHIFT).astype(np.int64)
    return np.clip(ranks, 0, count - 1)


def _halves(
    raw: npt.NDArray[np.uint64],
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """The upper and the lower 32 bits of each word, as uint64."""
    return raw >> np.uint64(32), raw & np.uint64(2**32 - 1)


def _below(
    random: npt.NDArray[np.uint64], limit: int | npt.NDArray[np.int64], bits: int = 32
) -> npt.NDArray[np.int64]:
    """Numbers 0 to limit - 1 from `bits` random bits each."""
    scaled: npt.NDArray[Any] = random * np.asarray(limit).astype(np.uint64)
    return (scaled >> np.uint64(bits)).astype(np.int64)

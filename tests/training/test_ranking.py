"""Ranked labels and their metrics, against the published formulas one row at a time, scikit-learn,
and the numbers that napkinXC gives."""

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from ist_hpc.common.errors import InputError
from ist_hpc.data.csr import Csr
from ist_hpc.data.sparse_rows import SparseRows
from ist_hpc.models.perceptrons.many_labels import ranked_bytes
from ist_hpc.training.evaluation import ranking
from ist_hpc.training.evaluation.ranking import (
    RankingMetrics,
    TopLabels,
    inverse_propensities,
    merge_top,
)
from tests.helpers.live_bytes import LiveBytes

INF, NAN = math.inf, math.nan

SETS = [[0, 3, 7], [2], [], [1, 4, 5, 6, 8, 9], [3, 9], [0, 1], [7], [2, 3, 4, 5]]
RANKED = [
    [3, 1, 0, 9, 7],
    [5, 2, 8, 0, 1],
    [0, 1, 2, 3, 4],
    [9, 8, 0, 1, 5],
    [4, 9, 2, -1, -1],
    [1, 0, -1, -1, -1],
    [-1, -1, -1, -1, -1],
    [5, 4, 3, 0, 2],
]
COUNTS, TRAIN_ROWS = [40, 31, 0, 12, 9, 1, 5, 3, 2, 1], 60

NAPKINXC = {
    "precision": [0.5, 0.5625, 0.4583333333333333, 0.375, 0.375],
    "ndcg": [0.5, 0.5788662191964322, 0.5608826608535944, 0.5447978860716207, 0.5895693027121708],
    "psp": [
        0.46954198579710377,
        0.7126145888437991,
        0.6798608709435485,
        0.6465335373403686,
        0.8337149928253808,
    ],
    "psndcg": [
        0.46954198579710377,
        0.611139127507139,
        0.5859798541198561,
        0.5658539563764767,
        0.634067804939861,
    ],
}
"""Of the case above by napkinXC 0.7.2, k = 1 to 5, with the labels -1 left out of the rankings: its
`precision_at_k`, `ndcg_at_k`, `psprecision_at_k` and `psndcg_at_k`, whose inverse propensities are
of its `Jain_et_al_inverse_propensity`, A = 0.6 and B = 2.6, for a matrix of 60 rows with the counts
as column sums."""


def label_sets(sets, width) -> SparseRows:
    indptr = np.cumsum([0, *map(len, sets)]).astype(np.int64)
    indices = np.array([label for own in sets for label in sorted(own)], dtype=np.int32)
    return SparseRows.of(Csr(indptr, indices, None, width))


def by_the_formulas(ranked, sets, k, inverse) -> dict[str, float]:
    """Each metric from its definition, in Python's floats, a row at a time."""
    precision = ndcg = ps = ps_best = psn = psn_best = 0.0
    for row, own in zip(ranked, sets, strict=True):
        places = list(enumerate(row[:k], start=1))
        hits = [(place, label) for place, label in places if label in own]
        precision += len(hits) / k
        best = list(enumerate(sorted((inverse[label] for label in own), reverse=True)[:k], start=1))
        ps += sum(inverse[label] for _, label in hits)
        ps_best += sum(value for _, value in best)
        if own:
            ideal = sum(1 / math.log2(place + 1) for place in range(1, min(k, len(own)) + 1))
            ndcg += sum(1 / math.log2(place + 1) for place, _ in hits) / ideal
            psn += sum(inverse[label] / math.log2(place + 1) for place, label in hits) / ideal
            psn_best += sum(value / math.log2(place + 1) for place, value in best) / ideal
    return {
        f"precision_at_{k}": precision / len(sets),
        f"ndcg_at_{k}": ndcg / len(sets),
        f"psp_at_{k}": ps / ps_best if ps_best else 0.0,
        f"psndcg_at_{k}": psn / psn_best if psn_best else 0.0,
    }


def in_order(row) -> list[int]:
    """Ids of a row of logits by Python's sort: larger first, NaN the largest, then by id."""

    def place(index):
        value = row[index]
        return (0, 0.0, index) if math.isnan(value) else (1, -value, index)

    return sorted(range(len(row)), key=place)


@st.composite
def cases(draw):
    """(ranked, sets, width, most) with rows of any number of labels, ranked and true."""
    width, most = draw(st.integers(1, 12)), draw(st.integers(1, 7))
    labels = st.integers(0, width - 1)
    sets = draw(st.lists(st.sets(labels), min_size=1, max_size=9))
    ranked = []
    for _ in sets:
        row = draw(st.lists(labels, unique=True, max_size=most))
        ranked.append(row + [-1] * (most - len(row)))
    return ranked, sets, width, most


@settings(max_examples=150, deadline=None)
@given(cases(), st.data())
def test_metrics_are_those_of_the_formulas(case, data):
    ranked, sets, width, most = case
    numbers = st.floats(1, 50)
    inverse = data.draw(st.lists(numbers, min_size=width, max_size=width))
    cut = data.draw(st.integers(0, len(sets)))
    top = data.draw(st.permutations(range(1, most + 1)))
    metrics = RankingMetrics(top, np.array(inverse))
    for part in (slice(None, cut), slice(cut, None)):
        batch = torch.tensor(ranked[part], dtype=torch.int64).view(-1, most)
        metrics.add(batch, label_sets(sets[part], width))
    expected: dict[str, float] = {}
    for k in top:
        expected |= by_the_formulas(ranked, sets, k, inverse)
    assert metrics.rows == len(sets)
    assert metrics.result() == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_metrics_are_those_of_napkinxc():
    inverse = inverse_propensities(np.array(COUNTS), TRAIN_ROWS, 0.6, 2.6)
    metrics = RankingMetrics([1, 2, 3, 4, 5], inverse)
    metrics.add(torch.tensor(RANKED), label_sets(SETS, 10))
    expected = {
        f"{name}_at_{k}": value
        for name, values in NAPKINXC.items()
        for k, value in enumerate(values, start=1)
    }
    assert metrics.result() == pytest.approx(expected, rel=1e-12)


def test_ndcg_is_that_of_scikit_learn():
    """Rows without labels count as 0 there too; rankings are those of `TopLabels`."""
    rng = np.random.default_rng(3)
    scores = rng.permutation(40 * 30).reshape(40, 30).astype(np.float32)
    has = rng.random((40, 30)) < rng.choice([0.0, 0.03, 0.2], (40, 1))
    assert 0 < np.count_nonzero(has.sum(axis=1) == 0) < 40
    best = TopLabels(40, 5)
    best.add(torch.from_numpy(scores), 0)
    metrics = RankingMetrics([1, 3, 5])
    metrics.add(best.result()[1], label_sets([np.flatnonzero(row) for row in has], 30))
    result = metrics.result()
    for k in (1, 3, 5):
        assert result[f"ndcg_at_{k}"] == pytest.approx(ndcg_score(has, scores, k=k), rel=1e-12)


@pytest.mark.parametrize("width", [2048, 4096])
def test_finding_the_best_takes_the_memory_that_is_said(width):
    """The logits of a block among it. Of narrower blocks than the usual it takes more of them."""
    rows, labels = 200, 10_000
    with LiveBytes() as live:
        best = TopLabels(rows, 5)
        for start in range(0, labels, width):
            best.add(torch.rand(rows, min(width, labels - start)), start)
    said = ranked_bytes(rows, labels, width)
    assert 0.4 * said < live.most < 1.1 * said


def test_the_main_metric_is_the_first():
    metrics = RankingMetrics([3, 1])
    assert metrics.main == "precision_at_3"
    metrics.add(torch.tensor([[4, 0, 2, 1]]), label_sets([[0, 1, 4]], 5))
    result = metrics.result()
    assert list(result) == ["precision_at_3", "precision_at_1", "ndcg_at_3", "ndcg_at_1"]
    assert result[metrics.main] == pytest.approx(2 / 3)


def test_no_labels_at_all_give_zero():
    metrics = RankingMetrics([1, 2], np.full(4, 2.0))
    metrics.add(torch.tensor([[0, 1], [-1, -1]]), label_sets([[], []], 4))
    assert set(metrics.result().values()) == {0.0}


def test_large_ids_of_many_labels_do_not_run_over():
    """A key of row and label needs 64 bits."""
    width, rows = 2**31 - 1, 5
    metrics = RankingMetrics([1])
    metrics.add(
        torch.full((rows, 1), width - 1), label_sets([[width - 1]] * (rows - 1) + [[0]], width)
    )
    assert metrics.result()["precision_at_1"] == (rows - 1) / rows


@given(
    st.lists(st.integers(0, 400), min_size=1, max_size=20),
    st.integers(3, 400),
    st.floats(0, 2),
    st.floats(0.01, 5),
)
def test_propensities_are_those_of_jain_et_al(counts, train_rows, a, b):
    counts = [min(count, train_rows) for count in counts]
    inverse = inverse_propensities(np.array(counts), train_rows, a, b)
    scale = (math.log(train_rows) - 1) * (b + 1) ** a
    expected = [1 / (1 / (1 + scale * math.exp(-a * math.log(count + b)))) for count in counts]
    assert inverse.dtype == np.float64
    assert inverse.tolist() == pytest.approx(expected, rel=1e-9)
    assert inverse.min() >= 1


def test_a_label_that_no_row_has_needs_b():
    counts = np.array([3, 0, 2])
    with pytest.raises(InputError, match=r"label 1,.*evaluate\.propensity"):
        inverse_propensities(counts, 5, 0.5, 0.0)
    assert np.isfinite(inverse_propensities(counts, 5, 0.0, 0.0)).all()
    assert np.isfinite(inverse_propensities(counts + 1, 5, 0.5, 0.0)).all()


def test_two_train_rows_are_too_few():
    with pytest.raises(InputError, match="at least 3 train rows, the data set has 2"):
        inverse_propensities(np.array([1]), 2, 0.55, 1.5)


FEW_VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.5, -2.0, INF, -INF, NAN])
ANY_FLOAT = st.floats(width=32)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_best_are_the_same_whatever_the_blocks_and_ranks(data):
    rows, width = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 40))
    k, ranks = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 5))
    kind = data.draw(st.sampled_from([FEW_VALUES, ANY_FLOAT]))
    row = st.lists(kind, min_size=width, max_size=width)
    logits = torch.tensor(data.draw(st.lists(row, min_size=rows, max_size=rows)))
    # Blocks of any widths; ranks take them in any order.
    starts = [0, *sorted(data.draw(st.sets(st.integers(1, width))) - {width})]
    blocks = list(zip(starts, [*starts[1:], width], strict=True))
    of_rank = [TopLabels(rows, k) for _ in range(ranks)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "_GROUP", data.draw(st.sampled_from([1, 2, 3, 64])))
        for start, stop in data.draw(st.permutations(blocks)):
            rank = data.draw(st.integers(0, ranks - 1))
            of_rank[rank].add(logits[:, start:stop], start)
    parts = [best.result() for best in of_rank]
    values, ids = merge_top(
        torch.cat([value for value, _ in parts], dim=1),
        torch.cat([index for _, index in parts], dim=1),
        k,
    )
    check_best(values, ids, logits, k)


def check_best(values, ids, logits, k, first_id=0):
    assert (values.dtype, ids.dtype) == (torch.float32, torch.int64)
    for row, value, index in zip(logits.tolist(), values.tolist(), ids.tolist(), strict=True):
        expected = in_order(row)[:k]
        missing = k - len(expected)
        assert index == [first_id + i for i in expected] + [-1] * missing
        known = [row[i] for i in expected] + [-INF] * missing
        np.testing.assert_array_equal(value, known)  # for which NaN equals NaN, and 0.0 -0.0


def top_of_block(logits, first_id, k):
    top = TopLabels(len(logits), k)
    top.add(logits, first_id)
    return top.result()


@functools.cache
def wide(kind: str, width: int) -> torch.Tensor:
    """Five rows of logits, many of which are equal."""
    generator = torch.Generator().manual_seed(width)
    if kind == "floats":
        return torch.randn(5, width, generator=generator)
    if kind == "zeros":
        return torch.zeros(5, width)
    few = torch.randint(0, 3, (5, width), generator=generator).float()
    few[few == 2] = torch.randint(0, 40, (5, width), generator=generator).float()[few == 2]
    if kind == "nan":
        few[torch.rand(5, width, generator=generator) < 0.01] = NAN
    return few


@pytest.mark.parametrize("k", [1, 5, 9])
@pytest.mark.parametrize("width", [63, 64, 65, 321, 640, 1999])
@pytest.mark.parametrize("kind", ["floats", "zeros", "few", "nan"])
def test_the_best_of_wide_blocks(kind, width, k):
    """Wide enough that only some groups of columns are looked into."""
    logits = wide(kind, width)
    check_best(*top_of_block(logits, 700, k), logits, k, 700)


def test_a_block_may_be_a_part_of_a_larger_tensor():
    logits = wide("few", 1999)
    part = logits[:, 100:1300]
    check_best(*top_of_block(part, 100, 5), part, 5, 100)
    check_best(*top_of_block(logits.T.contiguous().T, 0, 5), logits, 5)


def test_no_rows_and_no_labels():
    values, ids = top_of_block(torch.empty(0, 700), 0, 3)
    assert values.shape == ids.shape == (0, 3)
    values, ids = top_of_block(torch.empty(2, 0), 0, 3)
    assert values.tolist() == [[-INF] * 3] * 2
    assert ids.tolist() == [[-1] * 3] * 2


def test_ids_to_the_last():
    """Of all that an int32 index allows."""
    last = 2**31 - 2
    values, ids = top_of_block(torch.tensor([[-INF, -INF, 2.0]]), last - 2, 4)
    assert ids.tolist() == [[last, last - 2, last - 1, -1]]
    assert values.tolist() == [[2.0, -INF, -INF, -INF]]

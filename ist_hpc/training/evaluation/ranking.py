"""Ranked labels: the best k of very many, and the metrics of extreme classification.

The order of labels is total: larger logits first, and of equal ones the label with the smaller id.
So the best k of a row do not depend on the blocks and the number of ranks.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ist_hpc.common.errors import InputError
from ist_hpc.data.sparse_rows import SparseRows

FEWEST_TRAIN_ROWS = 3
"""With fewer, ln N - 1 is negative, and a propensity would not be a probability."""

_GROUP = 64  # columns that share one maximum; about the square root of a block's width
_LOW = 2**31 - 1  # the bits of the id in a key; also the largest int32


def inverse_propensities(
    label_counts: npt.NDArray[np.int64], train_rows: int, a: float, b: float
) -> npt.NDArray[np.float64]:
    """1 / p_l of every label, float64 [labels], at least 1.

    label_counts  int64 [labels]: N_l, in how many train rows each label occurs
    train_rows    N

    p_l = 1 / (1 + C exp(-A ln(N_l + B))) with C = (ln N - 1) (B + 1)^A: Jain et al., Extreme
    multi-label loss functions for recommendation, tagging, ranking & other missing label
    applications, KDD 2016. The Extreme Classification Repository takes A, B = 0.6, 2.6 for its
    Amazon sets, 0.5, 0.4 for its Wikipedia sets, and 0.55, 1.5 for others.

    Raises `InputError` if there are fewer than 3 rows, or B is 0 and some label has no train row.
    """
    if train_rows < FEWEST_TRAIN_ROWS:
        raise InputError(
            f"propensities need at least {FEWEST_TRAIN_ROWS} train rows, the data set has "
            f"{train_rows}"
        )
    if b == 0 and a > 0 and not label_counts.all():
        missing = int(np.flatnonzero(label_counts == 0)[0])
        raise InputError(
            f"the propensity of label {missing}, which no train row has, is 0 where B is 0; B, the "
            "second value of `evaluate.propensity`, must be above 0"
        )
    scale = (np.log(train_rows) - 1) * (b + 1) ** a
    return 1 + scale * (label_counts.astype(np.float64) + b) ** -a


class RankingMetrics:
    """P@k, nDCG@k and the propensity-scored ones, added up over batches in float64.

    The definitions are those by which the Extreme Classification Repository reports results
    (Bhatia et al. 2016), as its scripts compute them (pyxclib's `xc_metrics`; napkinXC's `metrics`
    agree). Let r_1, r_2, ... be the labels of a row as ranked, Y its true ones, q the inverse
    propensities, d_i = 1 / log2(i + 1), and I_k = d_1 + ... + d_min(k, |Y|).

    precision_at_k  mean over rows of (sum over i <= k of [r_i in Y]) / k
    ndcg_at_k       mean over rows of (sum over i <= k of [r_i in Y] d_i) / I_k
    psp_at_k        sum over rows of (sum over i <= k of [r_i in Y] q(r_i)), divided by the same sum
                    for the best possible ranking: the labels of Y by falling q. It divides
                    two sums, and is not a mean of fractions.
    psndcg_at_k     likewise, with q(r_i) d_i / I_k in place of q(r_i)

    All rows count; rows without labels count as 0. P@k divides by k even for fewer labels.
    These are the definitions of the repository's evaluation scripts, by which figures are reported.

    top                 the values of k; the first is in the name of the `main` metric
    inverse_propensity  float64 [labels]; None: no propensity-scored metrics
    """

    def __init__(
        self, top: Sequence[int], inverse_propensity: npt.NDArray[np.float64] | None = None
    ) -> None:
        self.top = tuple(top)
        self.main = f"precision_at_{self.top[0]}"
        self.rows = 0
        self._inverse = inverse_propensity
        self._most = max(self.top)
        self._discounts = 1 / np.log2(np.arange(2, self._most + 2))
        # A row without labels has no gains, so any divisor but zero will do.
        self._ideal = np.concatenate([[1.0], np.cumsum(self._discounts)])
        sums = ["hits", "ndcg", "ps", "ps_best", "psndcg", "psndcg_best"]
        self._sums = {name: np.zeros(self._most) for name in sums}

    def add(self, predicted: Tensor, labels: SparseRows) -> None:
        """Add a batch.

        predicted  int64 [rows, at least max(top)]: ids of labels, the best first, no id twice in a
                   row; -1 after the last label
        labels     one set of labels per row
        """
        ranked = predicted[:, : self._most].cpu().numpy()
        counts = labels.counts.cpu().numpy()
        columns, row_of_entry = labels.columns.cpu().numpy(), labels.row_of_entry.cpu().numpy()
        assert ranked.shape == (len(labels), self._most), "a ranking too short, or of other rows"
        self.rows += len(labels)
        hits = _is_among(ranked, columns, row_of_entry, labels.width)
        places = np.arange(1, self._most + 1)
        ideal = self._ideal[np.minimum(counts[:, np.newaxis], places)]
        self._sums["hits"] += np.cumsum(hits, axis=1).sum(axis=0)
        self._sums["ndcg"] += self._ndcg(hits, ideal)
        if self._inverse is None:
            return
        assert len(self._inverse) == labels.width, "propensities of other labels"
        gains = np.where(hits, self._inverse[ranked], 0.0)
        best = _largest(self._inverse[columns], row_of_entry, counts, self._most)
        for name, values in (("", gains), ("_best", best)):
            self._sums[f"ps{name}"] += np.cumsum(values, axis=1).sum(axis=0)
            self._sums[f"psndcg{name}"] += self._ndcg(values, ideal)

    def result(self) -> dict[str, float]:
        """The metrics as fractions of 1, by `top`: `precision_at_1` ...; needs at least one row.

        Propensity-scored ones are 0 if no row has a label.
        """
        assert self.rows, "no rows were added"
        sums = self._sums
        columns = {
            "precision": sums["hits"] / np.arange(1, self._most + 1) / self.rows,
            "ndcg": sums["ndcg"] / self.rows,
        }
        if self._inverse is not None:
            for name, key in (("psp", "ps"), ("psndcg", "psndcg")):
                best = sums[f"{key}_best"]
                columns[name] = np.divide(sums[key], best, out=np.zeros_like(best), where=best > 0)
        return {
            f"{name}_at_{k}": float(values[k - 1])
            for name, values in columns.items()
            for k in self.top
        }

    def _ndcg(
        self, gains: npt.NDArray[np.float64] | npt.NDArray[np.bool_], ideal: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        """At every place the sum over rows of discounted gains, each divided by its ideal."""
        discounted: npt.NDArray[np.float64] = np.cumsum(gains * self._discounts, axis=1)
        return (discounted / ideal).sum(axis=0)


def _is_among(
    ranked: npt.NDArray[np.int64],
    columns: npt.NDArray[np.int64],
    row_of_entry: npt.NDArray[np.int64],
    width: int,
) -> npt.NDArray[np.bool_]:
    """Whether its row has each ranked label; entries in the order of rows and columns."""
    own = row_of_entry * width + columns
    wanted = np.arange(len(ranked))[:, np.newaxis] * width + ranked
    found = np.append(own, -1)[np.searchsorted(own, wanted)]
    return (found == wanted) & (ranked >= 0)


def _largest(
    values: npt.NDArray[np.float64],
    row_of_entry: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    most: int,
) -> npt.NDArray[np.float64]:
    """The `most` largest values of each row, falling; [rows, most], 0 if there are fewer."""
    order = np.lexsort((-values, row_of_entry))
    place = np.arange(len(values)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = place < most
    largest = np.zeros((len(counts), most))
    largest[row_of_entry[kept], place[kept]] = values[order][kept]
    return largest


class TopLabels:
    """The best k labels of each row, from blocks of logits that are added one after the other.

    The order of blocks does not matter. It keeps k keys of 8 bytes per row.
    """

    def __init__(self, rows: int, k: int, device: torch.device | None = None) -> None:
        self._k = k
        values = torch.full((rows, k), -torch.inf, device=device)
        ids = torch.full((rows, k), -1, dtype=torch.int64, device=device)
        self._keys = _keys_of(values, ids)

    def add(self, logits: Tensor, first_id: int) -> None:
        """Add the logits float32 [rows, width] of the labels from `first_id` on."""
        block = _best_keys(logits, first_id, self._k)
        self._keys = _best(torch.cat([self._keys, block], dim=1), self._k)

    def result(self) -> tuple[Tensor, Tensor]:
        """Values float32 and ids int64 [rows, k], the best first; -inf and -1 where there are none.

        `merge_top` accepts several results side by side.
        """
        return _values_and_ids(self._keys)


def merge_top(values: Tensor, ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The best k of the results of several parts: float32 and int64 [rows, k], the best first.

    values  float32 [rows, parts x k], in any order; NaN counts as the largest, as in `torch.topk`
    ids     int64 [rows, parts x k], below 2^31 - 1; -1, with the value -inf, for no label
    """
    return _values_and_ids(_best(_keys_of(values, ids), k))


def _best_keys(logits: Tensor, first_id: int, k: int) -> Tensor:
    """Keys of the best k of a block, int64 [rows, k], the largest first.

    It searches only the k groups of columns with the best maxima, and the columns left over. That
    is exact: each of these groups has a better label than any in the other groups. It also holds
    for equal logits, since groups are in the order of ids, as labels are.
    """
    rows, width = logits.shape
    columns = torch.arange(width, device=logits.device)
    groups = width // _GROUP
    if groups > k:
        grouped = groups * _GROUP
        maxima = logits[:, :grouped].unflatten(1, (groups, _GROUP)).amax(dim=2)
        _, chosen = _values_and_ids(_best(_keys_of(maxima, columns[:groups]), k))
        inside = (chosen.unsqueeze(2) * _GROUP + columns[:_GROUP]).flatten(1)
        columns = torch.cat([inside, columns[grouped:].expand(rows, -1)], dim=1)
        logits = logits.gather(1, columns)
    return _best(_keys_of(logits, columns + first_id), k)


def _best(keys: Tensor, k: int) -> Tensor:
    """The k largest keys of each row, falling, with keys of no label where there are fewer."""
    missing = k - keys.shape[1]
    if missing > 0:
        values = torch.full((len(keys), missing), -torch.inf, device=keys.device)
        keys = torch.cat([keys, _keys_of(values, torch.full_like(values, -1).long())], dim=1)
    return keys.topk(k, dim=1).values


def _keys_of(values: Tensor, ids: Tensor) -> Tensor:
    """Integers in the order of the labels, so that `topk` is exact although it takes any of equals.

    The upper half has the float's bits, inverted for negative numbers, so that integers are in the
    order of the floats; the lower half falls with the id and is 0 for no label.
    """
    bits = (values + 0.0).view(torch.int32)  # -0.0 equals 0.0, but its bits do not
    bits ^= (bits >> 31).bitwise_and_(_LOW)
    bits.masked_fill_(values.isnan(), _LOW)
    falling = (_LOW - ids).bitwise_and_(_LOW)
    return bits.long().mul_(2**32).add_(falling)


def _values_and_ids(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `_keys_of`."""
    ordered, falling = (keys >> 32).int(), keys & _LOW
    values = (ordered ^ ((ordered >> 31) & _LOW)).view(torch.float32)
    return values, (_LOW - falling).masked_fill(falling == 0, -1)

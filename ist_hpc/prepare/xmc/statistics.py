"""Statistics of a data set of many labels: how often they occur, what rows contain."""

from typing import Any

import numpy as np

from ist_hpc.data.csr import Csr

_HEAD_SHARES = (0.01, 0.1)  # of the labels, the most frequent ones


class SplitStatistics:
    """Counts over the rows of a split; 8 bytes per label."""

    def __init__(self, labels: int) -> None:
        self.counts = np.zeros(labels, dtype=np.int64)
        self.rows = self.without_labels = self.without_features = self.features = 0

    def add(self, features: Csr, labels: Csr) -> None:
        """Count some rows."""
        self.rows += len(features)
        self.features += features.entries
        self.without_features += int((np.diff(features.indptr) == 0).sum())
        self.without_labels += int((np.diff(labels.indptr) == 0).sum())
        np.add.at(self.counts, labels.indices, 1)

    def summary(self) -> dict[str, Any]:
        """For JSON: rows, rows without labels or features, means per row, rows per label.

        `rows_a_label` has the least, the median and the greatest count over all labels, also those
        that never occur; `head_share` has the part of all label occurrences that belongs to the
        most frequent hundredth and tenth of the labels (at least one label).
        """
        ascending = np.sort(self.counts)
        total = int(ascending.sum())
        labels = len(ascending)
        heads = {}
        for share in _HEAD_SHARES:
            head = int(ascending[labels - max(1, round(share * labels)) :].sum())
            heads[f"{share:.0%}"] = round(head / total, 4) if total else 0.0
        return {
            "rows": self.rows,
            "rows_without_labels": self.without_labels,
            "rows_without_features": self.without_features,
            "mean_labels_a_row": round(total / max(1, self.rows), 4),
            "mean_features_a_row": round(self.features / max(1, self.rows), 4),
            "labels_never_seen": int((ascending == 0).sum()),
            "rows_a_label": {
                "min": int(ascending[0]),
                "median": float(np.median(ascending)),
                "max": int(ascending[-1]),
            },
            "head_share": heads,
        }


def summary_of(train: SplitStatistics, test: SplitStatistics) -> dict[str, Any]:
    """Both splits, and the test labels that occur in no train row."""
    return {
        "train": train.summary(),
        "test": test.summary(),
        "test_labels_unseen_in_train": int(((train.counts == 0) & (test.counts > 0)).sum()),
    }


def table_of(summary: dict[str, Any]) -> str:
    """A summary as lines of text: a column for each split."""
    lines: list[tuple[str, ...]] = [("", "train", "test")]
    splits = [summary["train"], summary["test"]]
    for key, first in splits[0].items():
        if isinstance(first, dict):
            for inner in first:
                cells = [_cell(split[key][inner]) for split in splits]
                lines.append((f"{key.replace('_', ' ')}: {inner}", *cells))
        else:
            lines.append((key.replace("_", " "), *(_cell(split[key]) for split in splits)))
    unseen = _cell(summary["test_labels_unseen_in_train"])
    lines.append(("labels of test rows unseen in train", "", unseen))
    return "\n".join(f"{name:<36}{train:>14}{test:>14}".rstrip() for name, train, test in lines)


def _cell(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"

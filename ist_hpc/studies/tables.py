"""Numbers of studies in readable form: medians with their spread, Markdown tables; pure."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Spread = dict[str, float]
"""`middle` (the median), `low`, `high`, and `count`, the number of values."""


@dataclass(frozen=True)
class Table:
    """A heading, the heads of the columns, rows of cells, and notes below."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def spread_of(values: Iterable[float]) -> Spread | None:
    """The spread of values, None if there are none."""
    known = sorted(values)
    if not known:
        return None
    middle = statistics.median(known)
    return {"middle": middle, "low": known[0], "high": known[-1], "count": len(known)}


def short(value: float) -> str:
    """Three significant digits: `0.0841`, `12.3`, `1,234`."""
    if value == 0:
        return "0"
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    text = f"{value:#.3g}"
    return text.rstrip(".") if "e" not in text else f"{value:.1e}"


def told(spread: Spread | None, unit: float = 1.0, whole: bool = False) -> str:
    """`median (lowest to highest)` in units of `unit`, or as whole numbers; `-` for nothing."""
    if spread is None:
        return "-"
    form = "{:,.0f}".format if whole else short
    middle, low, high = (form(spread[name] / unit) for name in ("middle", "low", "high"))
    return middle if spread["count"] == 1 or low == high else f"{middle} ({low} to {high})"


def markdown(tables: Sequence[Table]) -> str:
    """All tables in Markdown, with padded columns, so that they are readable as text."""
    return "\n\n".join(_one(table) for table in tables if table.rows)


def _one(table: Table) -> str:
    lines = [[cell.replace("|", "\\|") for cell in row] for row in (table.heads, *table.rows)]
    widths = [max(3, *(len(line[place]) for line in lines)) for place in range(len(table.heads))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = [
        ":" + "-" * max(1, widths[0] - 1),
        *("-" * max(1, width - 1) + ":" for width in widths[1:]),
    ]
    notes = ["", *table.notes] if table.notes else []
    text = [table.title, "", line(lines[0]), f"| {' | '.join(rule)} |", *map(line, lines[1:])]
    return "\n".join([*text, *notes])


def shares_of(seconds: dict[str, float]) -> dict[str, float]:
    """Each kind's share of all seconds, as a fraction of 1; kinds without seconds are left out."""
    whole = sum(seconds.values())
    return {kind: value / whole for kind, value in seconds.items() if value} if whole else {}


def over_least(medians: Sequence[tuple[int, Spread | None]]) -> list[float | None]:
    """For each (ranks, spread), its median divided by the least one on as many ranks."""
    least: dict[int, float] = {}
    for ranks, spread in medians:
        if spread is not None:
            least[ranks] = min(spread["middle"], least.get(ranks, spread["middle"]))
    return [
        spread["middle"] / least[ranks] if spread is not None and least[ranks] else None
        for ranks, spread in medians
    ]


def times(ratio: float | None) -> str:
    """A ratio as people write it, `-` for none."""
    return "-" if ratio is None else short(ratio)


UNACCOUNTED = 0.05
"""The share of `other` above which it is marked."""


_LAST = ("exchange", "average", "evaluate", "save", "wait", "other")
"""The last kinds in tables, in this order; others come first."""


def share_table(title: str, named: Sequence[tuple[str, int, dict[str, float]]]) -> Table:
    """Shares by kind of each (method, ranks, shares)."""
    found = dict.fromkeys(kind for _, _, shares in named for kind in shares)
    kinds = sorted(found, key=lambda kind: _LAST.index(kind) if kind in _LAST else -1)
    rows = [
        [method, str(ranks), *(_percent(kind, shares.get(kind)) for kind in kinds)]
        for method, ranks, shares in named
    ]
    notes = []
    if any("!" in cell for row in rows for cell in row[2:]):
        notes.append(f"! more than {UNACCOUNTED:.0%} is not accounted for.")
    if "other" not in kinds:
        notes.append(
            "These runs do not say what is not accounted for (no seconds of kind `other`)."
        )
    return Table(title, ["method", "ranks", *kinds], rows, notes)


def _percent(kind: str, share: float | None) -> str:
    if share is None:
        return "-"
    mark = " !" if kind == "other" and abs(share) > UNACCOUNTED else ""
    return f"{100 * share:.1f} %{mark}"


def number(row: dict[str, Any], name: str) -> float:
    """A number of a row, 0 if it has none."""
    return float(row.get(name, 0))

"""The report of `python -m ist_hpc.plan` as text."""

from collections.abc import Mapping, Sequence
from typing import Any

ITEMS = {
    "weights": "weights",
    "slots": "optimiser slots",
    "kept_round": "the round's copy (skip_round)",
    "gradient": "gradient",
    "update": "temporaries of the update",
    "casts": "bfloat16 copies of weights",
    "activations": "activations (estimate)",
    "batches": "batches of the round (ahead)",
    "doubled": "exchange: new beside old",
    "buffers": "exchange: buffers (kept)",
    "home_copies": "home blocks of a visit",
    "calibration": "calibration rows (kept)",
    "window": "data window (at most)",
}
"""The items of `memory.Memory` in plain words, in the order of the table."""

_ALGORITHMS = {"ist": "IST", "local_sgd": "local SGD", "data_parallel": "data parallel"}


def table(report: Mapping[str, Any]) -> str:
    """The result of `report.plan_report` as lines of at most 100 characters."""
    parts = [_heading(report), _comparison(report), _memory_table(report)]
    if "fits" in report:
        parts.append(_verdicts(report["fits"]))
    return "\n\n".join("\n".join(lines) for lines in parts)


def _heading(report: Mapping[str, Any]) -> list[str]:
    model = report["model"]
    widths = "-".join(str(w) for w in (model["inputs"], *model["hidden"], model["outputs"]))
    return [
        f"{report['name']}: {model['kind']} {widths}, {model['weights']:,} weights "
        f"({_mib(4 * model['weights'])} MiB), {report['optimizer']}, state: "
        f"{report['optimizer_state']}",
        f"{report['ranks']} rank(s), batches of {report['batch_size']} rows a rank, "
        f"{report['local_steps']} local steps a round",
    ]


def _comparison(report: Mapping[str, Any]) -> list[str]:
    """One column per algorithm."""
    memory, traffic, flops = report["memory"], report["bytes_a_round"], report["flops_a_step"]
    ist, rounds = traffic["ist"], report["rounds"]

    def of_all(values: Mapping[str, Any], *keys: str) -> list[str]:
        cells = []
        for algorithm in _ALGORITHMS:
            value = values[algorithm]
            for key in keys:
                value = value[key]
            cells.append(_mib(value))
        return cells

    def of_ist(value: float) -> list[str]:
        return [_mib(value), "", ""]

    exact = ist["exact_a_rank"]
    rows: list[tuple[str, list[str]]] = [
        ("", list(_ALGORITHMS.values())),
        ("memory of a rank in a step, MiB", of_all(memory, "phases", "training", "total")),
        ("memory of a rank at its peak, MiB", of_ist(memory["ist"]["peak"])),
        ("received by a rank a round, MiB", of_all(traffic, "expected_a_rank")),
        (f"  exactly, rounds 1 to {rounds}: mean", of_ist(exact["mean"])),
        ("  least, of any rank and round", of_ist(exact["min"])),
        ("  most, of any rank and round", of_ist(exact["max"])),
    ]
    if ist["averaging_a_rank"]:
        rows.append(("  and to average shared weights", of_ist(ist["averaging_a_rank"])))
    rows += [
        ("  of all ranks together", of_all(traffic, "all_ranks")),
        ("  if weights went to a server and back", of_all(traffic, "through_server")),
        ("  and in an evaluation", of_ist(ist["evaluation_a_rank"])),
        ("  or in a checkpoint", of_ist(ist["checkpoint_a_rank"])),
        ("GFLOP of a rank a step", [_giga(flops[name]["a_rank"]) for name in _ALGORITHMS]),
        ("GFLOP of all ranks a step", [_giga(flops[name]["all_ranks"]) for name in _ALGORITHMS]),
    ]
    return _aligned(rows)


def _memory_table(report: Mapping[str, Any]) -> list[str]:
    """One column per phase of independent subnet training."""
    memory = report["memory"]["ist"]
    phases = memory["phases"]
    rows: list[tuple[str, list[str]]] = [("memory of a rank (IST), MiB", list(phases))]
    for item, label in ITEMS.items():
        values = [items.get(item, 0) for items in phases.values()]
        if any(values):
            rows.append((label, [_mib(value) if value else "" for value in values]))
    rows.append(("total", [_mib(items["total"]) for items in phases.values()]))
    lines = _aligned(rows)
    peak = f"peak: {_mib(memory['peak'])} MiB in `{memory['peak_phase']}`"
    return [*lines, f"{peak}, beside Python, PyTorch and MPI themselves"]


def _verdicts(fits: Mapping[str, Any]) -> list[str]:
    """One line per algorithm: whether it fits into the memory of a rank."""
    lines = [
        f"in {fits['memory_bytes'] / 1e9:,.1f} GB a rank, {fits['base_bytes'] / 1e9:.2f} GB of it "
        "for Python, PyTorch and MPI:"
    ]
    for name, label in _ALGORITHMS.items():
        verdict = "fits" if fits[name]["fits"] else "does NOT fit"
        need, memory = _apart(fits[name]["needs_bytes"] / 1e9, fits["memory_bytes"] / 1e9)
        lines.append(f"  {label} {verdict}: needs {need} GB of {memory} GB a rank")
    fewest, most = fits["fewest_ranks_ist"], fits["most_ranks_tried"]
    found = f"{fewest}" if fewest else f"none up to {most} will do"
    return [*lines, f"  the fewest ranks with which IST fits: {found}"]


def _apart(one: float, other: float) -> tuple[str, str]:
    """Both with one digit after the point, or with as many as needed to differ."""
    for digits in range(1, 10):
        texts = f"{one:,.{digits}f}", f"{other:,.{digits}f}"
        if texts[0] != texts[1]:
            break
    return texts


def _aligned(rows: Sequence[tuple[str, list[str]]]) -> list[str]:
    left = max(len(label) for label, _ in rows)
    widths = [max(len(cells[i]) for _, cells in rows) for i in range(len(rows[0][1]))]
    return [
        "  ".join(
            [label.ljust(left), *(c.rjust(w) for c, w in zip(cells, widths, strict=True))]
        ).rstrip()
        for label, cells in rows
    ]


def _mib(value: float) -> str:
    return _short(value / 2**20)


def _giga(value: float) -> str:
    return _short(value / 1e9)


def _short(value: float) -> str:
    """Three digits at least: 0.0123, 1.23, 12.3, 1,234."""
    if value == 0:
        return "0"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 4
    return f"{value:,.{digits}f}"

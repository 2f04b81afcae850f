"""Figure 2 of the paper (arXiv 1910.02120), as numbers, a table and a picture; no MPI, no data.

The cost of a gradient step on 1 to 32 machines, by the paper's own counting (`cost/paper.py`), and
beside it what this program moves and computes for the same network (`cost/counts.py`).
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ist_hpc.common.sizes import ELEMENT_BYTES, allreduce_bytes
from ist_hpc.config.keys import MlpConfig
from ist_hpc.cost import counts, paper
from ist_hpc.exchange.placement import TensorSpec, elements
from ist_hpc.models.layers import layers_of
from ist_hpc.studies.plots import pictures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTHS = (1000, 4000, 4000, 4000, 200)
"""Inputs, three hidden layers, outputs."""

BATCH_SIZE = 512
LOCAL_STEPS = 10
MACHINES = (1, 2, 4, 8, 16, 32)

COUNTING = {
    "paper": "bytes that arrive at all machines together, one way: IST, the subnets that are sent "
    "out, not their return; data parallel, the model sent to every machine, not the gradients. "
    f"{paper.FLOPS_A_WEIGHT} operations a weight and row of the batch (the paper gives no "
    "such number)",
    "this_program": "bytes received by all ranks together: IST, all that an exchange between two "
    f"deals moves, averaged over deals and over its {LOCAL_STEPS} steps; data parallel, a ring "
    "allreduce of the gradient. Operations of the matrix products, of which the first layer needs "
    "no gradient of its input",
    "batches": f"data parallel shares one batch of {BATCH_SIZE} rows in a step; under IST every "
    f"machine has its own, so that N machines see N x {BATCH_SIZE} rows",
}
"""How the numbers are counted, in the words of the table."""

_COUNTINGS = {"paper": "the paper's counting", "this_program": "this program"}
_LINES = {
    ("paper", "data_parallel"): "data parallel",
    ("paper", "ist"): "IST",
    ("this_program", "data_parallel"): "data parallel, ring",
    ("this_program", "ist"): "IST",
}
_QUANTITIES = (("bytes_a_step", "MB received", 1e6), ("flops_a_step", "GFLOP", 1e9))
_COLOURS = {"data_parallel": pictures.COLOURS[1], "ist": pictures.COLOURS[0]}
_DASHES = {"paper": "-", "this_program": "--"}
_LEFT = 12  # characters of the table's first column


def own_specs() -> Sequence[TensorSpec]:
    """The partitioned weights of this package's perceptron of `WIDTHS`."""
    from ist_hpc.models import networks

    inputs, *hidden, outputs = WIDTHS
    return networks.build(MlpConfig(hidden=hidden), inputs, outputs).specs


def figures(specs: Sequence[TensorSpec]) -> dict[str, Any]:
    """All numbers, for `json.dumps`: a list over the machines for each counting and algorithm.

    specs  the partitioned weights of this program's model of `WIDTHS`

    Bytes and operations of one gradient step on all machines together; see `COUNTING`.
    """
    weights = sum(elements(spec) for spec in specs)
    layers = layers_of(specs)
    return {
        "figure": 2,
        "widths": list(WIDTHS),
        "batch_size": BATCH_SIZE,
        "local_steps": LOCAL_STEPS,
        "machines": list(MACHINES),
        "paper": {
            "data_parallel": _over_machines(
                lambda n: ELEMENT_BYTES * paper.data_parallel_numbers(WIDTHS, n),
                lambda n: paper.data_parallel_flops(WIDTHS, BATCH_SIZE),
            ),
            "ist": _over_machines(
                lambda n: ELEMENT_BYTES * paper.ist_numbers(WIDTHS, n, LOCAL_STEPS),
                lambda n: paper.ist_flops(WIDTHS, n, BATCH_SIZE),
            ),
        },
        "this_program": {
            "data_parallel": _over_machines(
                lambda n: n * allreduce_bytes(weights, n),
                lambda n: counts.step_flops(layers, BATCH_SIZE, ranks=1),
            ),
            "ist": _over_machines(
                lambda n: n * counts.expected_bytes(specs, n) / LOCAL_STEPS,
                lambda n: sum(counts.step_flops(layers, BATCH_SIZE, n, rank) for rank in range(n)),
            ),
        },
        "counting": COUNTING,
    }


def _over_machines(
    bytes_of: Callable[[int], float], flops_of: Callable[[int], float]
) -> dict[str, list[float]]:
    return {
        "bytes_a_step": [bytes_of(n) for n in MACHINES],
        "flops_a_step": [flops_of(n) for n in MACHINES],
    }


# The table.


def table(report: Mapping[str, Any]) -> str:
    """The numbers of `figures` as text."""
    lines = [
        "Figure 2 of the paper (arXiv 1910.02120): a gradient step of",
        f"{_network(report)}; all machines together",
    ]
    for quantity, title, unit in _QUANTITIES:
        lines += ["", *_block(report, quantity, title, unit)]
    lines.append("")
    for counting, title in (*_COUNTINGS.items(), ("batches", "batches")):
        text = f"{title}: {report['counting'][counting]}."
        lines += textwrap.wrap(text, width=96, subsequent_indent="  ")
    return "\n".join(lines)


def _network(report: Mapping[str, Any]) -> str:
    widths = "-".join(str(width) for width in report["widths"])
    return f"{widths}, batch {report['batch_size']}, J = {report['local_steps']}"


def _block(report: Mapping[str, Any], quantity: str, title: str, unit: float) -> list[str]:
    columns = [
        [f"{value / unit:,.2f}" for value in report[counting][name][quantity]]
        for counting, name in _LINES
    ]
    heads = list(_LINES.values())
    size = max(len(cell) for cells in (heads, *columns) for cell in cells) + 2
    above = "".join(f"{text:>{2 * size}}" for text in _COUNTINGS.values())
    lines = [f"{title:{_LEFT}}{above}", f"{'machines':{_LEFT}}"]
    lines[-1] += "".join(f"{head:>{size}}" for head in heads)
    for index, machines in enumerate(report["machines"]):
        cells = "".join(f"{column[index]:>{size}}" for column in columns)
        lines.append(f"{machines:<{_LEFT}}{cells}")
    return lines


# The picture.


def draw(report: Mapping[str, Any]) -> "Figure":
    """The picture of the numbers of `figures`. Raises `InputError` if matplotlib is missing."""
    figure = pictures.new_figure(11.6, 4.8, "take the table")
    panels = figure.subplots(1, 2)
    for axes, (quantity, title, unit) in zip(panels, _QUANTITIES, strict=True):
        _panel(axes, report, quantity, unit)
        axes.set_ylabel(f"{title} a step, all machines")
    panels[0].set_xlabel("machines (this program: one alone receives nothing)")
    panels[1].set_xlabel("machines")
    figure.suptitle(
        f"Figure 2 of the paper: a gradient step of {_network(report)}", fontsize="medium"
    )
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _panel(axes: "Axes", report: Mapping[str, Any], quantity: str, unit: float) -> None:
    """One quantity over the machines; a log scale has no point where nothing moves."""
    machines = report["machines"]
    for (counting, name), label in _LINES.items():
        points = [
            (n, value / unit)
            for n, value in zip(machines, report[counting][name][quantity], strict=True)
            if value > 0
        ]
        axes.plot(
            *zip(*points, strict=True),
            _DASHES[counting],
            color=_COLOURS[name],
            lw=1.8,
            marker="o",
            ms=4.5,
            mfc="white" if counting == "this_program" else _COLOURS[name],
            label=f"{label} ({_COUNTINGS[counting]})",
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(machines, [str(n) for n in machines])
    axes.set_xlabel("machines")
    low, high = axes.get_ylim()
    steps = [step * 10**power for power in range(6) for step in _steps(high / low)]
    axes.set_yticks([step for step in steps if low <= step <= high])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.yaxis.set_minor_formatter("")
    pictures.plain(axes)


def _steps(span: float) -> tuple[int, ...]:
    """The factors of powers of ten that label a log scale: more if it spans little."""
    return (1, 2, 5) if span < 100 else (1,)

"""The picture at the top of the README: python bench/draw_deal.py docs/deal.png"""

import argparse
from typing import TYPE_CHECKING

from ist_hpc.common.commandline import given_path
from ist_hpc.exchange.placement import Axis, Deal, deal
from ist_hpc.studies.plots.pictures import COLOURS, new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RANKS, HIDDEN, INPUTS, OUTPUTS = 3, 9, 4, 3
SEED = 1
_LIGHT = "0.6"


def network(axes: "Axes", dealt: Deal, title: str) -> None:
    """The whole network; a hidden neuron and its weights have the colour of their holder."""
    inputs = [((i + 0.5) * HIDDEN / INPUTS, 0.0) for i in range(INPUTS)]
    hidden = [(i + 0.5, 1.0) for i in range(HIDDEN)]
    outputs = [((i + 0.5) * HIDDEN / OUTPUTS, 2.0) for i in range(OUTPUTS)]
    for unit, (x, y) in enumerate(hidden):
        colour = COLOURS[dealt.holder[unit]]
        for other_x, other_y in (*inputs, *outputs):
            axes.plot([x, other_x], [y, other_y], color=colour, linewidth=0.7, zorder=1)
        axes.plot(x, y, "o", color=colour, markersize=13, zorder=2)
        axes.text(x, y, str(unit), color="white", ha="center", va="center", fontsize=8, zorder=3)
    for x, y in (*inputs, *outputs):
        axes.plot(x, y, "o", color="white", markeredgecolor="0.4", markersize=9, zorder=2)
    axes.set_title(title, fontsize=10)
    axes.set_xlim(-0.3, HIDDEN + 0.3)
    axes.set_ylim(-0.3, 2.3)


def exchange(axes: "Axes", before: Deal, after: Deal, title: str) -> None:
    """Each neuron from the rank that held it to the one that trains it next."""
    height = [2.0 - 1.5 * rank for rank in range(RANKS)]
    for rank in range(RANKS):
        colour, y = COLOURS[rank], height[rank]
        axes.text(-0.2, y, f"rank {rank}", color=colour, ha="right", va="center", fontsize=9)
    for unit in range(HIDDEN):
        ends = []
        for dealt, x in ((before, 0.3), (after, 4.0)):
            rank = int(dealt.holder[unit])
            place = list(dealt.units(rank)).index(unit)
            ends.append((x + 0.55 * place, height[rank]))
        moves = before.holder[unit] != after.holder[unit]
        for (x, y), dealt in zip(ends, (before, after), strict=True):
            axes.plot(x, y, "o", color=COLOURS[dealt.holder[unit]], markersize=13, zorder=2)
            axes.text(
                x, y, str(unit), color="white", ha="center", va="center", fontsize=8, zorder=3
            )
        style = {"arrowstyle": "->", "color": "0.35" if moves else _LIGHT, "linewidth": 1.1}
        style |= {"shrinkA": 8, "shrinkB": 8, "linestyle": "-" if moves else ":"}
        axes.annotate("", xy=ends[1], xytext=ends[0], arrowprops=style, zorder=1)
    axes.set_title(title, fontsize=10)


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=given_path, metavar="FILE")
    output = parser.parse_args().output
    first, second = (deal("hidden1", Axis(HIDDEN), RANKS, SEED, index) for index in (0, 1))
    figure = new_figure(11, 2.9, "draw it elsewhere")
    panels = figure.subplots(1, 3, width_ratios=[1, 1.1, 1])
    network(panels[0], first, "round 0: each rank trains its neurons, alone")
    exchange(panels[1], first, second, "one exchange: from holder to holder")
    network(panels[2], second, "round 1: dealt again")
    for axes in panels:
        axes.set_axis_off()
    save(figure, output)


if __name__ == "__main__":
    main()

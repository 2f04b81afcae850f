"""The common part of all commands' pictures; drawing imports matplotlib."""

import logging
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from ist_hpc.common.disk.caches import for_matplotlib
from ist_hpc.common.disk.files import refuse_target, replacing
from ist_hpc.common.disk.names import printable
from ist_hpc.common.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which colour-blind people can distinguish; black last, no yellow."""
_FORMATS = (".png", ".pdf", ".svg")


def refuse_format(output: Path) -> None:
    """Raise `InputError` for a file name that is not a picture's, or that cannot be written."""
    if output.suffix.lower() not in _FORMATS:
        raise InputError(f"--output must end with {', '.join(_FORMATS)}, got {output}")
    refuse_target(output, "--output", overwrite=True)


def require_matplotlib(otherwise: str) -> "type[Figure]":
    """The class of figures. Raises `InputError` if matplotlib is missing.

    otherwise  what a user without it can do instead of giving --output
    """
    if "matplotlib" not in sys.modules and for_matplotlib():
        # It would search its fonts each time, and print a note about that.
        logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError(
            "--output needs matplotlib, which is not installed; pip install 'ist_hpc[plot]', or "
            f"leave it out and {otherwise}"
        ) from None
    return Figure


def new_figure(width: float, height: float, otherwise: str) -> "Figure":
    """An empty figure, in inches; see `require_matplotlib`."""
    figure = require_matplotlib(otherwise)
    return figure(figsize=(width, height), dpi=150, layout="constrained")


def plain(axes: "Axes") -> None:
    """A plain look: no frame, a light grid behind the lines."""
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def as_label(name: str) -> str:
    """A name that matplotlib draws unchanged: no formula between dollars, no leading `_`."""
    plain_name = printable(name).replace("$", r"\$")
    return f" {plain_name}" if plain_name.startswith("_") else plain_name


def save(figure: "Figure", output: Path) -> None:
    """Draw into a file and replace it. Raises `InputError` if it cannot be written."""
    try:
        with replacing(output) as beside, warnings.catch_warnings():
            # A character that the font lacks is drawn as a box, which says as much.
            warnings.filterwarnings("ignore", message="Glyph ")
            figure.savefig(beside, format=output.suffix[1:].lower())
    except OSError as error:
        raise InputError(f"cannot write {output}: {error.strerror}") from None

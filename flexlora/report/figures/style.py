"""The style of all figures. They are readable in grey, are printed at their own size, and need no screen."""

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure

RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # matplotlib contains it, so the page is the same on every machine
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "figure.dpi": 150,
    "svg.hashsalt": "flexlora",
}

# Curves also differ in dash and marker, for print without colours. The colours (Okabe and Ito) differ in lightness too.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h", "p")


@contextmanager
def styled() -> Iterator[None]:
    """Give all figures that are made inside this context the same style."""
    with mpl.rc_context(RC):
        yield


def look(number: int) -> dict[str, Any]:
    """Return the colour, dash and marker of the curve with this number."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": DASHES[number % len(DASHES)],
        "marker": MARKERS[number % len(MARKERS)],
    }


def light_to_dark(name: str = "Blues", lightest: float = 0.05) -> Colormap:
    """Return a colour map in which larger values are darker."""
    return ListedColormap(mpl.colormaps[name](np.linspace(lightest, 1, 256)))


def layer_ticks(axes: Axes, layers: int, labels: bool = True) -> None:
    """Label the y axis with L0, L1, …. With more than sixteen layers, every second layer has a label."""
    places = range(0, layers, 1 if layers <= 16 else 2)
    axes.set_yticks(list(places), [f"L{i}" for i in places] if labels else [""] * len(places))
    axes.tick_params(length=0)


def step_ticks(axes: Axes, steps: Sequence[int], most: int = 3) -> None:
    """Label the x axis, which has one column for each event, with at most `most` steps of events.

    The first and the last event have a label.
    """
    count = min(most, len(steps))
    places = sorted({round(i * (len(steps) - 1) / max(1, count - 1)) for i in range(count)})
    axes.set_xticks(places, [f"{steps[i]:,}" for i in places])
    for i, label in enumerate(axes.get_xticklabels()):
        if len(places) > 1:
            label.set_horizontalalignment("left" if i == 0 else "right" if i == len(places) - 1 else "center")


def new_figure(width: float, height: float, title: str) -> Figure:
    """Return an empty figure of this size in inches, with its title at the left."""
    figure = Figure(figsize=(width, height), layout="constrained")
    parts = title.replace(" ", "\u00a0").replace("\u00a0·\u00a0", "\u00a0· ")  # lines break only between parts
    figure.suptitle(textwrap.fill(parts, int(12 * width), break_long_words=False), x=0.01, ha="left", fontsize=10)
    return figure

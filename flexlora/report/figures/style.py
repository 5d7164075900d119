"""The style of all figures: readable in grey, printed at their own size, drawn without a screen."""

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
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same page on every machine
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

# Curves differ in dash and marker too, for print without colours. The colours (Okabe and Ito) also differ in lightness.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h", "p")


@contextmanager
def styled() -> Iterator[None]:
    """Figures that are made inside this context have the same style."""
    with mpl.rc_context(RC):
        yield


def look(number: int) -> dict[str, Any]:
    """Colour, dash and marker of the curve of this number."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": DASHES[number % len(DASHES)],
        "marker": MARKERS[number % len(MARKERS)],
    }


def light_to_dark(name: str = "Blues", lightest: float = 0.05) -> Colormap:
    """A colour map in which larger values are darker."""
    return ListedColormap(mpl.colormaps[name](np.linspace(lightest, 1, 256)))


def layer_ticks(axes: Axes, layers: int, labels: bool = True) -> None:
    """L0, L1, … down the axis: all of them to sixteen, then every second one."""
    places = range(0, layers, 1 if layers <= 16 else 2)
    axes.set_yticks(list(places), [f"L{i}" for i in places] if labels else [""] * len(places))
    axes.tick_params(length=0)


def step_ticks(axes: Axes, steps: Sequence[int], most: int = 3) -> None:
    """At most so many of the events' steps, first and last among them, along an axis of one column an event."""
    count = min(most, len(steps))
    places = sorted({round(i * (len(steps) - 1) / max(1, count - 1)) for i in range(count)})
    axes.set_xticks(places, [f"{steps[i]:,}" for i in places])
    for i, label in enumerate(axes.get_xticklabels()):
        if len(places) > 1:
            label.set_horizontalalignment("left" if i == 0 else "right" if i == len(places) - 1 else "center")


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure of this size in inches, its title at the left."""
    figure = Figure(figsize=(width, height), layout="constrained")
    parts = title.replace(" ", "\u00a0").replace("\u00a0·\u00a0", "\u00a0· ")  # a line ends between parts only
    figure.suptitle(textwrap.fill(parts, int(12 * width), break_long_words=False), x=0.01, ha="left", fontsize=10)
    return figure

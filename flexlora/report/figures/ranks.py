"""Draw the ranks by layer and module (the paper's Figure 2), and the importance scores that moved the ranks."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from flexlora.report.allocation import Allocation, Array, short_names
from flexlora.report.figures.style import layer_ticks, light_to_dark, new_figure, step_ticks

LAYER_HEIGHT = 0.24
PANEL_WIDTH = 1.35
ANNOTATED = 40
"""The largest number of layers for which the cells contain numbers."""


def draw_ranks(seeds: Sequence[Allocation], title: str) -> Figure:
    """Draw the final ranks (left) and their course (right), with a panel for each kind of matrix.

    Values are means over `seeds`.
    """
    first = seeds[0]
    kinds, layers = first.kinds, first.layers
    course = np.mean([one.grid(one.ranks) for one in seeds], axis=0)  # (E + 1, kinds, layers)
    final = course[-1]
    low, high = float(np.nanmin(course)), float(np.nanmax(course))
    width = 1.2 + 0.62 * len(kinds) + PANEL_WIDTH * len(kinds)
    figure = new_figure(width, 1.9 + LAYER_HEIGHT * layers, title)
    ratios = [0.62 * len(kinds) + 0.3, *[PANEL_WIDTH] * len(kinds)]
    axes = figure.subplots(1, len(kinds) + 1, width_ratios=ratios)
    colours = light_to_dark()
    image = axes[0].imshow(final.T, cmap=colours, vmin=low, vmax=high, aspect="auto", interpolation="none")
    layer_ticks(axes[0], layers)
    names = short_names(kinds)
    axes[0].set_xticks(range(len(kinds)), [names[kind] for kind in kinds], rotation=35, ha="right")
    axes[0].set_title("after training")
    axes[0].set_ylabel("layer")
    _frame(axes[0])
    if layers <= ANNOTATED:
        _write_numbers(axes[0], final.T, low, high)
    steps = [0, *first.steps]
    panels = [course[:, k].T for k in range(len(kinds))]
    _draw_course(axes[1:], panels, [names[kind] for kind in kinds], steps, (low, high))
    ticks = MaxNLocator(integer=True, nbins=8)
    figure.colorbar(image, ax=axes.tolist(), label="rank (directions)", fraction=0.02, pad=0.01, ticks=ticks)
    return figure


def draw_importance(seeds: Sequence[Allocation], title: str, name: str) -> Figure:
    """Draw the score of every matrix at every event, with a panel for each kind of matrix.

    Values are means over `seeds`. An undefined score is white.
    """
    first = seeds[0]
    scores = _mean([one.grid(one.scores) for one in seeds])
    kinds, layers = first.kinds, first.layers
    names = short_names(kinds)
    figure = new_figure(1.4 + 1.5 * len(kinds), 1.5 + LAYER_HEIGHT * layers, title)
    axes = figure.subplots(1, len(kinds), squeeze=False)[0].tolist()
    low, high = float(np.nanmin(scores)), float(np.nanmax(scores))
    panels = [scores[:, k].T for k in range(len(kinds))]
    image = _draw_course(axes, panels, [names[kind] for kind in kinds], first.steps, (low, high))
    layer_ticks(axes[0], layers)
    axes[0].set_ylabel("layer")
    figure.colorbar(image, ax=axes, label=f"importance: {name}", fraction=0.02, pad=0.01)
    return figure


def _draw_course(
    axes: Sequence[Axes], panels: Sequence[Array], names: Sequence[str], steps: Sequence[int], span: tuple[float, float]
) -> AxesImage:
    """Draw a panel for each kind of matrix. Rows are layers and columns are events; each panel is (layers, events)."""
    for panel, values, name in zip(axes, panels, names, strict=True):
        image = panel.imshow(
            values, cmap=light_to_dark(), vmin=span[0], vmax=span[1], aspect="auto", interpolation="none"
        )
        layer_ticks(panel, values.shape[0], labels=False)
        step_ticks(panel, steps, most=2)
        panel.set_title(name.replace(".", ".\n", 1) if len(name) > 14 else name)
        _frame(panel)
    axes[len(axes) // 2].set_xlabel("optimizer step of the event")
    return image


def _write_numbers(axes: Axes, values: Array, low: float, high: float) -> None:
    whole = bool(np.all(np.mod(values[np.isfinite(values)], 1) == 0))
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            dark = value > low + 0.55 * (high - low)
            text = f"{value:.0f}" if whole else f"{value:.1f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")


def _frame(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(True)


def _mean(grids: Sequence[Array]) -> Array:
    """Return the mean over the seeds with a defined value. An entry is NaN if no seed has one."""
    stacked = np.stack(grids)
    defined = np.isfinite(stacked)
    total = np.where(defined, stacked, 0.0).sum(0)
    return np.divide(total, defined.sum(0), out=np.full(total.shape, np.nan), where=defined.any(0))

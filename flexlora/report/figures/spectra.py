"""Draw the singular values by matrix (the paper's Figure 3), and energy against entropy and rank."""

from collections.abc import Sequence

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogFormatter

from flexlora.report.allocation import Allocation, energy, entropy, short_names
from flexlora.report.figures.style import MARKERS, light_to_dark, new_figure
from flexlora.report.paper_claims import energy_entropy_corner


class _PlainNumbers(LogFormatter):
    """Print 0.2 instead of 2e-01, and label values between the powers of ten if the axis has few powers of ten."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def draw_singular_values(one: Allocation, title: str) -> Figure:
    """Draw |λ| of every matrix after training.

    There is a panel for each kind of matrix, a column for each layer, and a dash for each direction.
    """
    assert one.spectra is not None
    kinds, names = one.kinds, short_names(one.kinds)
    columns = min(3, len(kinds))
    rows = -(-len(kinds) // columns)
    figure = new_figure(0.8 + columns * max(2.6, 0.13 * one.layers), 0.8 + 2.1 * rows, title)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    every = 1 if one.layers <= 6 else 2 if one.layers <= 16 else 5
    ticks = range(0, one.layers, every)
    for panel, kind in zip(grid.flat, kinds, strict=False):
        for place, values in zip(one.places, one.spectra, strict=True):
            if place.kind == kind and len(values):
                panel.vlines(place.layer, values[-1], values[0], color="#bbbbbb", lw=0.7)
                panel.plot([place.layer] * len(values), values, "_", color="#08306b", ms=5, mew=0.9)
        panel.set_title(names[kind])
        panel.set_xticks(list(ticks), [f"L{i}" for i in ticks])
    for panel in grid.flat[len(kinds) :]:
        panel.set_axis_off()
    for panel in grid.flat[max(0, len(kinds) - columns) : len(kinds)]:  # the lowest panel of each column
        panel.set_xlabel("layer")
        panel.tick_params(labelbottom=True)
    for panel in grid[:, 0]:
        panel.set_ylabel("|λ| of each direction")
    return figure


def draw_energy_entropy(seeds: Sequence[Allocation], title: str) -> Figure:
    """Draw each matrix of all seeds after training by its energy and entropy.

    The point of a matrix with a higher rank is darker and larger.
    """
    matrices = [
        (energy(values), entropy(values), len(values), place.kind)
        for one in seeds
        for place, values in zip(one.places, one.spectra or [], strict=True)
    ]
    shown = [matrix for matrix in matrices if np.isfinite(matrix[1])]
    kinds, names = seeds[0].kinds, short_names(seeds[0].kinds)
    figure = new_figure(7.8, 4.4, title)
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(_PlainNumbers(minor_thresholds=(1.5, 0.5), labelOnlyBase=False))
    axes.xaxis.set_minor_formatter(_PlainNumbers(minor_thresholds=(1.5, 0.5), labelOnlyBase=False))
    axes.set_xlabel("energy Σλ²")
    axes.set_ylabel("entropy of the shares of λ² (Eq. 3; 1: all alike)")
    if not shown:
        return figure
    ranks = [rank for _, _, rank, _ in shown]
    low, high = min(ranks), max(ranks)
    colours = light_to_dark(lightest=0.2)
    norm = BoundaryNorm(np.arange(low, high + 2) - 0.5, colours.N)
    for i, kind in enumerate(kinds):
        of_kind = [matrix for matrix in shown if matrix[3] == kind]
        if of_kind:
            x, y, rank, _ = zip(*of_kind, strict=True)
            sizes = [14 + 50 * (r - low) / max(1, high - low) for r in rank]
            marker = MARKERS[i % len(MARKERS)]
            axes.scatter(x, y, s=sizes, c=rank, cmap=colours, norm=norm, marker=marker, edgecolors="#444444", lw=0.5)
            axes.scatter([], [], s=30, color="#bbbbbb", marker=marker, edgecolors="#444444", lw=0.5, label=names[kind])
    most_energy, least_entropy = energy_entropy_corner([m[0] for m in shown], [m[1] for m in shown])
    (left, _), (_, top) = axes.get_xlim(), axes.get_ylim()
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
    corner = Rectangle(
        (left, least_entropy), most_energy - left, top - least_entropy, fill=False, hatch="////", ec="#cccccc", zorder=0
    )
    corner.set_label("low energy, high entropy\n(a third each)")
    axes.add_patch(corner)
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, label="rank", fraction=0.04, pad=0.01)
    bar.set_ticks(sorted({low, (low + high) // 2, high}))
    figure.legend(loc="outside right center")
    left_out = len(matrices) - len(shown)
    if left_out:
        axes.set_title(f"without {left_out} of rank 1 or of no energy, which have no entropy", loc="left", fontsize=8)
    return figure

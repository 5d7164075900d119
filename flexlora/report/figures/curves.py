"""Draw figures of whole sweeps from records only: learning curves, and scores against active parameters."""

import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from flexlora.report.figures.style import look, new_figure
from flexlora.report.numbers import count, percent_axis
from flexlora.report.record_values import number
from flexlora.report.seed_groups import by_epoch, last_figure
from flexlora.results.collect import Run

COLUMNS = 3
ROWS = Mapping[str, Sequence[Run]]
"""The runs by their label in the legend. The seeds of one method and variant have one label."""


def draw_learning_curves(tasks: Mapping[str, ROWS], title: str) -> Figure:
    """Draw the main figure of every evaluation, with a panel for each task.

    Lines are means over the seeds, and bands are ± one standard deviation.
    """
    figure, panels = _panels(tasks, title)
    labels = _numbers(tasks)
    for panel, (task, rows) in zip(panels, tasks.items(), strict=False):
        means: list[float] = []
        spreads: list[float] = []
        for label, runs in rows.items():
            points = by_epoch(runs)
            style = look(labels[label])
            every = max(1, len(points) // 8)
            middle = [statistics.fmean(values) for values in points.values()]
            panel.plot([*points], middle, lw=1.2, ms=3.5, markevery=every, **style)
            spread = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in points.values()]
            means += middle
            spreads += spread
            if any(spread):
                low, high = np.subtract(middle, spread), np.add(middle, spread)
                panel.fill_between([*points], low, high, color=style["color"], alpha=0.15, lw=0)
        panel.set_ylim(percent_axis(means, spreads))
        panel.set_title(f"{task}: {_metric(rows)}")
        panel.set_xlabel("epoch")
        panel.set_ylabel("percent")
    _legend(figure, labels)
    return figure


def draw_accuracy_parameters(tasks: Mapping[str, ROWS], title: str) -> Figure:
    """Draw the last evaluation against the adapter's active parameters, with a panel for each task.

    Points are means over the seeds, and bars are ± one standard deviation.
    """
    figure, panels = _panels(tasks, title)
    labels = _numbers(tasks)
    for panel, (task, rows) in zip(panels, tasks.items(), strict=False):
        sized: list[float] = []
        means: list[float] = []
        spreads: list[float] = []
        for label, runs in rows.items():
            values = [100 * value for run in runs if (value := last_figure(run)) is not None]
            sizes = [size for run in runs if (size := number(run.record.parameters.get("adapter_active"))) is not None]
            style = look(labels[label])
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            size = statistics.fmean(sizes) if sizes else 0.0
            means.append(statistics.fmean(values))
            spreads.append(spread)
            if size > 0:
                sized.append(size)
                style["linestyle"] = "none"
                panel.errorbar(size, means[-1], spread or None, ms=6, capsize=2, mec="black", **style)
            else:  # only a head is trained: 0 has no place on a logarithmic axis
                panel.axhline(means[-1], lw=1, color=style["color"], linestyle=style["linestyle"])
        panel.margins(x=0.2)
        panel.set_ylim(percent_axis(means, spreads))
        _scale_sizes(panel, max(sized, default=1) / min(sized, default=1))
        panel.set_title(f"{task}: {_metric(rows)}")
        panel.set_xlabel("active parameters of the adapter")
        panel.set_ylabel("percent, last evaluation")
    _legend(figure, labels, lines=False)
    return figure


def _scale_sizes(panel: Axes, widest: float) -> None:
    """Make the axis logarithmic if the largest size is more than 5 times the smallest, so that enough ticks remain.

    `widest` is the largest size divided by the smallest.
    """
    if widest > 5:
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if widest < 50 else (1,)))
        panel.xaxis.set_minor_locator(NullLocator())
    else:
        panel.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    panel.xaxis.set_major_formatter(lambda value, _: count(value))


def _panels(tasks: Mapping[str, ROWS], title: str) -> tuple[Figure, list[Axes]]:
    columns = min(COLUMNS, len(tasks))
    rows = -(-len(tasks) // columns)
    lines = len(_numbers(tasks))
    figure = new_figure(max(6.0, 1.6 + 3.0 * columns), max(0.9 + 2.6 * rows, 0.8 + 0.2 * lines) + 0.2, title)
    grid = figure.subplots(rows, columns, squeeze=False)
    for panel in grid.flat[len(tasks) :]:
        panel.set_axis_off()
    return figure, list(grid.flat)


def _numbers(tasks: Mapping[str, ROWS]) -> dict[str, int]:
    """Return the number of each label. A label has the same number in all panels."""
    return {label: i for i, label in enumerate(dict.fromkeys(label for rows in tasks.values() for label in rows))}


def _metric(rows: ROWS) -> str:
    return str(next(run.record.main_metric for runs in rows.values() for run in runs)).replace("_", " ")


def _legend(figure: Figure, labels: Mapping[str, int], lines: bool = True) -> None:
    handles = [
        Line2D([], [], label=label, ms=4.5, lw=1.2, **{**look(i), **({} if lines else {"linestyle": "none"})})
        for label, i in labels.items()
    ]
    figure.legend(handles=handles, loc="outside right center")

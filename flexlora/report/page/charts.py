"""The data of the page's figures: learning curves and scores of every task, and ranks of single runs."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from flexlora.report.allocation import Allocation, short_names
from flexlora.report.numbers import percent_axis, short
from flexlora.report.record_values import number
from flexlora.report.seed_groups import Allocated, by_epoch, by_place, last_figure
from flexlora.results.collect import Run

MOST_EVENTS = 80
"""The largest number of rank events of a run that the page can play. Of more, some are left out."""


def charts_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return a chart for each task of each scale and model."""
    return [
        _chart(f"{task} · {model}, scale={scale}", rows)
        for (scale, model), tasks in by_place(runs).items()
        for task, rows in tasks.items()
    ]


def ranks_of(groups: Sequence[Allocated], runs: Sequence[Run]) -> dict[int, dict[str, Any]]:
    """Return the ranks of the seeds of each group, by the position of the run in `runs`."""
    positions = {run.path: i for i, run in enumerate(runs)}
    return {positions[one.run.path]: _ranks(one) for group in groups for one in group.seeds}


def _chart(name: str, rows: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    lines = [_line(label, runs) for label, runs in rows.items()]
    first = next(iter(rows.values()))[0]
    means = [value for line in lines for value in (*line["means"], line["last"])]
    spreads = [value for line in lines for value in (*line["spreads"], line["spread"])]
    metric = (first.record.main_metric or "").replace("_", " ")
    return {"name": name, "metric": metric, "rows": lines, "span": percent_axis(means, spreads)}


def _line(label: str, runs: Sequence[Run]) -> dict[str, Any]:
    points = by_epoch(runs)
    last = [100 * value for run in runs if (value := last_figure(run)) is not None]
    sizes = [size for run in runs if (size := number(run.record.parameters.get("adapter_active"))) is not None]
    return {
        "name": label,
        "epochs": [*points],
        "means": [short(statistics.fmean(values)) for values in points.values()],
        "spreads": [_spread(values) for values in points.values()],
        "size": short(statistics.fmean(sizes)) if sizes else 0.0,
        "last": short(statistics.fmean(last)),
        "spread": _spread(last),
        "seeds": len(last),
    }


def _spread(values: Sequence[float]) -> float:
    return short(statistics.stdev(values)) if len(values) > 1 else 0.0


def _ranks(one: Allocation) -> dict[str, Any]:
    every = -(-len(one.steps) // MOST_EVENTS)
    chosen = sorted({0, *range(len(one.steps), 0, -every)})
    grids = one.grid(one.ranks)[chosen].swapaxes(1, 2)  # (events, layers, kinds)
    frames = [[[round(v) if math.isfinite(v) else None for v in row] for row in grid] for grid in grids.tolist()]
    names = short_names(one.kinds)
    return {
        "steps": [[0, *one.steps][i] for i in chosen],
        "kinds": [names[kind] for kind in one.kinds],
        "frames": frames,
    }

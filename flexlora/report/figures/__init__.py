"""Draw figures of finished runs. Only this folder imports matplotlib (`pip install 'flexlora[figures]'`)."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from flexlora.report.allocation import Allocation
from flexlora.report.figures.curves import draw_accuracy_parameters, draw_learning_curves
from flexlora.report.figures.ranks import draw_importance, draw_ranks
from flexlora.report.figures.spectra import draw_energy_entropy, draw_singular_values
from flexlora.report.figures.style import styled
from flexlora.report.seed_groups import MOST_ROWS, Allocated, by_place
from flexlora.results.collect import Run

OF_SWEEPS = ("learning_curves", "accuracy_parameters")
OF_ALLOCATIONS = ("ranks", "singular_values", "energy_entropy", "importance")


@dataclass(frozen=True)
class Drawing:
    """A figure, the name of its files, and its title."""

    name: str
    title: str
    figure: Figure

    def save(self, ending: str) -> bytes:
        """Return the figure as `png` or `svg`. The same runs give the same bytes."""
        file = io.BytesIO()
        with styled():
            # The canvas is called directly because `savefig` would draw everything twice.
            if ending == "svg":
                FigureCanvasSVG(self.figure).print_svg(file, metadata={"Date": None})
            else:
                FigureCanvasAgg(self.figure).print_png(file)
        self.figure.set_layout_engine("none")  # the axes have their places: another format is not laid out again
        return file.getvalue()


def draw_sweeps(runs: Sequence[Run], wanted: Sequence[str] = OF_SWEEPS) -> Iterator[Drawing]:
    """Draw learning curves, and scores against active parameters: one figure for each scale and model."""
    for (scale, model), tasks in by_place(runs).items():
        shown, more = _first_rows(tasks)
        of = f"{model}, scale={scale}{more}"
        bands = "mean over seeds ± standard deviation"
        with styled():
            if "learning_curves" in wanted:
                title = f"Learning curves, {bands} · {of}"
                yield Drawing(f"learning_curves_{scale}_{model}", title, draw_learning_curves(shown, title))
            if "accuracy_parameters" in wanted:
                title = f"Last evaluation against active parameters, {bands} · {of}"
                yield Drawing(f"accuracy_parameters_{scale}_{model}", title, draw_accuracy_parameters(shown, title))


def draw_allocations(groups: Sequence[Allocated], wanted: Sequence[str] = OF_ALLOCATIONS) -> Iterator[Drawing]:
    """Draw the ranks, singular values and importance of each group, if they were recorded."""
    for group in groups:
        for name in wanted:
            with styled():
                drawn = _draw_allocation(name, group)
            if drawn is not None:
                yield Drawing(f"{name}_{group.file}", drawn[0], drawn[1])


def _draw_allocation(name: str, group: Allocated) -> tuple[str, Figure] | None:
    seeds = group.seeds
    with_spectra = [one for one in seeds if one.spectra is not None]
    if name == "ranks":
        title = f"Ranks · {group.name}"
        return title, draw_ranks(seeds, title)
    if name == "singular_values" and with_spectra:
        title = f"Singular values after training · {Allocated(with_spectra[:1]).name}"
        return title, draw_singular_values(with_spectra[0], title)
    if name == "energy_entropy" and with_spectra:
        title = f"Energy, entropy and rank after training · {Allocated(with_spectra).name}"
        return title, draw_energy_entropy(with_spectra, title)
    if name == "importance" and any(np.isfinite(one.scores).any() for one in seeds):
        title = f"Importance at each event · {group.name}"
        return title, draw_importance(seeds, title, _importance(seeds[0]))
    return None


def _importance(one: Allocation) -> str:
    return str(one.run.record.config.get("method", {}).get("importance", "score"))


def _first_rows(tasks: Mapping[str, Mapping[str, list[Run]]]) -> tuple[dict[str, dict[str, list[Run]]], str]:
    """Return the first `MOST_ROWS` rows, and a note on the number of other rows."""
    names = list(dict.fromkeys(name for rows in tasks.values() for name in rows))
    kept = set(names[:MOST_ROWS])
    shown = {task: {name: runs for name, runs in rows.items() if name in kept} for task, rows in tasks.items()}
    more = f" · {len(names) - MOST_ROWS} more rows are not shown" if len(names) > MOST_ROWS else ""
    return {task: rows for task, rows in shown.items() if rows}, more

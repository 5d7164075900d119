"""Report a sweep over one setting on held-out rows: each method's best value, and the number of its runs."""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from flexlora.report.cells import Cell, summarise
from flexlora.report.layout import explained, spelled
from flexlora.report.marks import marks_of, usual_data
from flexlora.report.record_values import figure
from flexlora.results.collect import Run
from flexlora.results.record import RunRecord
from flexlora.settings import flat_keys

Place = tuple[str, str, str, str, str]
SOUGHT = frozenset("sgtdo")
"""The marks that an entry may have: all its runs are on held-out rows, and differ in the setting."""
TRAINED = ("training.max_steps", "training.epochs", "training.batch_size", "training.gradient_accumulation")


@dataclass(frozen=True)
class Tuned:
    """One method on one task with one model. `cells` has its figure over the seeds, in percent, for each value."""

    scale: str
    task: str
    model: str
    method: str
    others: str
    """The other overrides of its runs, or `default` if there are none."""
    metric: str
    cells: dict[Any, Cell]
    runs: int
    """The number of its runs, including those that failed or diverged."""
    marks: frozenset[str] = frozenset()
    """What its figures do not have in common with those of most runs of the task."""

    @property
    def best(self) -> Any:
        """The value with the highest mean (in a tie, the lowest such value), or None if no run has a figure."""
        means = {value: cell.mean for value, cell in self.cells.items() if cell.mean is not None}
        return max(means, key=means.__getitem__, default=None)


def tuned(runs: Iterable[Run], key: str) -> list[Tuned]:
    """Return one entry for each method, task and model that has runs on held-out rows with several values of `key`."""
    by_place: dict[Place, dict[Any, list[Run]]] = {}
    for run in runs:
        record, settings = run.record, flat_keys(run.record.config)
        held_out = record.data.get("held_out") or settings.get("task.validation_rows")
        if not held_out or settings.get(key) is None:
            continue
        others = "+".join(part for part in record.variant.split("+") if not part.startswith(f"{key}-")) or "default"
        place = (record.scale, record.task, record.model, record.method, others)
        by_place.setdefault(place, {}).setdefault(_comparable(settings[key]), []).append(run)
    usual = {at: usual_data(records) for at, records in _records_by_task(by_place).items()}
    sought = SOUGHT - ({"t", "o"} if key in TRAINED or key.startswith("task.") else set())
    entries = []
    for place, by_value in sorted(by_place.items()):
        found = [run for runs in by_value.values() for run in runs]
        metric = next((run.record.main_metric for run in found if run.record.main_metric), None)
        if metric is not None and len(by_value) > 1:
            cells = {value: _cell(by_value[value], metric) for value in sorted(by_value, key=_order)}
            marks = marks_of([run.record for run in found], usual[place[:3]]) & sought
            entries.append(Tuned(*place, metric, cells, len(found), marks))
    return entries


def _records_by_task(by_place: Mapping[Place, Mapping[Any, Sequence[Run]]]) -> dict[tuple[str, ...], list[RunRecord]]:
    """The records of each scale, task and model."""
    found: dict[tuple[str, ...], list[RunRecord]] = {}
    for place, by_value in by_place.items():
        found.setdefault(place[:3], []).extend(run.record for runs in by_value.values() for run in runs)
    return found


def _comparable(value: Any) -> Any:
    """Return the value as a key of a dictionary. A number or a text stays the same; any other value becomes JSON."""
    return value if isinstance(value, int | float | str) else json.dumps(value)


def _order(value: Any) -> tuple[bool, Any]:
    """Return the sort key of a value. Numbers come before texts."""
    return isinstance(value, str), value


def _cell(runs: Iterable[Run], metric: str) -> Cell:
    runs = list(runs)
    values = [value for run in runs if (value := figure(run.record, metric, "last")) is not None]
    words = sorted({run.record.status for run in runs})
    return summarise([100 * value for value in values]) if values else Cell(word=", ".join(words))


def as_text(entries: Iterable[Tuned], key: str, width: int) -> str:
    """Return one table for each task and model, with a row for each method and a column for each value."""
    file = io.StringIO()
    console = Console(file=file, width=width, highlight=False, emoji=False, markup=False)
    groups: dict[tuple[str, str, str, str, str], list[Tuned]] = {}
    for entry in entries:
        groups.setdefault((entry.task, entry.model, entry.scale, entry.others, entry.metric), []).append(entry)
    for (task, model, scale, others, metric), group in groups.items():
        console.print(f"{key} on rows held out of train: {task}, {model}, scale={scale}")
        console.print(f"{metric} of each run's last evaluation, in percent: mean ± sample standard deviation (seeds).")
        if others != "default":
            console.print(f"All runs: {others}.")
        console.print()
        values = sorted({value for entry in group for value in entry.cells}, key=_order)
        table = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for heading in ("method", "best", "runs", *map(_spelled, values)):
            table.add_column(heading, justify="left" if heading == "method" else "right", no_wrap=True)
        for entry in group:
            shown = "–" if entry.best is None else _spelled(entry.best)
            cells = [entry.cells.get(value) for value in values]
            table.add_row(
                entry.method + spelled(entry.marks), shown, str(entry.runs), *(_shown(cell) for cell in cells)
            )
        console.print(table)
        console.print()
        for line in explained(frozenset().union(*(entry.marks for entry in group))):
            console.print(line)
    return "\n".join(line.rstrip() for line in file.getvalue().rstrip().split("\n")) + "\n"


def _spelled(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _shown(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    if cell.mean is None:
        return cell.word
    spread = "" if cell.std is None else f" ± {cell.std:.1f}"
    return f"{cell.mean:.1f}{spread} ({cell.n})"

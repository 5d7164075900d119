"""Group the runs of one scale, model, task, method and variant. The runs of a group differ only in the seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from flexlora.errors import one_line
from flexlora.report.allocation import Allocation, read_allocation
from flexlora.report.record_values import figure, measures_cost, number
from flexlora.results.collect import Run

MOST_ROWS = 12
"""The largest number of curves in a figure. More curves could not be distinguished."""


@dataclass(frozen=True)
class Allocated:
    """The seeds of one method and variant on one task, if they had rank events."""

    seeds: list[Allocation]

    @property
    def name(self) -> str:
        """The name of the group in a title."""
        record = self.seeds[0].run.record
        seeds = ", ".join(str(one.run.record.seed) for one in self.seeds)
        row = row_name(self.seeds[0].run)
        word = "seeds" if len(self.seeds) > 1 else "seed"
        return f"{record.task} · {record.model}, scale={record.scale} · {row} · {word} {seeds}"

    @property
    def file(self) -> str:
        """The name of the group in a file's name."""
        record = self.seeds[0].run.record
        parts = (record.scale, record.model, record.task.replace("/", "-"), record.method, record.variant)
        return "_".join(part for part in parts if part != "default")


class Allocations(NamedTuple):
    """The groups that were read, and the groups and runs that were left out."""

    groups: list[Allocated]
    more: int
    """The number of groups that were not read."""
    broken: list[str]
    """A line for each run that is left out because a file is broken."""


def row_name(run: Run) -> str:
    """Return the name of a run's row: its method, followed by its variant if that is not the default."""
    return run.record.method if run.record.variant == "default" else f"{run.record.method} {run.record.variant}"


def last_figure(run: Run) -> float | None:
    """Return the main figure of the last evaluation, or None if it is missing or the run is not done."""
    return figure(run.record, run.record.main_metric or "", "last")


def by_epoch(runs: Sequence[Run]) -> dict[float, list[float]]:
    """Return the main figures of all seeds, in percent, at every epoch after which at least one seed was evaluated."""
    found: dict[float, list[float]] = {}
    for run in runs:
        for row in run.record.history:
            entries = row if isinstance(row, dict) else {}
            epoch, value = (number(entries.get(key)) for key in ("epoch", run.record.main_metric or ""))
            if epoch is not None and value is not None:
                found.setdefault(epoch, []).append(100 * value)
    return dict(sorted(found.items()))


def by_place(runs: Sequence[Run]) -> dict[tuple[str, str], dict[str, dict[str, list[Run]]]]:
    """Group finished runs by (scale, model), then by task, then by method and variant."""
    found: dict[tuple[str, str], dict[str, dict[str, list[Run]]]] = {}
    for run in runs:
        record = run.record
        if not measures_cost(record) and last_figure(run) is not None:
            rows = found.setdefault((record.scale, record.model), {}).setdefault(record.task, {})
            rows.setdefault(row_name(run), []).append(run)
    return found


def allocated(runs: Sequence[Run], most: int | None = None) -> Allocations:
    """Read the finished runs that had rank events, grouped by method, variant and task.

    A seed is left out if its matrices or the steps of its events differ from the first seed's. This happens if the
    data differ under one variant's name.

    Args:
        most: the largest number of groups to read. None: all.
    """
    groups: dict[tuple[str, str, str, str, str], list[Run]] = {}
    for run in runs:
        record = run.record
        if (
            record.status == "done"
            and not measures_cost(record)
            and record.rank_events
            and record.rank_events.get("count")
        ):
            key = (record.scale, record.model, record.task, record.method, record.variant)
            groups.setdefault(key, []).append(run)
    found: list[Allocated] = []
    broken: list[str] = []
    left = list(groups.values())
    while left and (most is None or len(found) < most):
        seeds = _read_all(left.pop(0), broken)
        if seeds:
            first = seeds[0]
            found.append(Allocated([one for one in seeds if (one.places, one.steps) == (first.places, first.steps)]))
    return Allocations(found, len(left), broken)


def _read_all(runs: Sequence[Run], broken: list[str]) -> list[Allocation]:
    """Read the allocations of the runs that have one. The error of each broken file is added to `broken`."""
    found = []
    for run in runs:
        try:
            one = read_allocation(run)
        except ValueError as error:
            broken.append(one_line(error))
            continue
        if one is not None:
            found.append(one)
    return found

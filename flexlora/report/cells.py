"""The cells of a table. A cell has a figure, marks, and comparisons with the paper, a reference row and LoRA."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from flexlora.report.frame import Figure
from flexlora.report.marks import NO_RIVAL, Usual, marks_of
from flexlora.report.paired_test import Paired
from flexlora.report.protocol import protocol
from flexlora.report.table import Average, Column

Interval = tuple[float, float]


@dataclass(frozen=True)
class Cell:
    """The mean, sample standard deviation (None for one seed) and number of seeds. `word` replaces a missing figure."""

    mean: float | None = None
    std: float | None = None
    n: int = 0
    marks: frozenset[str] = frozenset()
    word: str = ""
    by_seed: Mapping[int, float] = field(default_factory=dict)
    protocols: frozenset[str] = frozenset()
    """How its runs were trained and measured."""
    place: int = 0
    """The place among our comparable rows, by printed figures: 1 is the best of the column, 2 the second, 0 others."""
    interval: Interval | None = None
    """The interval over the examples, in percent. Only a figure of one seed has it, and only with `--intervals`."""
    paired: Paired | None = None
    """The comparison with the reference row's cell. It exists only with `--against`."""
    ratio: "Cell | None" = None
    """The ratio of a cost to LoRA's cost, taken round by round."""
    printed: float | None = None
    """The number that the paper prints here."""
    difference: float | None = None
    """Our figure less the paper's, in points, or None if they cannot be compared."""
    text: str | None = None
    """The paper's own spelling of the number, such as `1.3M`. If it is set, it is printed instead of the number."""


def summarise(values: Sequence[float]) -> Cell:
    """Return the cell of these values, one for each seed. At least one value is needed."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return Cell(statistics.fmean(values), std, len(values))


def seeds_cell(figures: Sequence[Figure], usual: Usual | None) -> Cell:
    """Return the cell of one row's figures in a column."""
    if not figures:
        return Cell(word="–")
    by_seed = {one.run.record.seed: one.value for one in figures if one.value is not None}
    if not by_seed:
        statuses = {one.run.record.status for one in figures}
        return Cell(word=", ".join(sorted(status if status != "done" else "no figure" for status in statuses)))
    used = [one.run.record for one in figures if one.value is not None]
    marks = marks_of(used, usual) | ({"x"} if len(used) < len(figures) else set())
    protocols = frozenset(map(protocol, used))
    return replace(summarise([*by_seed.values()]), marks=marks, by_seed=by_seed, protocols=protocols)


def average_cell(row: Mapping[Column, Sequence[Figure]], average: Average, cells: Sequence[Cell]) -> Cell:
    """Return the mean over the seeds that have all columns of the average. If no seed has them, the word is `n/8`.

    `cells` are the row's cells in these columns.
    """
    by_seed: dict[int, dict[Column, float]] = {}
    for column in average.columns:
        for one in row.get(column, ()):
            of_seed = by_seed.setdefault(one.run.record.seed, {})  # a seed without any figure also gets an entry
            if one.value is not None:
                of_seed[column] = one.value
    size = len(average.columns)
    whole = {seed: average.mean(values) for seed, values in by_seed.items() if len(values) == size}
    if not whole:
        return Cell(word=f"{max(map(len, by_seed.values()), default=0)}/{size}")
    marks = frozenset().union(*(cell.marks for cell in cells))
    marks = marks - {"x", "f"} | ({"x"} if len(whole) < len(by_seed) else set())
    protocols = frozenset().union(*(cell.protocols for cell in cells))
    return replace(summarise([*whole.values()]), marks=marks, by_seed=whole, protocols=protocols)


def count_cell(figures: Sequence[Figure]) -> Cell:
    """Return the mean of a number of parameters over a row's runs."""
    values = [one.value for one in figures if one.value is not None]
    return summarise(values) if values else Cell(word="–")


def mark_fewer(column: Sequence[Cell]) -> list[Cell]:
    """Return the cells of a column. A cell with fewer seeds than another one gets the mark `f`."""
    most = max((cell.n for cell in column), default=0)
    return [replace(cell, marks=cell.marks | {"f"}) if 0 < cell.n < most else cell for cell in column]


def mark_places(column: Sequence[Cell], common: frozenset[str]) -> list[Cell]:
    """Return the cells of a column with their places. The best needs two comparable figures, the second needs three.

    Figures that print the same share a place. A figure of other data or settings than the others has no place.
    """

    def printed(cell: Cell) -> float | None:
        is_rival = cell.mean is not None and not (cell.marks - common) & NO_RIVAL
        return round(cell.mean, 1) if is_rival and cell.mean is not None else None

    rivals = [value for cell in column if (value := printed(cell)) is not None]
    figures = sorted({*rivals}, reverse=True)
    if len(figures) < 2:
        return list(column)
    places = {figures[0]: 1} | ({figures[1]: 2} if len(rivals) > 2 else {})
    found = ((cell, printed(cell)) for cell in column)
    return [cell if value is None else replace(cell, place=places.get(value, 0)) for cell, value in found]

"""A cell of a table: its figure, its marks, and how it compares with the paper's, a reference's and LoRA's."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from flexlora.report.frame import Figure
from flexlora.report.marks import NO_RIVAL, Usual, marks_of
from flexlora.report.paired_test import Paired
from flexlora.report.table import Average, Column

Interval = tuple[float, float]


@dataclass(frozen=True)
class Cell:
    """Mean, sample standard deviation (None for one seed) and number of seeds; or `word` where there is no figure."""

    mean: float | None = None
    std: float | None = None
    n: int = 0
    marks: frozenset[str] = frozenset()
    word: str = ""
    by_seed: Mapping[int, float] = field(default_factory=dict)
    place: int = 0
    """Among our rows that can be compared: 1 for the best figure of the column, 2 for the second, as printed."""
    interval: Interval | None = None
    """Of a figure of one seed, in percent, over the examples, where it was asked for."""
    paired: Paired | None = None
    """Against the reference's cell, where one was asked for."""
    ratio: "Cell | None" = None
    """Of a cost: to LoRA's, round by round."""
    printed: float | None = None
    """What the paper prints here."""
    difference: float | None = None
    """Our figure less the paper's, in points, where they can be compared."""
    text: str | None = None
    """How the paper prints it, where that says more than the number."""


def summarise(values: Sequence[float]) -> Cell:
    """The cell of one value a seed; at least one."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return Cell(statistics.fmean(values), std, len(values))


def seeds_cell(figures: Sequence[Figure], usual: Usual | None) -> Cell:
    """The cell of one row's figures in a column."""
    if not figures:
        return Cell(word="–")
    by_seed = {one.run.record.seed: one.value for one in figures if one.value is not None}
    if not by_seed:
        statuses = {one.run.record.status for one in figures}
        return Cell(word=", ".join(sorted(status if status != "done" else "no figure" for status in statuses)))
    used = [one.run.record for one in figures if one.value is not None]
    marks = marks_of(used, usual) | ({"x"} if len(used) < len(figures) else set())
    return replace(summarise([*by_seed.values()]), marks=marks, by_seed=by_seed)


def average_cell(row: Mapping[Column, Sequence[Figure]], average: Average, cells: Sequence[Cell]) -> Cell:
    """The average of each seed that has all its columns (`cells` are the row's); `n/8` where none has."""
    by_seed: dict[int, dict[Column, float]] = {}
    for column in average.columns:
        for one in row.get(column, ()):
            of_seed = by_seed.setdefault(one.run.record.seed, {})  # also of a seed that has no figure at all
            if one.value is not None:
                of_seed[column] = one.value
    size = len(average.columns)
    whole = {seed: average.mean(values) for seed, values in by_seed.items() if len(values) == size}
    if not whole:
        return Cell(word=f"{max(map(len, by_seed.values()), default=0)}/{size}")
    marks = frozenset().union(*(cell.marks for cell in cells))
    marks = marks - {"x", "f"} | ({"x"} if len(whole) < len(by_seed) else set())
    return replace(summarise([*whole.values()]), marks=marks, by_seed=whole)


def count_cell(figures: Sequence[Figure]) -> Cell:
    """The mean of a number of parameters over a row's runs."""
    values = [one.value for one in figures if one.value is not None]
    return summarise(values) if values else Cell(word="–")


def mark_fewer(column: Sequence[Cell]) -> list[Cell]:
    """The same cells, those with fewer seeds than another one marked so."""
    most = max((cell.n for cell in column), default=0)
    return [replace(cell, marks=cell.marks | {"f"}) if 0 < cell.n < most else cell for cell in column]


def mark_places(column: Sequence[Cell], common: frozenset[str]) -> list[Cell]:
    """The same cells with their places: the best of two or more, the second of three or more.

    Figures that print the same share a place. What is not of the data and settings of the others has none.
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

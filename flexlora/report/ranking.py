"""Compare rows over the tasks of a table: on how many tasks a row is better, and the mean of its ranks."""

import math
from collections.abc import Sequence

from flexlora.report.cells import Cell
from flexlora.report.marks import NO_RIVAL
from flexlora.report.sheet import Row
from flexlora.report.table import Column

FEWEST = 2
"""The smallest number of tasks over which rows are compared."""


def over_tasks(
    rows: Sequence[Row], columns: Sequence[Column], main: Sequence[Column], common: frozenset[str]
) -> list[str]:
    """Return one line for each row that is compared with its reference row on several tasks, and one of mean ranks.

    Each task counts once, with the mean difference over the shared seeds. p is that of a two-sided Wilcoxon signed-rank
    test over the tasks, with Holm's correction for the number of rows.
    """
    places = [i for i, column in enumerate(columns) if column in main]
    compared = [(row, differences) for row in rows if len(differences := _differences(row, places)) >= FEWEST]
    if not compared:
        return []
    corrected = holm([_wilcoxon(differences) for _, differences in compared])
    lines = [_line(row, found, p) for (row, found), p in zip(compared, corrected, strict=True)]
    return [*lines, *_mean_ranks(rows, places, common)]


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Return the p values with Holm's correction. None, an undefined p, does not count."""
    order = sorted((p, i) for i, p in enumerate(values) if p is not None)
    corrected: list[float | None] = [None] * len(values)
    highest = 0.0
    for before, (p, i) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - before)))
        corrected[i] = highest
    return corrected


def _differences(row: Row, places: Sequence[int]) -> list[float]:
    return [pair.difference for i in places if (pair := row.cells[i].paired) is not None]


def _wilcoxon(differences: Sequence[float]) -> float | None:
    from scipy import stats  # here, because it takes a second to import and most reports do not need it

    if not any(differences):
        return None
    p = float(stats.wilcoxon(differences).pvalue)
    return p if math.isfinite(p) else None


def _line(row: Row, differences: Sequence[float], p: float | None) -> str:
    assert row.reference is not None
    better = sum(difference > 0 for difference in differences)
    mean = math.fsum(differences) / len(differences)
    sure = "p not defined" if p is None else f"p {p:.2g} (Wilcoxon over tasks, Holm-corrected)"
    pair = f"{_name(row)} against {_name(row.reference)}"
    return f"{pair}: better on {better} of {len(differences)}, mean {mean:+.1f}, {sure}"


def _name(row: Row) -> str:
    return " ".join(row.label.split())


def _mean_ranks(rows: Sequence[Row], places: Sequence[int], common: frozenset[str]) -> list[str]:
    """Return the line of the mean ranks over the tasks on which all rows can be compared; 1 is the best."""
    from scipy.stats import rankdata

    whole = [i for i in places if all(_counts(row.cells[i], common) for row in rows)]
    if len(whole) < FEWEST or len(rows) < FEWEST:
        return []
    ranks = rankdata([[-float(row.cells[i].mean or 0.0) for row in rows] for i in whole], axis=1).mean(axis=0)
    best = sorted(zip(ranks.tolist(), map(_name, rows), strict=True))
    return [f"mean rank over {len(whole)} tasks: {', '.join(f'{name} {rank:.2f}' for rank, name in best)}"]


def _counts(cell: Cell, common: frozenset[str]) -> bool:
    return cell.mean is not None and not (cell.marks - common) & NO_RIVAL

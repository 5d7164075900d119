"""Build the tables of scores: one for each scale and model, because figures of two models cannot be compared."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from flexlora.report.cells import Cell, mark_places
from flexlora.report.intervals import set_intervals
from flexlora.report.marks import NO_RIVAL, NOT_COMPARABLE
from flexlora.report.paired_test import LEVEL, Paired, paired
from flexlora.report.paper_rows import beside_paper
from flexlora.report.ranking import holm, over_tasks
from flexlora.report.record_values import figure, is_generated, measures_cost
from flexlora.report.sheet import (
    Row,
    Sheet,
    common_marks,
    failures,
    footnotes_of,
    label_rows,
    our_rows,
    overrides,
    rates_for_a_start,
    scores_in,
    set_column,
    shows,
    what_all_share,
)
from flexlora.report.table import ADAPTER, TRAINABLE, Average, Column, Count, Table
from flexlora.results.collect import Run, distinct_runs

HOW_COMPARED = (
    "Less {}'s: over the seeds that both rows have; p: two-sided paired t test, not corrected for their number; "
    "p*: below 0.05 with Holm's correction for all p of the table."
)
HOW_SURE = (
    "Below a figure of one seed, and a difference in one seed: its 95 % interval over 1,000 bootstrap samples of the "
    "evaluation's examples; other seeds may differ by more."
)


@dataclass(frozen=True)
class Asked:
    """The options of a table of scores."""

    evaluation: str = "last"
    all_tasks: bool = False
    """Whether tasks without a run are also shown."""
    against: str | None = None
    """The method that the rows are compared with, seed by seed. None: no comparison."""
    intervals: bool = False
    """Whether figures of one seed, and differences in one seed, get their intervals over the examples."""


def build_scores(table: Table, runs: Iterable[Run], asked: Asked) -> list[Sheet]:
    """Return the table of each scale and model that has runs of its tasks. The paper's scale comes first."""
    tasks = {column.task for column in table.columns}
    by_place: dict[tuple[bool, str, str], list[Run]] = {}
    for run in runs:
        if run.record.task in tasks and _belongs(run, table):
            key = (run.record.scale != "paper", run.record.scale, run.record.model)
            by_place.setdefault(key, []).append(run)
    return [_sheet(table, by_place[key], asked) for key in sorted(by_place)]


def _belongs(run: Run, table: Table) -> bool:
    record = run.record
    if measures_cost(record) or record.variant == table.without_variant or not shows(table, record):
        return False
    changed = {part.split("-", 1)[0] for part in overrides(record.variant) if part.startswith("method.")}
    if table.varied and changed - {f"method.{table.varied}"}:
        return False
    return all(_setting(record.config, name, value) == value for name, value in table.fixed)


def _setting(config: Mapping[str, object], name: str, otherwise: object) -> object:
    """Return the value of a setting such as `method.direction`, or `otherwise` if the method does not have it."""
    group, key = name.split(".")
    values = config.get(group)
    absent = otherwise if group == "method" else None
    return values.get(key, absent) if isinstance(values, Mapping) else absent


def _sheet(table: Table, found: list[Run], asked: Asked) -> Sheet:
    runs, copies = distinct_runs(found)
    scale, model = runs[0].record.scale, runs[0].record.model
    with_runs = _with_runs(table, runs, asked.evaluation)
    scores = list(table.columns) if asked.all_tasks else with_runs
    averages = [average for average in table.averages if _is_shown(average, scores)]
    columns = [ADAPTER, TRAINABLE, *scores, *averages]

    rows = our_rows(table, runs, columns, asked.evaluation)
    common = common_marks(rows, columns)
    for i, column in enumerate(columns):
        if not isinstance(column, Count):
            set_column(rows, i, mark_places([row.cells[i] for row in rows], common))
    shared = label_rows(rows)
    if asked.against:
        _compare(rows, [row for row in rows if row.method == asked.against], shared, common)
        _mark_sure(rows)
    if asked.intervals:
        set_intervals(rows, columns, runs, asked.evaluation)
    cells = [cell for row in rows for cell in row.cells]
    compared = any(cell.paired for cell in cells)

    generated = all(is_generated(run.record) for run in runs)
    is_paper = scale == "paper" and model == table.paper_model and not generated and not common & NOT_COMPARABLE
    numbers = Counter(cell.n for cell in scores_in(rows, columns)) if table.wide else Counter[int]()
    usual_seeds = max(numbers, key=lambda n: (numbers[n], n), default=None)
    return Sheet(
        table,
        scale,
        model,
        asked.evaluation,
        _title(table, scale, model, is_paper, generated, asked.evaluation, common),
        captions=[
            f"{len({*table.main} & {*with_runs})} of {len(table.main)} {table.parts}, "
            f"{asked.evaluation} evaluation of each run, in percent: "
            f"{_what_a_cell_is(usual_seeds, len(numbers) > 1)}.",
            *what_all_share(shared, common),
            *([HOW_COMPARED.format(asked.against)] if compared else []),
            *([HOW_SURE] if any(cell.interval or (cell.paired and cell.paired.interval) for cell in cells) else []),
        ],
        columns=columns,
        groups=beside_paper(table, rows, columns) if is_paper else [[row] for row in rows],
        notes=[
            *footnotes_of(table, columns, is_paper),
            *copies,
            *([_not_compared(asked.against)] if asked.against and not compared else []),
            *(over_tasks(rows, columns, table.main, common) if compared else []),
            *rates_for_a_start(runs),
            *failures(runs),
        ],
        common_marks=common,
        usual_seeds=usual_seeds,
        against=asked.against if compared else None,
    )


def _with_runs(table: Table, runs: Sequence[Run], evaluation: str) -> list[Column]:
    """Return the columns of the tasks that have runs.

    An optional column is left out if no run has its figure, unless no other column remains.
    """
    present = {run.record.task for run in runs}
    columns = [column for column in table.columns if column.task in present]

    def is_there(column: Column) -> bool:
        of_task = (run.record for run in runs if run.record.task == column.task)
        return any(figure(record, column.metric, evaluation) is not None for record in of_task)

    return [column for column in columns if not column.optional or is_there(column)] or columns


def _is_shown(average: Average, scores: Sequence[Column]) -> bool:
    there = len({*average.columns} & {*scores})
    return there == len(average.columns) if average.optional else there > 1


def _title(
    table: Table, scale: str, model: str, is_paper: bool, generated: bool, evaluation: str, common: frozenset[str]
) -> str:
    title = f"{table.paper_title} · {model}" if is_paper else _title_of_ours(table, scale, model, generated, common)
    if evaluation == "best":
        title += " · BEST evaluation of each run, chosen on the very data it is measured on"
    return title


def _title_of_ours(table: Table, scale: str, model: str, generated: bool, common: frozenset[str]) -> str:
    """Return the title of a table that cannot be compared with the paper. It contains the reason."""
    place = f"{table.tasks}, {model}, scale={scale}"
    if scale == "tiny":
        why = "generated data and a small model" if generated else "a small model"
    elif generated:
        why = "generated data"
    elif table.paper_model is None:
        return place
    elif model != table.paper_model:
        why = f"another model than the paper's {table.paper_model}"
    elif scale != "paper":
        why = "not run at scale=paper"
    else:
        why = "another length of training or batch than the task's" if common & {"t"} else "not the paper's data"
    return f"{place}: {why}; these figures say nothing about the paper" if table.paper_model else f"{place}: {why}"


def _what_a_cell_is(usual_seeds: int | None, with_others: bool) -> str:
    spread = "mean ± sample standard deviation"
    if usual_seeds is None:
        return f"{spread} (seeds)"
    if usual_seeds == 1:
        return f"one seed, or {spread} (seeds)" if with_others else "one seed"
    return f"{spread} of {usual_seeds} seeds{'; other numbers of seeds in brackets' if with_others else ''}"


def _compare(rows: Sequence[Row], references: Sequence[Row], shared: set[str], common: frozenset[str]) -> None:
    """Set the differences between the cells of each row and those of its reference row."""
    for row in rows:
        reference = _reference(row, references, shared)
        if reference is not None:
            row.reference = reference
            pairs = zip(row.cells, reference.cells, strict=True)
            row.cells = [replace(cell, paired=_paired(cell, other, common)) for cell, other in pairs]


def _mark_sure(rows: Sequence[Row]) -> None:
    """Mark the differences whose p is below the level with Holm's correction for all p of the table."""
    cells = [(row, i, pair) for row in rows for i, cell in enumerate(row.cells) if (pair := cell.paired)]
    for (row, i, pair), p in zip(cells, holm([pair.p for _, _, pair in cells]), strict=True):
        if p is not None and p < LEVEL:
            row.cells[i] = replace(row.cells[i], paired=replace(pair, is_sure=True))


def _reference(row: Row, references: Sequence[Row], shared: set[str]) -> Row | None:
    """Return the row that a row is compared with, or None.

    It is the reference method's row with the same variant, otherwise its default row, otherwise its only row. The
    default row has no overrides except those that all rows of the table share.
    """
    same_variant = [other for other in references if other.variant == row.variant and other.method != row.method]
    default = [other for other in references if not overrides(other.variant) - shared]
    for found in (same_variant, default, references if len(references) == 1 else []):
        if found:
            return found[0] if found[0] is not row else None
    return None


def _paired(cell: Cell, reference: Cell, common: frozenset[str]) -> Paired | None:
    # Two cells on a part of the data may be compared although others use all data: other parts have the mark `d`.
    unlike = (cell.marks ^ reference.marks) & (NO_RIVAL - {"o"}) or (cell.marks & reference.marks - common) & {"d", "m"}
    if unlike or cell.protocols != reference.protocols:
        return None
    return paired(cell.by_seed, reference.by_seed)


def _not_compared(against: str) -> str:
    return (
        f"nothing is compared with {against}: it has no row here, or no other, or several and none is its default "
        "or of the other row's variant"
    )

"""From the runs under a folder to tables: one for each scale and model, as the figures of two never compare."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from flexlora.report.cells import (
    MARKS,
    NO_RIVAL,
    Cell,
    average_cell,
    figure,
    is_generated,
    mark_fewer,
    mark_places,
    measures_cost,
    method_settings,
    parameter_cell,
    score_cell,
    usual_data,
)
from flexlora.report.paired_test import Paired, paired
from flexlora.report.published import Published, lines_of, printed_value
from flexlora.report.table import ADAPTER, TRAINABLE, Average, Column, Count, PaperRow, Table
from flexlora.results.collect import Run, without_duplicates

# A difference between figures of these and the paper's would say nothing.
NOT_COMPARABLE = {"s", "v", "g"}
SHOWN_FAILURES = 8
HOW_COMPARED = (
    "Less {}'s: over the seeds that both rows have; p: two-sided paired t test, not corrected for their number."
)
HOW_SURE = (
    "Below a figure of one seed, and a difference in one seed: its 95 % interval over 1,000 bootstrap samples of the "
    "evaluation's examples; other seeds may differ by more."
)


@dataclass
class Row:
    """One line. `kind` is `ours` or `paper`; `difference` is ours less the paper's where both exist, in points."""

    kind: str
    label: str
    method: str
    variant: str
    cells: list[Cell]
    settings: Mapping[str, object] = field(default_factory=dict)
    """Of our row's method."""
    printed: list[float | None] = field(default_factory=list)
    difference: list[float | None] = field(default_factory=list)
    paired: list[Paired | None] = field(default_factory=list)
    """Against the reference's row, where one was asked for."""
    paired_intervals: list[tuple[float, float] | None] = field(default_factory=list)
    """In points, of differences in one seed, over the examples, where it was asked for."""
    ratios: list[Cell] = field(default_factory=list)
    """Of a table of costs: to LoRA's, round by round."""
    intervals: list[tuple[float, float] | None] = field(default_factory=list)
    """In percent, of figures of one seed, over the examples, where it was asked for."""
    params: dict[str, str] = field(default_factory=dict)
    """For the paper's rows: its parameter count as printed, by the `metric` of the column it belongs to."""


@dataclass
class Sheet:
    """One table, ready to be printed: `groups` are rows that belong together."""

    table: Table
    scale: str
    model: str
    evaluation: str
    title: str
    captions: list[str]
    columns: list[Column]
    groups: list[list[Row]]
    notes: list[str]
    common_marks: frozenset[str]
    usual_seeds: int | None = None
    """In a wide table, the number of seeds of most figures: it is said above."""
    against: str | None = None
    """The method whose rows the others are compared with, seed by seed."""


def build(
    table: Table,
    runs: Iterable[Run],
    evaluation: str = "last",
    all_tasks: bool = False,
    against: str | None = None,
    intervals: bool = False,
) -> list[Sheet]:
    """The table of each scale and model that has runs of its tasks; the paper's scale first.

    `against`: the method that the rows are compared with, seed by seed.
    `intervals`: whether figures of one seed, and differences in one, get theirs, over the examples.
    """
    tasks = {column.task for column in table.columns}
    by_place: dict[tuple[bool, str, str], list[Run]] = {}
    for run in runs:
        if run.record.task in tasks and _belongs(run, table):
            key = (run.record.scale != "paper", run.record.scale, run.record.model)
            by_place.setdefault(key, []).append(run)
    return [_sheet(table, by_place[key], evaluation, all_tasks, against, intervals) for key in sorted(by_place)]


def _belongs(run: Run, table: Table) -> bool:
    record = run.record
    if measures_cost(record) or record.variant == table.without_variant:
        return False
    if table.only and record.method not in table.only:
        return False
    changed = {part.split("-", 1)[0] for part in _overrides(record.variant) if part.startswith("method.")}
    if table.varied and changed - {f"method.{table.varied}"}:
        return False
    return all(_setting(record.config, name, value) == value for name, value in table.fixed)


def _setting(config: Mapping[str, object], name: str, otherwise: object) -> object:
    """The setting `method.direction`; where a method does not have it, `otherwise`."""
    group, key = name.split(".")
    values = config.get(group)
    absent = otherwise if group == "method" else None
    return values.get(key, absent) if isinstance(values, Mapping) else absent


def _sheet(
    table: Table, found: list[Run], evaluation: str, all_tasks: bool, against: str | None, intervals: bool
) -> Sheet:
    runs, notes = without_duplicates(found)
    scale, model = runs[0].record.scale, runs[0].record.model
    generated = all(is_generated(run.record) for run in runs)
    found_columns = _with_runs(table, runs, evaluation)
    scores = list(table.columns) if all_tasks else found_columns
    averages = [average for average in table.averages if _is_shown(average, scores)]
    columns = [ADAPTER, TRAINABLE, *scores, *averages]

    rows = _our_rows(table, runs, columns, evaluation)
    if intervals:
        for row in rows:
            row.intervals = [_interval(row, *pair, runs, evaluation) for pair in zip(row.cells, columns, strict=True)]
    common = _common_marks(rows, columns)
    for i, column in enumerate(columns):
        if not isinstance(column, Count):
            _set_column(rows, i, mark_places([row.cells[i] for row in rows], common))
    shared = label_rows(rows)
    references = [row for row in rows if row.method == against]
    for row in rows:
        reference = _reference(row, references, shared)
        if reference is not None:
            row.paired = [_paired(*cells, common) for cells in zip(row.cells, reference.cells, strict=True)]
            if intervals:
                row.paired_intervals = [
                    _paired_interval(row, reference, i, column, runs, evaluation) for i, column in enumerate(columns)
                ]
    compared = any(row.paired for row in rows)
    is_paper = scale == "paper" and model == table.paper_model and not generated and not common & NOT_COMPARABLE
    groups = [[row] for row in rows]
    if is_paper:
        groups = beside_paper(table, rows, columns)

    numbers = Counter(cell.n for cell in _scores(rows, columns)) if table.wide else Counter[int]()
    usual_seeds = max(numbers, key=lambda n: (numbers[n], n), default=None)
    captions = [
        f"{len({*table.main} & {*found_columns})} of {len(table.main)} {table.parts}, "
        f"{evaluation} evaluation of each run, in percent: "
        f"{_what_a_cell_is(usual_seeds, len(numbers) > 1)}.",
        *([f"All rows: {', '.join(sorted(shared))}."] if shared else []),
        *(f"All figures: {text}." for mark, text in MARKS.items() if mark in common),
        *([HOW_COMPARED.format(against)] if compared else []),
        *([HOW_SURE] if any(any(row.intervals) or any(row.paired_intervals) for row in rows) else []),
    ]
    if is_paper:
        shown = {None, *(column.task for column in columns)}
        notes = [text for task, text in table.footnotes if task in shown] + notes
    title = _title(table, scale, model, is_paper, generated)
    if evaluation == "best":
        title += " · BEST evaluation of each run, chosen on the very data it is measured on"
    if against and not compared:
        notes.append(
            f"nothing is compared with {against}: it has no row here, or no other, or several and none is its default "
            "or of the other row's variant"
        )
    notes = notes + failures(runs)
    shown_against = against if compared else None
    return Sheet(
        table, scale, model, evaluation, title, captions, columns, groups, notes, common, usual_seeds, shown_against
    )


def _with_runs(table: Table, runs: list[Run], evaluation: str) -> list[Column]:
    """The columns of the tasks that were run; without optional ones that no run has, unless there are no others."""
    present = {run.record.task for run in runs}
    columns = [column for column in table.columns if column.task in present]

    def is_there(column: Column) -> bool:
        of_task = (run.record for run in runs if run.record.task == column.task)
        return any(figure(record, column.metric, evaluation) is not None for record in of_task)

    return [column for column in columns if not column.optional or is_there(column)] or columns


def _is_shown(average: Average, scores: Sequence[Column]) -> bool:
    there = len({*average.columns} & {*scores})
    return there == len(average.columns) if average.optional else there > 1


def _title(table: Table, scale: str, model: str, is_paper: bool, generated: bool) -> str:
    if is_paper:
        return f"{table.paper_title} · {model}"
    if scale == "tiny":
        why = "generated data and a small model" if generated else "a small model"
    elif generated:
        why = "generated data"
    elif model != table.paper_model:
        why = f"another model than the paper's {table.paper_model}"
    elif scale != "paper":
        why = "not run at scale=paper"
    else:
        why = "not the paper's data"
    return f"{table.tasks}, {model}, scale={scale}: {why}; these figures say nothing about the paper"


def _our_rows(table: Table, runs: list[Run], columns: Sequence[Column], evaluation: str) -> list[Row]:
    rows: dict[tuple[str, str], dict[str, list[Run]]] = {}
    data: dict[str, list[Run]] = {}
    for run in runs:
        record = run.record
        rows.setdefault((record.method, record.variant), {}).setdefault(record.task, []).append(run)
        data.setdefault(record.task, []).append(run)
    usual = {task: usual_data(seen) for task, seen in data.items()}

    def cells(by_task: dict[str, list[Run]]) -> list[Cell]:
        def cell(column: Column) -> Cell:
            if isinstance(column, Count):
                return parameter_cell([run for seen in by_task.values() for run in seen], column)
            if isinstance(column, Average):
                return average_cell(by_task, column, [cell(part) for part in column.columns], evaluation)
            return score_cell(by_task.get(column.task, []), column, evaluation, usual.get(column.task))

        return [cell(column) for column in columns]

    def order(key: tuple[str, str]) -> tuple[int, str, bool, int, str]:
        """By method; its default row first, or on a part of the data the one with the fewest overrides."""
        method, variant = key
        place = table.methods.index(method) if method in table.methods else len(table.methods)
        return place, method, variant != "default", variant.count("+"), variant

    ours = [
        Row("ours", key[0], *key, cells(rows[key]), method_settings(run for seen in rows[key].values() for run in seen))
        for key in sorted(rows, key=order)
    ]
    for i, column in enumerate(columns):
        if not isinstance(column, Count):
            _set_column(ours, i, mark_fewer([row.cells[i] for row in ours]))
    return ours


def _interval(row: Row, cell: Cell, column: Column, runs: list[Run], evaluation: str) -> tuple[float, float] | None:
    """Of a figure of one seed, in percent."""
    if isinstance(column, Count | Average) or cell.n != 1:
        return None
    from flexlora.report.bootstrap import interval  # here, as it needs numpy and most reports do without

    (seed,) = cell.by_seed
    return _percent(interval(_run_of(row, column, seed, runs), column.metric, evaluation))


def _paired_interval(
    row: Row, reference: Row, place: int, column: Column, runs: list[Run], evaluation: str
) -> tuple[float, float] | None:
    """Of a difference in one seed, in points."""
    pair = row.paired[place]
    if isinstance(column, Count | Average) or pair is None or pair.n != 1:
        return None
    from flexlora.report.bootstrap import difference_interval

    (seed,) = row.cells[place].by_seed.keys() & reference.cells[place].by_seed.keys()
    ours, other = (_run_of(which, column, seed, runs) for which in (row, reference))
    return _percent(difference_interval(ours, other, column.metric, evaluation))


def _run_of(row: Row, column: Column, seed: int, runs: list[Run]) -> Run:
    key = (column.task, row.method, row.variant, seed)
    return next(r for r in runs if (r.record.task, r.record.method, r.record.variant, r.record.seed) == key)


def _percent(found: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if found is None else (100 * found[0], 100 * found[1])


def _set_column(rows: Sequence[Row], place: int, cells: Sequence[Cell]) -> None:
    for row, cell in zip(rows, cells, strict=True):
        row.cells[place] = cell


def _reference(row: Row, references: Sequence[Row], shared: set[str]) -> Row | None:
    """What a row is compared with: of another method the row of the same variant, else its default or its only one.

    The default row is the one with nothing of its own: no override but those that all rows of the table share.
    """
    alike = [other for other in references if other.variant == row.variant and other.method != row.method]
    default = [other for other in references if not _overrides(other.variant) - shared]
    for found in (alike, default, references if len(references) == 1 else []):
        if found:
            return found[0] if found[0] is not row else None
    return None


def _overrides(variant: str) -> set[str]:
    return {part for part in variant.split("+") if part != "default"}


def _paired(cell: Cell, reference: Cell, common: frozenset[str]) -> Paired | None:
    # Two on a part of the data are alike where others are on the whole: parts of other rows are marked `d`.
    unlike = (cell.marks ^ reference.marks) & NO_RIVAL or (cell.marks & reference.marks - common) & {"d", "m"}
    return None if unlike else paired(cell.by_seed, reference.by_seed)


def beside_paper(table: Table, rows: list[Row], columns: Sequence[Column]) -> list[list[Row]]:
    """Rows by method, followed by the paper's row they stand beside; then the paper's rows that stand beside none."""
    papers = {paper: _paper_row(paper, table, columns) for paper in table.paper_rows}
    groups: dict[tuple[str, PaperRow | None], list[Row]] = {}
    for row in rows:
        beside = next((paper for paper in papers if paper.method == row.method and _fits(paper, row)), None)
        groups.setdefault((row.method, beside), []).append(row)
    for (_, beside), group in groups.items():
        if beside is not None:
            paper = papers.pop(beside)
            for row in group:
                row.printed = paper.printed
                row.difference = [_difference(*pair) for pair in zip(row.cells, paper.printed, strict=True)]
            group.append(paper)
    rest = [paper for paper in papers.values() if any(value is not None for value in paper.printed)]
    return [*groups.values(), *([rest] if rest else [])]


def _fits(paper: PaperRow, row: Row) -> bool:
    return all(row.settings.get(name) in values for name, values in paper.settings)


def _paper_row(paper: PaperRow, table: Table, columns: Sequence[Column]) -> Row:
    lines = lines_of(paper, table.published)
    cells = [_paper_cell(lines, column) for column in columns]
    label = f"paper: {paper.row}{' (inferred)' if any(line.inferred == 'label' for line in lines) else ''}"
    printed = [cell.mean for cell in cells]
    return Row("paper", label, paper.method, "", cells, printed=printed, params=_printed_params(lines))


def _paper_cell(lines: list[Published], column: Column) -> Cell:
    """What the paper prints; an average that it does not print is that of its figures where it prints them all."""
    value = printed_value(lines, column)
    if value is None and isinstance(column, Average):
        parts = {part: printed_value(lines, part) for part in column.columns}
        there = {part: printed for part, printed in parts.items() if printed is not None}
        if len(there) == len(parts):
            return Cell(mean=column.mean(there), marks=frozenset("c"))
    return Cell(mean=value)


def _printed_params(lines: list[Published]) -> dict[str, str]:
    line = lines[0]
    return {(ADAPTER if line.params_of in ("adapter", "unknown") else TRAINABLE).metric: line.params}


def _difference(cell: Cell, printed: float | None) -> float | None:
    if cell.mean is None or printed is None or cell.marks & NOT_COMPARABLE:
        return None
    return cell.mean - printed


def _common_marks(rows: Sequence[Row], columns: Sequence[Column]) -> frozenset[str]:
    """Marks that every score has: they are said once, above the table."""
    marks = [cell.marks for cell in _scores(rows, columns)]
    return frozenset.intersection(*marks) if marks else frozenset()


def _what_a_cell_is(usual_seeds: int | None, with_others: bool) -> str:
    spread = "mean ± sample standard deviation"
    if usual_seeds is None:
        return f"{spread} (seeds)"
    if usual_seeds == 1:
        return f"one seed, or {spread} (seeds)" if with_others else "one seed"
    return f"{spread} of {usual_seeds} seeds{'; other numbers of seeds in brackets' if with_others else ''}"


def _scores(rows: Sequence[Row], columns: Sequence[Column]) -> list[Cell]:
    """The cells of our rows that have a score."""
    pairs = [pair for row in rows for pair in zip(row.cells, columns, strict=True)]
    return [cell for cell, column in pairs if cell.n and not isinstance(column, Count)]


def label_rows(rows: Sequence[Row]) -> set[str]:
    """Call each row by its method and what of its variant is its own; returned is what all share, a single row too."""
    shared = set.intersection(*(_overrides(row.variant) for row in rows)) if rows else set()
    for row in rows:
        own = [part for part in row.variant.split("+") if part not in shared | {"default"}]
        row.label = "\n".join([row.method, *(f"  {part}" for part in own)])
    return shared


def failures(runs: list[Run]) -> list[str]:
    failed = [run for run in runs if run.record.status != "done"]
    lines = [
        f"{run.record.status}: {run.record.task} {run.record.method} seed {run.record.seed}: {run.record.error} "
        f"({run.path})"
        for run in failed[:SHOWN_FAILURES]
    ]
    return lines + ([f"and {len(failed) - SHOWN_FAILURES} more"] if len(failed) > SHOWN_FAILURES else [])

"""From the runs under a folder to tables: one for each scale and model, as the figures of two never compare."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from flexlora.report.cells import (
    MARKS,
    Cell,
    average_cell,
    is_generated,
    mark_fewer,
    parameter_cell,
    score_cell,
    usual_data,
)
from flexlora.report.published import Published, lines_of, printed_value
from flexlora.report.tables import ADAPTER, AVERAGE, TRAINABLE, Column, PaperRow, Table
from flexlora.results.collect import Run

# A difference between figures of these and the paper's would say nothing.
NOT_COMPARABLE = {"s", "g"}
SHOWN_FAILURES = 8


@dataclass
class Row:
    """One line. `kind` is `ours` or `paper`; `difference` is ours less the paper's where both exist, in points."""

    kind: str
    label: str
    method: str
    variant: str
    cells: list[Cell]
    printed: list[float | None] = field(default_factory=list)
    difference: list[float | None] = field(default_factory=list)
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


def build(table: Table, runs: Iterable[Run], evaluation: str = "last", all_tasks: bool = False) -> list[Sheet]:
    """The table of each scale and model that has runs of its tasks; the paper's scale first."""
    tasks = {column.task for column in table.columns}
    by_place: dict[tuple[bool, str, str], list[Run]] = {}
    for run in runs:
        if run.record.task in tasks:
            key = (run.record.scale != "paper", run.record.scale, run.record.model)
            by_place.setdefault(key, []).append(run)
    return [_sheet(table, by_place[key], evaluation, all_tasks) for key in sorted(by_place)]


def _sheet(table: Table, found: list[Run], evaluation: str, all_tasks: bool) -> Sheet:
    runs, notes = _without_duplicates(found)
    scale, model = runs[0].record.scale, runs[0].record.model
    generated = all(is_generated(run.record) for run in runs)
    present = {run.record.task for run in runs}
    scores = [column for column in table.columns if all_tasks or column.task in present]
    averages = [AVERAGE] if all_tasks or len(present) > 1 else []
    columns = [ADAPTER, TRAINABLE, *scores, *averages]

    rows = _our_rows(table, runs, columns, evaluation)
    common = _common_marks(rows, columns)
    is_paper = scale == "paper" and model == table.paper_model and not generated and not common & NOT_COMPARABLE
    groups = [[row] for row in rows]
    if is_paper:
        groups = _beside_paper(table, rows, columns)

    variants = _common_parts([row.variant for row in rows])
    for row in rows:
        parts = [part for part in row.variant.split("+") if part not in variants]
        row.label = "\n".join([row.method, *(f"  {part}" for part in parts if part != "default")])

    tasks = list(dict.fromkeys(column.task for column in table.columns))
    captions = [
        f"{len(present)} of {len(tasks)} tasks, {evaluation} evaluation of each run, in percent: "
        "mean ± sample standard deviation (seeds).",
        *([f"All rows: {', '.join(sorted(variants))}."] if variants else []),
        *(f"All figures: {text}." for mark, text in MARKS.items() if mark in common),
    ]
    if is_paper:
        shown = {None, *(column.task for column in columns)}
        notes = [text for task, text in table.footnotes if task in shown] + notes
    title = _title(table, scale, model, is_paper, generated)
    if evaluation == "best":
        title += " · BEST evaluation of each run, chosen on the very data it is measured on"
    notes = notes + _failures(runs)
    return Sheet(table, scale, model, evaluation, title, captions, columns, groups, notes, common)


def _title(table: Table, scale: str, model: str, is_paper: bool, generated: bool) -> str:
    if is_paper:
        return f"{table.paper_title} · {model}"
    if scale == "tiny":
        why = "generated data and a small model" if generated else "a small model"
    elif generated:
        why = "generated data"
    elif model != table.paper_model:
        why = f"another model than the paper's {table.paper_model}"
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
    main = [column for column in table.columns if column.main]

    def cells(by_task: dict[str, list[Run]]) -> list[Cell]:
        def score(column: Column) -> Cell:
            return score_cell(by_task.get(column.task, []), column, evaluation, usual.get(column.task, ""))

        everything = [run for seen in by_task.values() for run in seen]
        found = {
            ADAPTER: lambda: parameter_cell(everything, ["adapter_active"]),
            TRAINABLE: lambda: parameter_cell(everything, ["adapter_active", "head"]),
            AVERAGE: lambda: average_cell(by_task, main, [score(column) for column in main], evaluation),
        }
        return [found[column]() if column in found else score(column) for column in columns]

    def order(key: tuple[str, str]) -> tuple[int, str, bool, str]:
        method, variant = key
        place = table.methods.index(method) if method in table.methods else len(table.methods)
        return place, method, variant != "default", variant

    ours = [Row("ours", key[0], *key, cells(rows[key])) for key in sorted(rows, key=order)]
    for i, column in enumerate(columns):
        if column.unit == "percent":
            for row, cell in zip(ours, mark_fewer([row.cells[i] for row in ours]), strict=True):
                row.cells[i] = cell
    return ours


def _beside_paper(table: Table, rows: list[Row], columns: Sequence[Column]) -> list[list[Row]]:
    """Rows by method, each method followed by the paper's row; then the paper's rows of methods that were not run."""
    papers = {paper.method: _paper_row(paper, table, columns) for paper in table.paper_rows}
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.method, []).append(row)
    for method, group in groups.items():
        if method in papers:
            paper = papers.pop(method)
            for row in group:
                row.printed = paper.printed
                row.difference = [_difference(*pair) for pair in zip(row.cells, paper.printed, strict=True)]
            group.append(paper)
    rest = [paper for paper in papers.values() if any(value is not None for value in paper.printed)]
    return [*groups.values(), *([rest] if rest else [])]


def _paper_row(paper: PaperRow, table: Table, columns: Sequence[Column]) -> Row:
    lines = lines_of(paper, table.published)
    printed = [printed_value(lines, column) for column in columns]
    label = f"paper: {paper.row}{' (inferred)' if any(line.inferred for line in lines) else ''}"
    cells = [Cell() if value is None else Cell(mean=value) for value in printed]
    return Row("paper", label, paper.method, "", cells, printed, params=_printed_params(lines))


def _printed_params(lines: list[Published]) -> dict[str, str]:
    line = lines[0]
    return {(ADAPTER if line.params_of == "adapter" else TRAINABLE).metric: line.params}


def _difference(cell: Cell, printed: float | None) -> float | None:
    if cell.mean is None or printed is None or cell.marks & NOT_COMPARABLE:
        return None
    return cell.mean - printed


def _common_marks(rows: Sequence[Row], columns: Sequence[Column]) -> frozenset[str]:
    """Marks that every score has: they are said once, above the table."""
    cells = [cell for row in rows for cell, column in zip(row.cells, columns, strict=True) if column.unit == "percent"]
    marks = [cell.marks for cell in cells if cell.n]
    return frozenset.intersection(*marks) if marks else frozenset()


def _common_parts(variants: list[str]) -> set[str]:
    """The parts of the variants' names that all rows share (of a single row too), apart from `default`."""
    return set.intersection(*(set(variant.split("+")) for variant in variants)) - {"default"} if variants else set()


def _without_duplicates(runs: list[Run]) -> tuple[list[Run], list[str]]:
    """Of runs that differ in nothing but their folder the latest, and a note for each one left out."""
    latest: dict[tuple[str, str, str, int], Run] = {}
    notes = []
    for run in sorted(runs, key=lambda run: run.record.started or ""):
        record = run.record
        key = (record.task, record.method, record.variant, record.seed)
        if key in latest:
            notes.append(f"left out, as {run.path} is the same run and later: {latest[key].path}")
        latest[key] = run
    return list(latest.values()), notes


def _failures(runs: list[Run]) -> list[str]:
    failed = [run for run in runs if run.record.status != "done"]
    lines = [
        f"{run.record.status}: {run.record.task} {run.record.method} seed {run.record.seed}: {run.record.error} "
        f"({run.path})"
        for run in failed[:SHOWN_FAILURES]
    ]
    return lines + ([f"and {len(failed) - SHOWN_FAILURES} more"] if len(failed) > SHOWN_FAILURES else [])

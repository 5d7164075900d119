"""Build the paper's rows, and place each of them beside our rows that it can be compared with."""

from collections.abc import Sequence
from dataclasses import replace

from flexlora.report.cells import Cell
from flexlora.report.marks import NOT_COMPARABLE
from flexlora.report.numbers import printed_count
from flexlora.report.published import Published, lines_of, printed_value
from flexlora.report.sheet import Row
from flexlora.report.table import ADAPTER, TRAINABLE, Average, Column, Count, PaperRow, Table


def beside_paper(
    table: Table, rows: Sequence[Row], columns: Sequence[Column], with_differences: bool = True
) -> list[list[Row]]:
    """Return groups of rows: our rows of a method with the paper's row that fits them, then the other paper's rows."""
    papers = {paper: _paper_row(paper, table, columns) for paper in table.paper_rows}
    groups: dict[tuple[str, PaperRow | None], list[Row]] = {}
    for row in rows:
        beside = next((paper for paper in papers if paper.method == row.method and _fits(paper, row)), None)
        groups.setdefault((row.method, beside), []).append(row)
    for (_, beside), group in groups.items():
        if beside is not None:
            paper = papers.pop(beside)
            for row in group:
                pairs = zip(row.cells, paper.cells, strict=True)
                row.cells = [_beside(ours, theirs.printed, with_differences) for ours, theirs in pairs]
            group.append(paper)
    rest = [paper for paper in papers.values() if any(cell.printed is not None for cell in paper.cells)]
    return [*groups.values(), *([rest] if rest else [])]


def _fits(paper: PaperRow, row: Row) -> bool:
    return all(row.settings.get(name) in values for name, values in paper.settings)


def _beside(cell: Cell, printed: float | None, with_difference: bool) -> Cell:
    if printed is None:
        return cell
    difference = None if cell.mean is None or cell.marks & NOT_COMPARABLE else cell.mean - printed
    return replace(cell, printed=printed, difference=difference if with_difference else None)


def _paper_row(paper: PaperRow, table: Table, columns: Sequence[Column]) -> Row:
    lines = lines_of(paper, table.published)
    label = f"paper: {paper.row}{' (inferred)' if any(line.inferred == 'label' for line in lines) else ''}"
    return Row("paper", label, paper.method, "", [_paper_cell(lines, column) for column in columns])


def _paper_cell(lines: list[Published], column: Column) -> Cell:
    """Return the cell with the number that the paper prints in this column.

    An average that the paper does not print is computed from its figures, if it prints all of them.
    """
    if isinstance(column, Count):
        return _printed_parameters(lines[0], column)
    value = printed_value(lines, column)
    if value is None and isinstance(column, Average):
        parts = {part: printed_value(lines, part) for part in column.columns}
        there = {part: printed for part, printed in parts.items() if printed is not None}
        if len(there) == len(parts):
            mean = column.mean(there)
            return Cell(mean=mean, printed=mean, marks=frozenset("c"))
    return Cell(mean=value, printed=value)


def _printed_parameters(line: Published, column: Count) -> Cell:
    """Return the cell with the row's number of parameters. It is empty if the number belongs to the other column."""
    counts = ADAPTER if line.params_of in ("adapter", "unknown") else TRAINABLE
    text = line.params if column == counts else ""
    return Cell(mean=printed_count(text), text=text)

"""A table as text for a terminal, and as CSV with one line a figure."""

import csv
import io
import textwrap
from collections.abc import Iterable, Sequence
from functools import partial

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from flexlora.report.build import Row, Sheet
from flexlora.report.cells import MARKS
from flexlora.report.lines import Entry, Line, blocks_within, corner, legend, printed_lines, value_of

WHERE = ("table", "scale", "model", "source", "method", "variant", "task", "metric", "evaluation")
CSV_COLUMNS = (*WHERE, "mean", "std", "n", "marks", "status", "paper", "difference")
INTERVAL_COLUMNS = ("low", "high")
RATIO_COLUMN = "ratio"
PAIRED_COLUMNS = ("against", "paired_difference", "paired_n", "p")
PAIRED_INTERVAL_COLUMNS = ("paired_low", "paired_high")
PLACES = ("", "bold", "underline")


def as_text(sheets: Sequence[Sheet], width: int, colour: bool = False) -> str:
    """Tables no wider than `width`: columns of another group, or that find no room, stand below under the same rows."""
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=colour, highlight=False, emoji=False, markup=False)
    for sheet in sheets:
        for line in (sheet.title, *sheet.captions):
            console.print(textwrap.fill(line, width), style="bold" if line is sheet.title else "")
        for columns in blocks_within(sheet, width, partial(_name, sheet), partial(_entry_text, sheet)):
            console.print()
            console.print(_rich_table(sheet, columns))
        console.print()
        for line in legend(sheet):
            console.print(textwrap.fill(line, width, subsequent_indent="   ", break_long_words=False), style="dim")
        console.print()
    return "\n".join(line.rstrip() for line in file.getvalue().rstrip().split("\n")) + "\n"


def as_csv(sheets: Sequence[Sheet]) -> str:
    """One line a figure. Scores are in percent, parameters in units, costs in the table's own; what is missing is
    empty, `status` says why."""
    file = io.StringIO()
    rows = [row for sheet in sheets for group in sheet.groups for row in group]
    columns = CSV_COLUMNS + (INTERVAL_COLUMNS if any(any(row.intervals) for row in rows) else ())
    columns += (RATIO_COLUMN,) if any(row.ratios for row in rows) else ()
    columns += PAIRED_COLUMNS if any(sheet.against for sheet in sheets) else ()
    columns += PAIRED_INTERVAL_COLUMNS if any(any(row.paired_intervals) for row in rows) else ()
    writer = csv.DictWriter(file, columns, lineterminator="\n", restval="")
    writer.writeheader()
    for sheet in sheets:
        for row in (row for group in sheet.groups for row in group):
            writer.writerows(_csv_lines(sheet, row))
    return file.getvalue()


def _rich_table(sheet: Sheet, columns: list[int]) -> RichTable:
    table = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(corner(sheet, columns), no_wrap=True)
    for i in columns:
        table.add_column("\n".join(sheet.columns[i].heading), justify="right", no_wrap=True)
    spaced = any(len(group) > 1 for group in sheet.groups)
    for group in sheet.groups:
        for row in group:
            for line in printed_lines(sheet, row):
                entries = [line.entries[i] for i in columns]
                if any(entry.text for entry in entries):  # the paper's rows may have nothing in this block
                    cells = [Text(_entry_text(sheet, entry), PLACES[entry.place]) for entry in entries]
                    table.add_row(_name(sheet, line), *cells, style="dim" if line.aside else "")
        if spaced:
            table.add_section()
    return table


def _name(sheet: Sheet, line: Line) -> str:
    return line.name.replace(" (", "\n  (") if sheet.table.wide else line.name


def _entry_text(sheet: Sheet, entry: Entry) -> str:
    return ("\n" if sheet.table.wide else " ").join(entry.parts)


def _csv_lines(sheet: Sheet, row: Row) -> Iterable[dict[str, object]]:
    shared = {"table": sheet.table.name, "scale": sheet.scale, "model": sheet.model, "method": row.method}
    for i, (cell, column) in enumerate(zip(row.cells, sheet.columns, strict=True)):
        value = value_of(cell, column, row)
        if row.kind == "paper" and value is None:
            continue
        figures: dict[str, object] = {
            "source": row.kind,
            "variant": row.variant,
            "task": column.task,
            "metric": column.metric,
            "mean": value,
            "marks": "".join(mark for mark in MARKS if mark in cell.marks),
        }
        if row.ratios:
            figures |= {RATIO_COLUMN: row.ratios[i].mean}
        if row.kind == "ours":
            figures |= {"evaluation": sheet.evaluation, "std": cell.std, "n": cell.n, "status": cell.word}
            figures |= {"paper": row.printed[i] if row.printed else None}
            figures |= {"difference": row.difference[i] if row.difference else None}
            if row.intervals and (span := row.intervals[i]):
                figures |= dict(zip(INTERVAL_COLUMNS, span, strict=True))
            if row.paired and (pair := row.paired[i]):
                values = (sheet.against, pair.difference, pair.n, pair.p)
                figures |= dict(zip(PAIRED_COLUMNS, values, strict=True))
            if row.paired_intervals and (span := row.paired_intervals[i]):
                figures |= dict(zip(PAIRED_INTERVAL_COLUMNS, span, strict=True))
        yield shared | figures

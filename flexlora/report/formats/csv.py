"""Write tables as CSV, with one line for each figure."""

import csv
import io
from collections.abc import Sequence

from flexlora.errors import printable
from flexlora.report.cells import Cell
from flexlora.report.marks import MARKS
from flexlora.report.sheet import Row, Sheet
from flexlora.report.table import Column

WHERE = ("table", "scale", "model", "source", "method", "variant", "task", "metric", "evaluation")
CSV_COLUMNS = (*WHERE, "mean", "std", "n", "marks", "status", "paper", "difference")
INTERVAL_COLUMNS = ("low", "high")
RATIO_COLUMN = "ratio"
PAIRED_COLUMNS = ("against", "paired_difference", "paired_n", "p")
# Beginnings of a cell that a spreadsheet takes for a formula.
FORMULAS = ("=", "+", "-", "@")
PAIRED_INTERVAL_COLUMNS = ("paired_low", "paired_high")


def as_csv(sheets: Sequence[Sheet]) -> str:
    """Return the CSV text with one line for each figure.

    Scores are in percent, parameters are plain numbers, and costs are in the table's units. A missing figure is empty,
    and `status` says why.
    """
    file = io.StringIO()
    cells = [cell for sheet in sheets for row in sheet.rows for cell in row.cells]
    columns = CSV_COLUMNS + (INTERVAL_COLUMNS if any(cell.interval for cell in cells) else ())
    columns += (RATIO_COLUMN,) if any(sheet.table.of_costs for sheet in sheets) else ()
    columns += PAIRED_COLUMNS if any(sheet.against for sheet in sheets) else ()
    columns += PAIRED_INTERVAL_COLUMNS if any(cell.paired and cell.paired.interval for cell in cells) else ()
    writer = csv.DictWriter(file, columns, lineterminator="\n", restval="")
    writer.writeheader()
    for sheet in sheets:
        for row in sheet.rows:
            for cell, column in zip(row.cells, sheet.columns, strict=True):
                if row.kind == "ours" or cell.mean is not None:
                    writer.writerow({key: _no_formula(value) for key, value in _line(sheet, row, cell, column).items()})
    return file.getvalue()


def _no_formula(value: object) -> object:
    """Put an apostrophe before a text that a spreadsheet would compute, and write control characters as letters.

    Names come from folders of others. A line break within a name could begin a cell.
    """
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(FORMULAS) else text


def _line(sheet: Sheet, row: Row, cell: Cell, column: Column) -> dict[str, object]:
    """Return the fields of one figure. Fields that it does not have are left out."""
    line: dict[str, object] = {
        "table": sheet.table.name,
        "scale": sheet.scale,
        "model": sheet.model,
        "source": row.kind,
        "method": row.method,
        "variant": row.variant,
        "task": column.task,
        "metric": column.metric,
        "mean": cell.mean,
        "marks": "".join(mark for mark in MARKS if mark in cell.marks),
    }
    if row.kind == "ours":
        line |= {"evaluation": sheet.evaluation, "std": cell.std, "n": cell.n, "status": cell.word}
        line |= {"paper": cell.printed, "difference": cell.difference}
    if cell.ratio:
        line |= {RATIO_COLUMN: cell.ratio.mean}
    if cell.interval:
        line |= dict(zip(INTERVAL_COLUMNS, cell.interval, strict=True))
    if pair := cell.paired:
        line |= dict(zip(PAIRED_COLUMNS, (sheet.against, pair.difference, pair.n, pair.p), strict=True))
        if pair.interval:
            line |= dict(zip(PAIRED_INTERVAL_COLUMNS, pair.interval, strict=True))
    return line

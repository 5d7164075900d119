"""Tables as CSV, one line a figure."""

import csv
import io
from collections.abc import Iterable, Sequence

from flexlora.report.build import Row, Sheet
from flexlora.report.cells import MARKS
from flexlora.report.layout import value_of

WHERE = ("table", "scale", "model", "source", "method", "variant", "task", "metric", "evaluation")
CSV_COLUMNS = (*WHERE, "mean", "std", "n", "marks", "status", "paper", "difference")
INTERVAL_COLUMNS = ("low", "high")
RATIO_COLUMN = "ratio"
PAIRED_COLUMNS = ("against", "paired_difference", "paired_n", "p")
PAIRED_INTERVAL_COLUMNS = ("paired_low", "paired_high")


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

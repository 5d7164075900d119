"""A table as text for a terminal, as Markdown, and as CSV with one line a figure."""

import csv
import io
import textwrap
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from flexlora.report.build import Row, Sheet
from flexlora.report.cells import MARKS, Cell
from flexlora.report.table import Average, Column, Count

SUPERSCRIPT = str.maketrans("sgdmxfc", "ˢᵍᵈᵐˣᶠᶜ")
WHERE = ("table", "scale", "model", "source", "method", "variant", "task", "metric", "evaluation")
CSV_COLUMNS = (*WHERE, "mean", "std", "n", "marks", "status", "paper", "difference")


def as_text(sheets: Sequence[Sheet], width: int, colour: bool = False) -> str:
    """Tables no wider than `width`: columns of another group, or that find no room, stand below under the same rows."""
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=colour, highlight=False, emoji=False, markup=False)
    for sheet in sheets:
        for line in (sheet.title, *sheet.captions):
            console.print(textwrap.fill(line, width), style="bold" if line is sheet.title else "")
        for columns in _blocks(sheet, width):
            console.print()
            console.print(_rich_table(sheet, columns))
        console.print()
        for line in _legend(sheet):
            console.print(textwrap.fill(line, width, subsequent_indent="   ", break_long_words=False), style="dim")
        console.print()
    return "\n".join(line.rstrip() for line in file.getvalue().rstrip().split("\n")) + "\n"


def as_markdown(sheets: Sequence[Sheet]) -> str:
    """Each table under its title as a heading, its notes as a list below."""
    return "\n".join(_markdown(sheet) for sheet in sheets)


def as_csv(sheets: Sequence[Sheet]) -> str:
    """One line a figure. Scores are in percent, parameters in units; what is missing is empty, `status` says why."""
    file = io.StringIO()
    writer = csv.DictWriter(file, CSV_COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    for sheet in sheets:
        for row in (row for group in sheet.groups for row in group):
            writer.writerows(_csv_lines(sheet, row))
    return file.getvalue()


def _rich_table(sheet: Sheet, columns: Sequence[int]) -> RichTable:
    table = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    groups = {sheet.columns[i].group for i in columns}
    table.add_column((groups.pop() if len(groups) == 1 else "") or "method", no_wrap=True)
    for i in columns:
        table.add_column("\n".join(sheet.columns[i].heading), justify="right", no_wrap=True)
    spaced = any(len(group) > 1 for group in sheet.groups)
    for group in sheet.groups:
        for row in group:
            for name, cells, style in _printed_lines(sheet, row, sheet.table.wide):
                if any(cells[i] for i in columns):  # the paper's rows may have nothing in this block
                    table.add_row(name, *(cells[i] for i in columns), style=style)
        if spaced:
            table.add_section()
    return table


def _printed_lines(sheet: Sheet, row: Row, stacked: bool = False) -> list[tuple[str, list[str], str]]:
    """The lines of a row as name, cells and style: its own, and that of its difference from the paper's.

    `stacked`: a cell's parts stand below each other, and so do a name's.
    """
    parts = [_cell_parts(cell, column, row, sheet) for cell, column in zip(row.cells, sheet.columns, strict=True)]
    own = [("\n" if stacked else " ").join(part) for part in parts]
    label = row.label.replace(" (", "\n  (") if stacked else row.label
    lines = [(label, own, "dim" if row.kind == "paper" else "")]
    if any(value is not None for value in row.difference):
        lines.append(("  less the paper's", [_signed(value) for value in row.difference], "dim"))
    return lines


def _cell_parts(cell: Cell, column: Column, row: Row, sheet: Sheet) -> list[str]:
    """A cell as mean, deviation and number of seeds, as far as it has them; marks follow the last one."""
    if row.kind == "paper" and isinstance(column, Count):
        return [row.params.get(column.metric, "")]
    if cell.mean is None:
        return [cell.word]
    if isinstance(column, Count):
        return [_count(cell.mean)]
    parts = [_rounded(cell.mean)]
    if cell.std is not None:
        parts.append(f"± {cell.std:.1f}")
    if row.kind == "ours" and cell.n != sheet.usual_seeds:
        parts.append(f"({cell.n})")
    marks = "".join(mark for mark in MARKS if mark in cell.marks - sheet.common_marks)
    return [*parts[:-1], parts[-1] + marks.translate(SUPERSCRIPT)]


def _rounded(value: float) -> str:
    return f"{round(value, 1) + 0.0:.1f}"  # no -0.0


def _signed(value: float | None) -> str:
    return "" if value is None else f"{round(value, 1) + 0.0:+.1f}"


def _count(number: float) -> str:
    """Three figures, as papers print parameters: 1.33M, 332k, 57."""
    number = float(f"{number:.3g}")
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            digits = max(0, 3 - len(str(int(number / size))))
            return f"{number / size:.{digits}f}{unit}"
    return f"{number:.0f}"


def _legend(sheet: Sheet) -> list[str]:
    rows = [row for group in sheet.groups for row in group]
    used = frozenset[str]().union(*(cell.marks for row in rows for cell in row.cells)) - sheet.common_marks
    lines = [f"{mark.translate(SUPERSCRIPT)}  {text}" for mark, text in MARKS.items() if mark in used]
    words = {cell.word for row in rows for cell in row.cells}
    if "–" in words:
        lines.append("–  no run, or none that is done")
    if any("/" in word for word in words):
        sizes = {str(len(column.columns)) for column in sheet.columns if isinstance(column, Average)}
        size = sizes.pop() if len(sizes) == 1 else "k"
        lines.append(f"n/{size}  no average: only n of the {sheet.table.parts}' main figures are there")
    return [*lines, *(f"·  {note}" for note in sheet.notes)]


def _blocks(sheet: Sheet, width: int) -> list[list[int]]:
    """The columns in blocks that fit `width` beside the names: one, or those of each group; none of them is empty."""
    rows = [row for group in sheet.groups for row in group]
    lines = [line for row in rows for line in _printed_lines(sheet, row, sheet.table.wide)]
    room = width - max(len(part) for name, _, _ in lines for part in name.split("\n"))
    needed = [
        3 + max(map(len, (*column.heading, *(part for _, cells, _ in lines for part in cells[i].split("\n")))))
        for i, column in enumerate(sheet.columns)
    ]
    if sum(needed) <= room:
        return [list(range(len(needed)))]
    blocks: list[list[int]] = []
    for group in dict.fromkeys(column.group for column in sheet.columns):
        left = 0
        for i, column in enumerate(sheet.columns):
            if column.group != group:
                continue
            if needed[i] > left:
                blocks.append([])
                left = room
            blocks[-1].append(i)
            left -= needed[i]
    return blocks


def _markdown(sheet: Sheet) -> str:
    lines = [f"### {sheet.title}", "", *sheet.captions, ""]
    lines.append(_markdown_line(["method", *(" ".join(filter(None, column.heading)) for column in sheet.columns)]))
    lines.append("|---|" + "---:|" * len(sheet.columns))
    for row in (row for group in sheet.groups for row in group):
        for name, cells, _ in _printed_lines(sheet, row):
            lines.append(_markdown_line([" ".join(name.split()), *cells]))
    legend = _legend(sheet)
    return "\n".join([*lines, *([""] if legend else []), *(f"- {line.removeprefix('·  ')}" for line in legend), ""])


def _markdown_line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _csv_lines(sheet: Sheet, row: Row) -> Iterable[dict[str, object]]:
    shared = {"table": sheet.table.name, "scale": sheet.scale, "model": sheet.model, "method": row.method}
    for i, (cell, column) in enumerate(zip(row.cells, sheet.columns, strict=True)):
        if row.kind == "paper" and cell.mean is None:
            continue
        figures: dict[str, object] = {
            "source": row.kind,
            "variant": row.variant,
            "task": column.task,
            "metric": column.metric,
            "mean": cell.mean,
            "marks": "".join(mark for mark in MARKS if mark in cell.marks),
        }
        if row.kind == "ours":
            figures |= {"evaluation": sheet.evaluation, "std": cell.std, "n": cell.n, "status": cell.word}
            figures |= {"paper": row.printed[i] if row.printed else None}
            figures |= {"difference": row.difference[i] if row.difference else None}
        yield shared | figures

"""What a table prints, whatever the format: its lines, the parts of their cells, and the legend below."""

import re
from collections.abc import Callable
from typing import NamedTuple

from flexlora.report.build import Row, Sheet
from flexlora.report.cells import MARKS, Cell
from flexlora.report.paired_test import Paired
from flexlora.report.table import Average, Column, Cost, Count

INTERVAL = "  95 % interval"
SUPERSCRIPT = str.maketrans("svgdmxfc", "ˢᵛᵍᵈᵐˣᶠᶜ")
UNITS = {"G": 1e9, "M": 1e6, "k": 1e3}
PRINTED_UNITS = {**UNITS, "B": 1e9, "": 1.0}


class Entry(NamedTuple):
    """A cell as mean, deviation and number of seeds, as far as it has them. `place`: 1 for the best of its column.

    `value` is the figure itself, to sort by: 332k and 1.33M, as they print, have no order.
    """

    parts: list[str]
    place: int = 0
    value: float | None = None

    @property
    def text(self) -> str:
        return " ".join(self.parts)


class Line(NamedTuple):
    """One line of a row: its own, or that of a difference. `aside` where it is not a figure of ours."""

    name: str
    entries: list[Entry]
    aside: bool


def printed_lines(sheet: Sheet, row: Row) -> list[Line]:
    """The row's own line; below it, where it has them, its intervals and its differences from others."""
    own = [_entry(cell, column, row, sheet) for cell, column in zip(row.cells, sheet.columns, strict=True)]
    lines = [Line(row.label, own, row.kind == "paper")]
    if any(row.intervals):
        spans = ("" if pair is None else f"{pair[0]:.1f} to {pair[1]:.1f}" for pair in row.intervals)
        lines.append(Line(INTERVAL, [Entry([span]) for span in spans], True))
    if any(row.paired):
        lines.append(
            Line(f"  less {sheet.against}'s", [_paired_entry(pair, sheet.usual_seeds) for pair in row.paired], True)
        )
    if any(row.paired_intervals):
        spans = ("" if pair is None else f"{signed(pair[0])} to {signed(pair[1])}" for pair in row.paired_intervals)
        lines.append(Line(f"  {INTERVAL}", [Entry([span]) for span in spans], True))
    if any(cell.mean is not None for cell in row.ratios):
        lines.append(Line("  to lora's", [_ratio_entry(cell) for cell in row.ratios], True))
    if any(value is not None for value in row.difference):
        lines.append(Line("  less the paper's", [Entry([signed(value)]) for value in row.difference], True))
    return lines


def legend(sheet: Sheet) -> list[str]:
    """What marks and words mean, as far as the table has them; then its notes, each behind a dot."""
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


def blocks_by_group(sheet: Sheet) -> list[list[int]]:
    """The places of the columns, those of one group together."""
    groups = dict.fromkeys(column.group for column in sheet.columns)
    return [[i for i, column in enumerate(sheet.columns) if column.group == group] for group in groups]


def blocks_within(
    sheet: Sheet, width: int, name: Callable[[Line], str], text: Callable[[Entry], str]
) -> list[list[int]]:
    """The columns in blocks of `width` letters, the rows' names with them: one, or those of each group; none is empty.

    `name` and `text` say how a line's name and an entry are spelled, over several lines where they hold newlines.
    """
    lines = [line for group in sheet.groups for row in group for line in printed_lines(sheet, row)]
    room = width - max(len(part) for line in lines for part in name(line).split("\n"))
    needed = []
    for i, column in enumerate(sheet.columns):
        cells = (part for line in lines for part in text(line.entries[i]).split("\n"))
        needed.append(3 + max(map(len, (*column.heading, *cells))))
    if sum(needed) <= room:
        return [list(range(len(needed)))]
    blocks: list[list[int]] = []
    for group in blocks_by_group(sheet):
        left = 0
        for i in group:
            if needed[i] > left:
                blocks.append([])
                left = room
            blocks[-1].append(i)
            left -= needed[i]
    return blocks


def corner(sheet: Sheet, block: list[int]) -> str:
    """What heads the names of the rows: the group where all columns of the block are of one."""
    groups = {sheet.columns[i].group for i in block}
    return (groups.pop() if len(groups) == 1 else "") or "method"


def value_of(cell: Cell, column: Column, row: Row) -> float | None:
    """The figure of a cell; the paper's parameters are known as printed only."""
    return printed_count(row.params.get(column.metric, "")) if _is_printed_count(column, row) else cell.mean


def _is_printed_count(column: Column, row: Row) -> bool:
    return row.kind == "paper" and isinstance(column, Count)


def _entry(cell: Cell, column: Column, row: Row, sheet: Sheet) -> Entry:
    value = value_of(cell, column, row)
    if _is_printed_count(column, row):
        return Entry([row.params.get(column.metric, "")], value=value)
    if cell.mean is None:
        return Entry([cell.word])
    if isinstance(column, Count):
        return Entry([count(cell.mean)], value=value)
    digits = cost_digits(cell.mean) if isinstance(column, Cost) else 1
    parts = [f"{round(cell.mean, digits) + 0.0:,.{digits}f}"]  # no -0.0
    if cell.std is not None:
        parts.append(f"± {cell.std:,.{digits}f}")
    if row.kind == "ours" and cell.n != sheet.usual_seeds:
        parts.append(f"({cell.n})")
    marks = "".join(mark for mark in MARKS if mark in cell.marks - sheet.common_marks)
    return Entry([*parts[:-1], parts[-1] + marks.translate(SUPERSCRIPT)], cell.place, value)


def _paired_entry(pair: Paired | None, usual_seeds: int | None) -> Entry:
    if pair is None:
        return Entry([""])
    parts = [signed(pair.difference)]
    if pair.p is not None:
        parts.append("p <0.001" if pair.p < 0.001 else f"p {pair.p:.{2 if pair.p >= 0.1 else 3}f}")
    return Entry([*parts, f"({pair.n})"] if pair.n != usual_seeds else parts)


def _ratio_entry(cell: Cell) -> Entry:
    if cell.mean is None:
        return Entry([""])
    return Entry([f"× {cell.mean:.3f}", *([f"± {cell.std:.3f}"] if cell.std is not None else [])])


def cost_digits(value: float) -> int:
    """Decimals of seconds, bytes or operations: about four figures."""
    return next((digits for digits, least in enumerate((10_000, 100, 10)) if abs(value) >= least), 3)


def signed(value: float | None) -> str:
    """A difference in points."""
    return "" if value is None else f"{round(value, 1) + 0.0:+.1f}"


def count(number: float) -> str:
    """Three figures, as papers print parameters: 1.33M, 332k, 57."""
    number = float(f"{number:.3g}")
    for unit, size in UNITS.items():
        if number >= size:
            digits = max(0, 3 - len(str(int(number / size))))
            return f"{number / size:.{digits}f}{unit}"
    return f"{number:.0f}"


def printed_count(text: str) -> float | None:
    """The number that a paper prints as 1.3M or 8B; None where it prints none."""
    match = re.fullmatch(rf"([\d.]+)([{''.join(PRINTED_UNITS)}]?)", text)
    return float(round(float(match[1]) * PRINTED_UNITS[match[2]])) if match else None

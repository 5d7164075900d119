"""The parts of a table that every format prints: its lines, the parts of their cells, and the legend below."""

from collections.abc import Callable
from typing import NamedTuple

from flexlora.report.cells import Cell
from flexlora.report.marks import MARKS
from flexlora.report.numbers import cost_digits, count, signed
from flexlora.report.paired_test import Paired
from flexlora.report.sheet import Row, Sheet
from flexlora.report.table import Average, Column, Cost, Count

INTERVAL = "  95 % interval"
SURE = "*"
"""The mark of a difference that is significant with the correction for all differences of the table."""
SUPERSCRIPT = str.maketrans("svgtdomxfc", "ˢᵛᵍᵗᵈᵒᵐˣᶠᶜ")


class Entry(NamedTuple):
    """The printed parts of a cell: its mean, deviation and number of seeds, if it has them.

    `place` is 1 for the best of the column and 2 for the second. `value` is the figure itself, for sorting: the printed
    texts 332k and 1.33M cannot be sorted.
    """

    parts: list[str]
    place: int = 0
    value: float | None = None

    @property
    def text(self) -> str:
        return " ".join(self.parts)


class Line(NamedTuple):
    """One line of a row: its figures, or their differences. `aside` says that the line has no figures of our runs."""

    name: str
    entries: list[Entry]
    aside: bool


def printed_lines(sheet: Sheet, row: Row) -> list[Line]:
    """Return the row's own line, followed by its intervals and its differences from others, if it has them."""
    own = [_entry(cell, column, row, sheet) for cell, column in zip(row.cells, sheet.columns, strict=True)]
    below: list[tuple[str, Callable[[Cell], Entry]]] = [
        (INTERVAL, _interval_entry),
        (f"  less {sheet.against}'s", lambda cell: _paired_entry(cell.paired, sheet.usual_seeds)),
        (f"  {INTERVAL}", _paired_interval_entry),
        ("  to lora's", _ratio_entry),
        ("  less the paper's", lambda cell: Entry([_signed(cell.difference)])),
    ]
    lines = [Line(row.label, own, row.kind == "paper")]
    for name, entry in below:
        entries = [entry(cell) for cell in row.cells]
        if any(one.text for one in entries):
            lines.append(Line(name, entries, True))
    return lines


def legend(sheet: Sheet) -> list[str]:
    """Return the explanations of the marks and words in the table, followed by its notes, each after a dot."""
    used = frozenset[str]().union(*(cell.marks for row in sheet.rows for cell in row.cells)) - sheet.common_marks
    lines = explained(used)
    words = {cell.word for row in sheet.rows for cell in row.cells}
    if "–" in words:
        lines.append("–  no run, or none that is done")
    if any("/" in word for word in words):
        sizes = {str(len(column.columns)) for column in sheet.columns if isinstance(column, Average)}
        size = sizes.pop() if len(sizes) == 1 else "k"
        lines.append(f"n/{size}  no average: only n of the {sheet.table.parts}' main figures are there")
    return [*lines, *(f"·  {note}" for note in sheet.notes)]


def spelled(marks: frozenset[str]) -> str:
    """The marks behind a figure."""
    return "".join(mark for mark in MARKS if mark in marks).translate(SUPERSCRIPT)


def explained(marks: frozenset[str]) -> list[str]:
    """A line for each mark."""
    return [f"{spelled(frozenset(mark))}  {text}" for mark, text in MARKS.items() if mark in marks]


def blocks_by_group(sheet: Sheet) -> list[list[int]]:
    """Return the indices of the columns, group by group."""
    groups = dict.fromkeys(column.group for column in sheet.columns)
    return [[i for i, column in enumerate(sheet.columns) if column.group == group] for group in groups]


def blocks_within(
    sheet: Sheet, width: int, name: Callable[[Line], str], text: Callable[[Entry], str]
) -> list[list[int]]:
    """Return the indices of the columns in blocks that are at most `width` letters wide, the rows' names included.

    If all columns fit, there is one block; otherwise each group has its own blocks. No block is empty. `name` and
    `text` return a line's name and an entry as the format prints them. Newlines in them start further lines.
    """
    lines = [line for row in sheet.rows for line in printed_lines(sheet, row)]
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
    """Return the heading above the rows' names: the group's name if all columns of the block are in one group."""
    groups = {sheet.columns[i].group for i in block}
    return (groups.pop() if len(groups) == 1 else "") or "method"


def _entry(cell: Cell, column: Column, row: Row, sheet: Sheet) -> Entry:
    if cell.text is not None:
        return Entry([cell.text], value=cell.mean)
    if cell.mean is None:
        return Entry([cell.word])
    if isinstance(column, Count):
        return Entry([count(cell.mean)], value=cell.mean)
    digits = cost_digits(cell.mean) if isinstance(column, Cost) else 1
    parts = [f"{round(cell.mean, digits) + 0.0:,.{digits}f}"]  # + 0.0 turns -0.0 into 0.0
    if cell.std is not None:
        parts.append(f"± {cell.std:,.{digits}f}")
    if row.kind == "ours" and cell.n != sheet.usual_seeds:
        parts.append(f"({cell.n})")
    return Entry([*parts[:-1], parts[-1] + spelled(cell.marks - sheet.common_marks)], cell.place, cell.mean)


def _interval_entry(cell: Cell) -> Entry:
    return Entry(["" if cell.interval is None else f"{cell.interval[0]:.1f} to {cell.interval[1]:.1f}"])


def _paired_entry(pair: Paired | None, usual_seeds: int | None) -> Entry:
    if pair is None:
        return Entry([""])
    parts = [signed(pair.difference)]
    if pair.p is not None:
        p = "p <0.001" if pair.p < 0.001 else f"p {pair.p:.{2 if pair.p >= 0.1 else 3}f}"
        parts.append(f"{p}{SURE if pair.is_sure else ''}")
    return Entry([*parts, f"({pair.n})"] if pair.n != usual_seeds else parts)


def _paired_interval_entry(cell: Cell) -> Entry:
    span = cell.paired.interval if cell.paired else None
    return Entry(["" if span is None else f"{signed(span[0])} to {signed(span[1])}"])


def _ratio_entry(cell: Cell) -> Entry:
    ratio = cell.ratio
    if ratio is None or ratio.mean is None:
        return Entry([""])
    return Entry([f"× {ratio.mean:.3f}", *([f"± {ratio.std:.3f}"] if ratio.std is not None else [])])


def _signed(value: float | None) -> str:
    return "" if value is None else signed(value)

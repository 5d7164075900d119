"""The parts that Markdown, LaTeX and HTML share: captions, notes and headings of a table, and its best figures."""

from flexlora.report.layout import Entry, Line, legend, printed_lines
from flexlora.report.sheet import Sheet

BULLET = "·  "


def printed_groups(sheet: Sheet) -> list[list[Line]]:
    """Return the printed lines of each group of rows."""
    return [[line for row in group for line in printed_lines(sheet, row)] for group in sheet.groups]


def notes_of(sheet: Sheet) -> list[str]:
    """Return the legend and the notes, without the dot that the terminal format puts before a note."""
    return [line.removeprefix(BULLET) for line in legend(sheet)]


def captions_of(sheet: Sheet) -> list[str]:
    """Return the lines above the table. If a figure is bold, one more line explains it."""
    placed = any(cell.place for group in sheet.groups for row in group for cell in row.cells)
    how = "Of our figures in a column the best is bold, the second underlined."
    return [*sheet.captions, *([how] if placed else [])]


def headings(sheet: Sheet) -> list[str]:
    """Return the heading of each column in one line."""
    return [" ".join(filter(None, column.heading)) for column in sheet.columns]


def placed(entry: Entry, best: tuple[str, str], second: tuple[str, str], text: str) -> str:
    """Return `text` (the entry in the format's spelling) between the codes that make it bold or underlined."""
    before, after = (("", ""), best, second)[entry.place]
    return f"{before}{text}{after}"


def one_line(name: str) -> str:
    """Return the name of a row in one line."""
    return " ".join(name.split())

"""What Markdown, LaTeX and HTML share: captions, notes and headings of a table, and its marked figures."""

from flexlora.report.layout import Entry, Line, legend, printed_lines
from flexlora.report.sheet import Sheet

BULLET = "·  "


def printed_groups(sheet: Sheet) -> list[list[Line]]:
    """The printed lines of each group of rows."""
    return [[line for row in group for line in printed_lines(sheet, row)] for group in sheet.groups]


def notes_of(sheet: Sheet) -> list[str]:
    """The legend and the notes, without the dot that the terminal puts before a note."""
    return [line.removeprefix(BULLET) for line in legend(sheet)]


def captions_of(sheet: Sheet) -> list[str]:
    """The lines above the table; one more where a figure is bold."""
    placed = any(cell.place for group in sheet.groups for row in group for cell in row.cells)
    how = "Of our figures in a column the best is bold, the second underlined."
    return [*sheet.captions, *([how] if placed else [])]


def headings(sheet: Sheet) -> list[str]:
    """The heading of each column, in one line."""
    return [" ".join(filter(None, column.heading)) for column in sheet.columns]


def placed(entry: Entry, best: tuple[str, str], second: tuple[str, str], text: str) -> str:
    """The entry's `text`, in the format's own spelling, between what makes it bold or underlined."""
    before, after = (("", ""), best, second)[entry.place]
    return f"{before}{text}{after}"


def one_line(name: str) -> str:
    """The name of a row, in one line."""
    return " ".join(name.split())

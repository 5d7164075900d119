"""Write tables as text for a terminal."""

import io
import textwrap
from collections.abc import Sequence
from functools import partial

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from flexlora.report.layout import Entry, Line, blocks_within, corner, legend, printed_lines
from flexlora.report.sheet import Sheet

PLACES = ("", "bold", "underline")


def as_text(sheets: Sequence[Sheet], width: int, colour: bool = False) -> str:
    """Return tables that are at most `width` characters wide. Columns that do not fit are printed below, by group."""
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

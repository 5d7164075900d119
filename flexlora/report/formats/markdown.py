"""Write tables as Markdown. The best figure of a column is bold, the second is underlined."""

import re
from collections.abc import Sequence

from flexlora.report.formats.document import captions_of, headings, notes_of, one_line, placed, printed_groups
from flexlora.report.sheet import Sheet


def as_markdown(sheets: Sequence[Sheet]) -> str:
    """Return each table with its title as a heading and its notes as a list below."""
    return "\n".join(_markdown(sheet) for sheet in sheets)


def _markdown(sheet: Sheet) -> str:
    lines = [f"### {_literal(sheet.title)}", "", *map(_literal, captions_of(sheet)), ""]
    lines.append(_markdown_line(["method", *headings(sheet)]))
    lines.append("|---|" + "---:|" * len(sheet.columns))
    for line in (line for group in printed_groups(sheet) for line in group):
        cells = [placed(entry, ("**", "**"), ("<u>", "</u>"), _literal(entry.text)) for entry in line.entries]
        lines.append(_markdown_line([_literal(line.name), *cells]))
    notes = [f"- {_literal(note)}" for note in notes_of(sheet)]
    return "\n".join([*lines, *([""] if notes else []), *notes, ""])


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _literal(text: str) -> str:
    """Return the text in one line, with Markdown's special characters escaped. A _ between letters is not special."""
    return re.sub(r"[\\`*<>|\[\]~&]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", one_line(text))

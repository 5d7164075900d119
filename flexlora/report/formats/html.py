"""Write tables as one HTML page. The best figure of a column is bold, the second is underlined."""

import html
from collections.abc import Sequence

from flexlora.report.formats.document import captions_of, headings, notes_of, one_line, placed, printed_groups
from flexlora.report.layout import Entry
from flexlora.report.sheet import Sheet

STYLE = """\
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em; color: #222; }
h2 { font-size: 1.15em; margin: 2em 0 .3em; }
p, ul { margin: .3em 0; }
ul { color: #555; padding-left: 1.2em; }
div { overflow-x: auto; margin: .8em 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .15em .7em; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #888; vertical-align: bottom; }
tbody tr:first-child td { border-top: 1px solid #ccc; padding-top: .4em; }
tr.aside { color: #777; }
"""


def as_html(sheets: Sequence[Sheet]) -> str:
    """Return one page with all tables. It needs no other file."""
    title = html.escape(", ".join(dict.fromkeys(sheet.table.tasks for sheet in sheets)))
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width">',
            f"<title>{title}</title>",
            f"<style>\n{STYLE}</style>",
            "</head>",
            "<body>",
            *map(sheet_as_html, sheets),
            "</body>",
            "</html>",
            "",
        ]
    )


def sheet_as_html(sheet: Sheet) -> str:
    """Return a table below its title, as a part of a page."""
    heads = "".join(f"<th>{html.escape(head)}</th>" for head in ("method", *headings(sheet)))
    lines = [f"<h2>{html.escape(sheet.title)}</h2>", *(f"<p>{html.escape(line)}</p>" for line in captions_of(sheet))]
    lines += ["<div><table>", f"<thead><tr>{heads}</tr></thead>"]
    for group in printed_groups(sheet):
        lines.append("<tbody>")
        for line in group:
            cells = f"<td>{html.escape(one_line(line.name))}</td>" + "".join(map(_html_cell, line.entries))
            lines.append(f'<tr class="aside">{cells}</tr>' if line.aside else f"<tr>{cells}</tr>")
        lines.append("</tbody>")
    lines.append("</table></div>")
    notes = [f"<li>{html.escape(note)}</li>" for note in notes_of(sheet)]
    return "\n".join([*lines, *(["<ul>", *notes, "</ul>"] if notes else [])])


def _html_cell(entry: Entry) -> str:
    """Return a cell with the number by which the page's script sorts. The number is empty if there is no figure."""
    value = "" if entry.value is None else f"{entry.value:.10g}"
    text = placed(entry, ("<b>", "</b>"), ("<u>", "</u>"), html.escape(entry.text))
    return f'<td data-value="{value}">{text}</td>'

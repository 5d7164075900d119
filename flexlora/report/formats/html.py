"""Write tables as one HTML page. The best figure of a column is bold, the second is underlined."""

import html
from collections.abc import Sequence

from flexlora.report.formats.document import captions_of, headings, notes_of, one_line, placed
from flexlora.report.layout import Entry, printed_lines
from flexlora.report.sheet import Sheet

STYLE = """\
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em; color: #222; background: #fff; }
h2 { font-size: 1.15em; margin: 2em 0 .3em; }
p, ul { margin: .3em 0; }
ul { color: #555; padding-left: 1.2em; }
div { overflow-x: auto; margin: .8em 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .15em .55em; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; z-index: 1; }
thead th { border-bottom: 2px solid #888; vertical-align: bottom; }
tbody tr:first-child td { border-top: 1px solid #ccc; padding-top: .4em; }
tr.aside { color: #666; }
@media (max-width: 700px) {
  th:first-child, td:first-child { min-width: 6em; max-width: 42vw; white-space: normal; overflow-wrap: break-word; }
}
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
    lines += [scrolled(sheet.title), _table_tag(sheet), f"<thead><tr>{heads}</tr></thead>"]
    for group in sheet.groups:
        lines.append("<tbody>")
        for row in group:
            names = (html.escape(name, quote=True) for name in (row.method, row.variant))
            ours = '<tr data-method="{}" data-variant="{}">'.format(*names)
            for line in printed_lines(sheet, row):
                cells = f"<td>{html.escape(one_line(line.name))}</td>" + "".join(map(_html_cell, line.entries))
                lines.append(f'<tr class="aside">{cells}</tr>' if line.aside else f"{ours}{cells}</tr>")
        lines.append("</tbody>")
    lines.append("</table></div>")
    notes = [f"<li>{html.escape(note)}</li>" for note in notes_of(sheet)]
    return "\n".join([*lines, *(["<ul>", *notes, "</ul>"] if notes else [])])


def _table_tag(sheet: Sheet) -> str:
    """Return the opening tag of a table, with the scale and the model of its runs for the page's script."""
    scale, model = (html.escape(name, quote=True) for name in (sheet.scale, sheet.model))
    return f'<table data-scale="{scale}" data-model="{model}">'


def scrolled(name: str) -> str:
    """Return the opening tag of an area that scrolls sideways. The keyboard reaches it, and a reader says its name."""
    return f'<div tabindex="0" role="region" aria-label="{html.escape(name, quote=True)}">'


def _html_cell(entry: Entry) -> str:
    """Return a cell with the number by which the page's script sorts. The number is empty if there is no figure."""
    value = "" if entry.value is None else f"{entry.value:.10g}"
    text = placed(entry, ("<b>", "</b>"), ("<u>", "</u>"), html.escape(entry.text))
    return f'<td data-value="{value}">{text}</td>'

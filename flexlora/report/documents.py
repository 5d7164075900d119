"""A table for a page: Markdown, LaTeX and HTML. The best figure of a column is bold, the second underlined."""

import html
import re
from collections.abc import Iterable, Iterator, Sequence

from flexlora.report.build import Row, Sheet
from flexlora.report.latex import as_tex, breakable, figure_as_tex
from flexlora.report.lines import Entry, Line, blocks_within, corner, legend, printed_lines

BULLET = "·  "
LATEX_WIDTH = 76
"""So many letters of \\footnotesize fit the 345 pt of an article's line; between columns lie three."""
LATEX_HEIGHT = 42
"""So many of its lines fit a page, with a long caption."""

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


def as_markdown(sheets: Sequence[Sheet]) -> str:
    """Each table under its title as a heading, its notes as a list below."""
    return "\n".join(_markdown(sheet) for sheet in sheets)


def as_latex(sheets: Sequence[Sheet]) -> str:
    """Each table as a `table` of the booktabs package; what finds no room in it is in others that continue it."""
    return "% Needs \\usepackage{booktabs}\n" + "\n".join(_latex(sheet) for sheet in sheets)


def as_html(sheets: Sequence[Sheet]) -> str:
    """One page with all tables, which needs no other file."""
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


def _groups(sheet: Sheet) -> list[list[Line]]:
    return [[line for row in group for line in printed_lines(sheet, row)] for group in sheet.groups]


def _notes(sheet: Sheet) -> list[str]:
    return [line.removeprefix(BULLET) for line in legend(sheet)]


def _captions(sheet: Sheet) -> list[str]:
    placed = any(cell.place for group in sheet.groups for row in group for cell in row.cells)
    how = "Of our figures in a column the best is bold, the second underlined."
    return [*sheet.captions, *([how] if placed else [])]


def _heads(sheet: Sheet) -> list[str]:
    return [" ".join(filter(None, column.heading)) for column in sheet.columns]


def _markdown(sheet: Sheet) -> str:
    lines = [f"### {_literal(sheet.title)}", "", *map(_literal, _captions(sheet)), ""]
    lines.append(_markdown_line(["method", *_heads(sheet)]))
    lines.append("|---|" + "---:|" * len(sheet.columns))
    for line in (line for group in _groups(sheet) for line in group):
        cells = [_placed(entry, ("**", "**"), ("<u>", "</u>"), _literal(entry.text)) for entry in line.entries]
        lines.append(_markdown_line([_literal(line.name), *cells]))
    notes = [f"- {_literal(note)}" for note in _notes(sheet)]
    return "\n".join([*lines, *([""] if notes else []), *notes, ""])


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _literal(text: str) -> str:
    """In one line, without what Markdown takes for its own: stars, tags, links; a _ between letters is none of it."""
    return re.sub(r"[\\`*<>|\[\]~&]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", _one_line(text))


def _placed(entry: Entry, best: tuple[str, str], second: tuple[str, str], text: str) -> str:
    """The entry's `text`, in the format's own spelling, between what makes it bold or underlined."""
    before, after = (("", ""), best, second)[entry.place]
    return f"{before}{text}{after}"


def _latex(sheet: Sheet) -> str:
    caption = " ".join([f"{sheet.title}.", *_captions(sheet)])
    blocks = blocks_within(sheet, LATEX_WIDTH, lambda line: line.name, lambda entry: entry.text)
    parts = [(block, page) for block in blocks for page in _latex_pages(sheet, block)]
    lines = [line for i, part in enumerate(parts) for line in _latex_table(sheet, *part, "" if i else caption)]
    notes = [rf"\item {breakable(as_tex(note))}" for note in _notes(sheet)]
    if notes:
        lines += [r"\begin{itemize}\footnotesize\raggedright", *notes, r"\end{itemize}"]
    return "\n".join([*lines, ""])


def _latex_table(sheet: Sheet, block: list[int], rows: list[str], caption: str) -> Iterator[str]:
    """Some columns and rows; without a `caption` it is the table before it, continued."""
    yield from (r"\begin{table}", r"\centering\footnotesize")
    if not caption:
        yield r"\addtocounter{table}{-1}"
    yield rf"\caption{{{breakable(as_tex(caption or f'{sheet.title}, continued.'))}}}"
    yield from (rf"\begin{{tabular}}{{l{'r' * len(block)}}}", r"\toprule")
    for i, name in enumerate((corner(sheet, block), "")):
        yield _latex_line(as_tex(text) for text in (name, *(sheet.columns[j].heading[i] for j in block)))
    yield from ([] if rows[0] == r"\midrule" else [r"\midrule"])
    yield from (*rows, r"\bottomrule", r"\end{tabular}", r"\end{table}", "")


def _latex_pages(sheet: Sheet, block: list[int]) -> Iterator[list[str]]:
    """The rows of these columns, a rule above each group, in pages: a `table` does not break."""
    page: list[str] = []
    for group in sheet.groups:
        rule = [r"\midrule"]
        for row in group:
            lines = [*_latex_row(sheet, row, block)]
            if page and len(page) + len(lines) > LATEX_HEIGHT:
                yield page
                page = []
            if lines:  # the paper's rows may have nothing in this block
                page += [*rule, *lines]
                rule = []
    yield page


def _latex_row(sheet: Sheet, row: Row, block: list[int]) -> Iterator[str]:
    for line in printed_lines(sheet, row):
        entries = [line.entries[i] for i in block]
        if any(entry.text for entry in entries):
            yield from _latex_lines(line.name, entries)


def _latex_lines(name: str, entries: Sequence[Entry]) -> Iterator[str]:
    """One line; below it the rest of a name that has several."""
    cells = [_placed(e, (r"\textbf{", "}"), (r"\underline{", "}"), figure_as_tex(e.text)) for e in entries]
    for i, part in enumerate(name.split("\n")):
        indented = (r"\quad " if part.startswith(" ") else "") + as_tex(part.strip())
        yield _latex_line([indented, *(cells if i == 0 else [""] * len(cells))])


def _latex_line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _one_line(name: str) -> str:
    return " ".join(name.split())


def sheet_as_html(sheet: Sheet) -> str:
    """A table under its title, as a part of a page."""
    heads = "".join(f"<th>{html.escape(head)}</th>" for head in ("method", *_heads(sheet)))
    lines = [f"<h2>{html.escape(sheet.title)}</h2>", *(f"<p>{html.escape(line)}</p>" for line in _captions(sheet))]
    lines += ["<div><table>", f"<thead><tr>{heads}</tr></thead>"]
    for group in _groups(sheet):
        lines.append("<tbody>")
        for line in group:
            cells = f"<td>{html.escape(_one_line(line.name))}</td>" + "".join(map(_html_cell, line.entries))
            lines.append(f'<tr class="aside">{cells}</tr>' if line.aside else f"<tr>{cells}</tr>")
        lines.append("</tbody>")
    lines.append("</table></div>")
    notes = [f"<li>{html.escape(note)}</li>" for note in _notes(sheet)]
    return "\n".join([*lines, *(["<ul>", *notes, "</ul>"] if notes else [])])


def _html_cell(entry: Entry) -> str:
    """With the figure that the page's script sorts by; empty where there is none, though a word may start with one."""
    value = "" if entry.value is None else f"{entry.value:.10g}"
    text = _placed(entry, ("<b>", "</b>"), ("<u>", "</u>"), html.escape(entry.text))
    return f'<td data-value="{value}">{text}</td>'

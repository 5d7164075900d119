"""A table for a page: Markdown, LaTeX and HTML. The best figure of a column is bold, the second underlined."""

import html
from collections.abc import Sequence

from flexlora.report.build import Sheet
from flexlora.report.lines import SUPERSCRIPT, Entry, Line, blocks_by_group, corner, legend, printed_lines

BULLET = "·  "

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

LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
    "·": r"$\cdot$",
    **{chr(sign): rf"\textsuperscript{{{chr(mark)}}}" for mark, sign in SUPERSCRIPT.items()},
}


def as_markdown(sheets: Sequence[Sheet]) -> str:
    """Each table under its title as a heading, its notes as a list below."""
    return "\n".join(_markdown(sheet) for sheet in sheets)


def as_latex(sheets: Sequence[Sheet]) -> str:
    """Each table as a `table` of the booktabs package; columns of several groups as tabulars below each other."""
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
    lines = [f"### {sheet.title}", "", *_captions(sheet), ""]
    lines.append(_markdown_line(["method", *_heads(sheet)]))
    lines.append("|---|" + "---:|" * len(sheet.columns))
    for line in (line for group in _groups(sheet) for line in group):
        cells = [_placed(entry, ("**", "**"), ("<u>", "</u>"), entry.text) for entry in line.entries]
        lines.append(_markdown_line([_one_line(line.name), *cells]))
    notes = _notes(sheet)
    return "\n".join([*lines, *([""] if notes else []), *(f"- {note}" for note in notes), ""])


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _placed(entry: Entry, best: tuple[str, str], second: tuple[str, str], text: str) -> str:
    """The entry's `text`, in the format's own spelling, between what makes it bold or underlined."""
    before, after = (("", ""), best, second)[entry.place]
    return f"{before}{text}{after}"


def _latex(sheet: Sheet) -> str:
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_tex(' '.join([sheet.title + '.', *_captions(sheet)]))}}}"]
    for block in blocks_by_group(sheet):
        lines += [rf"\begin{{tabular}}{{l{'r' * len(block)}}}", r"\toprule"]
        for i, name in enumerate((corner(sheet, block), "")):
            heads = (sheet.columns[j].heading[i] for j in block)
            lines.append(_latex_line([name, *heads]))
        for group in _groups(sheet):
            lines.append(r"\midrule")
            for line in group:
                entries = [line.entries[i] for i in block]
                if any(entry.text for entry in entries):
                    cells = [
                        _placed(e, (r"\textbf{", "}"), (r"\underline{", "}"), _tex_figure(e.text)) for e in entries
                    ]
                    lines.append(" & ".join([_tex(_one_line(line.name)), *cells]) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}", ""]
    notes = [rf"\item {_tex(note)}" for note in _notes(sheet)]
    if notes:
        lines += [r"\begin{itemize}\footnotesize", *notes, r"\end{itemize}"]
    return "\n".join([*lines, r"\end{table}", ""])


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(map(_tex, cells)) + r" \\"


def _tex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)


def _tex_figure(text: str) -> str:
    """With a minus that is one, not a hyphen."""
    return _tex(text).replace("-", "$-$", 1) if text[:1] == "-" and text[1:] else _tex(text)


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
            entries = (_placed(e, ("<b>", "</b>"), ("<u>", "</u>"), html.escape(e.text)) for e in line.entries)
            cells = "".join(f"<td>{cell}</td>" for cell in (html.escape(_one_line(line.name)), *entries))
            lines.append(f'<tr class="aside">{cells}</tr>' if line.aside else f"<tr>{cells}</tr>")
        lines.append("</tbody>")
    lines.append("</table></div>")
    notes = [f"<li>{html.escape(note)}</li>" for note in _notes(sheet)]
    return "\n".join([*lines, *(["<ul>", *notes, "</ul>"] if notes else [])])

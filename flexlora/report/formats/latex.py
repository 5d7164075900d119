"""Write tables as LaTeX. The best figure of a column is bold, the second is underlined."""

from collections.abc import Iterable, Iterator, Sequence

from flexlora.report.formats.document import captions_of, notes_of, placed
from flexlora.report.formats.latex_text import as_tex, breakable, figure_as_tex
from flexlora.report.layout import Entry, blocks_within, corner, printed_lines
from flexlora.report.sheet import Row, Sheet

LATEX_WIDTH = 76
"""The number of \\footnotesize letters in an article's line of 345 pt. A gap between columns is three letters wide."""
LATEX_HEIGHT = 42
"""The number of lines of that size that fit on a page together with a long caption."""


def as_latex(sheets: Sequence[Sheet]) -> str:
    """Return each table in LaTeX with the booktabs package. A table that does not fit on a page continues in others."""
    return "% Needs \\usepackage{booktabs}\n" + "\n".join(_latex(sheet) for sheet in sheets)


def _latex(sheet: Sheet) -> str:
    caption = " ".join([f"{sheet.title}.", *captions_of(sheet)])
    blocks = blocks_within(sheet, LATEX_WIDTH, lambda line: line.name, lambda entry: entry.text)
    parts = [(block, page) for block in blocks for page in _latex_pages(sheet, block)]
    lines = [line for i, part in enumerate(parts) for line in _latex_table(sheet, *part, "" if i else caption)]
    notes = [rf"\item {breakable(as_tex(note))}" for note in notes_of(sheet)]
    if notes:
        lines += [r"\begin{itemize}\footnotesize\raggedright", *notes, r"\end{itemize}"]
    return "\n".join([*lines, ""])


def _latex_table(sheet: Sheet, block: list[int], rows: list[str], caption: str) -> Iterator[str]:
    """Yield the lines of one table of these rows and columns. Without a `caption` it continues the previous table."""
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
    """Yield the rows of these columns page by page, because a LaTeX `table` does not break. Each group has a rule."""
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
    """Yield one line with the figures, then the further lines of the row's name."""
    cells = [placed(e, (r"\textbf{", "}"), (r"\underline{", "}"), figure_as_tex(e.text)) for e in entries]
    for i, part in enumerate(name.split("\n")):
        indented = (r"\quad " if part.startswith(" ") else "") + as_tex(part.strip())
        yield _latex_line([indented, *(cells if i == 0 else [""] * len(cells))])


def _latex_line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"

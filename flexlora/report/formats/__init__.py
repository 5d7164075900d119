"""The formats of a table, with one writer for each. A new format needs a new module and a line here."""

from collections.abc import Callable, Mapping, Sequence

from flexlora.report.formats.csv import as_csv
from flexlora.report.formats.html import as_html
from flexlora.report.formats.latex import as_latex
from flexlora.report.formats.markdown import as_markdown
from flexlora.report.sheet import Sheet

ENDINGS = {"text": ".txt", "markdown": ".md", "csv": ".csv", "latex": ".tex", "html": ".html"}
WRITERS: Mapping[str, Callable[[Sequence[Sheet]], str]] = {
    "markdown": as_markdown,
    "csv": as_csv,
    "latex": as_latex,
    "html": as_html,
}
"""The writers of all formats except text, which needs the width of the terminal."""

"""The formats of a table, one renderer each; another format is another module and another line here."""

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
"""All but text, which asks for the terminal's width."""

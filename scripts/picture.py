"""Make a picture of what a command printed, for a page: an SVG with the text, which any browser shows.

    flexlora-report outputs | python scripts/picture.py docs/images/table.svg "flexlora-report outputs"

The second argument is the command that the picture shows above the output."""

import sys
from html import escape
from pathlib import Path

SIZE, LINE, LETTER, MARGIN = 13, 19, 7.83, 16  # pixels
STYLE = (
    "text{font:13px ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,monospace;fill:#24292f;white-space:pre}"
    ".typed{fill:#0550ae;font-weight:bold}rect{fill:#f6f8fa;stroke:#d0d7de}"
)


def picture(output: str, command: str) -> str:
    """Return the SVG of a command and its output."""
    lines = [f"$ {command}", "", *output.rstrip("\n").expandtabs().splitlines()]
    width = round(2 * MARGIN + LETTER * max(map(len, lines)))
    height = 2 * MARGIN + LINE * len(lines)
    texts = [
        f'<text x="{MARGIN}" y="{MARGIN + SIZE + LINE * i}" textLength="{LETTER * len(line):.1f}" '
        f'class="{"typed" if i == 0 else "printed"}" xml:space="preserve">{escape(line)}</text>'
        for i, line in enumerate(lines)
        if line
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">\n'
        f'<style>{STYLE}</style>\n<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="6"/>\n'
        + "\n".join(texts)
        + "\n</svg>\n"
    )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: COMMAND | python {sys.argv[0]} FILE.svg 'COMMAND'")
    Path(sys.argv[1]).write_text(picture(sys.stdin.read(), sys.argv[2]), encoding="utf-8")

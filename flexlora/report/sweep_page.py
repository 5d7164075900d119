"""Write one HTML page about a sweep: tables, figures, settings, runs and failures. The file needs no network."""

import base64
import html
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexlora.report.formats.html import STYLE, sheet_as_html
from flexlora.report.numbers import count
from flexlora.report.paper_claims import Claim
from flexlora.report.record_values import number, scores_of
from flexlora.report.sheet import Sheet
from flexlora.results.collect import Collection, Run
from flexlora.results.folder import LOCATION_KEYS
from flexlora.settings import flat_keys

if TYPE_CHECKING:
    from flexlora.report.figures import Drawing

SHOWN_VALUES = 8
PIXELS_PER_INCH = 96
PAGE_STYLE = """\
body { max-width: 1200px; margin: 1.5em auto; padding: 0 1em; }
h1 { font-size: 1.4em; }
h1, h2, h3, p, li { overflow-wrap: anywhere; }
nav a { display: inline-block; margin-right: 1em; }
figure { margin: 1em 0; overflow-x: auto; }
figure img { max-width: 100%; height: auto; }
@media (max-width: 700px) { figure img { max-width: none; } }
th.sortable { cursor: pointer; }
th.sortable::after { content: " \\2195"; color: #999; }
th[aria-sort=ascending]::after { content: " \\2191"; color: inherit; }
th[aria-sort=descending]::after { content: " \\2193"; color: inherit; }
td.text, th.text { text-align: left; }
td.reason { white-space: normal; min-width: 20em; overflow-wrap: anywhere; text-align: left; }
summary { cursor: pointer; }
"""

# A click on a heading sorts by its column. A second click sorts in the other direction. Grey lines stay below their row
# and groups of rows stay together. Cells without a number come last.
SCRIPT = """\
function key(row, column) {
  const cell = row.cells[column];
  const text = cell.dataset.value ?? cell.textContent;
  const number = parseFloat(text.replace(/,/g, ''));
  return cell.classList.contains('text') || row.cells[0] === cell ? text : Number.isNaN(number) ? null : number;
}
function compare(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null);
  return sign * (typeof a === 'number' && typeof b === 'number' ? a - b : String(a).localeCompare(String(b)));
}
function units(body) {
  const found = [];
  for (const row of [...body.rows]) {
    if (row.classList.contains('aside') && found.length) found.at(-1).push(row); else found.push([row]);
  }
  return found;
}
for (const table of document.querySelectorAll('table')) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    head.classList.add('sortable');
    head.tabIndex = 0;
    head.addEventListener('keydown', event => { if (event.key === 'Enter') head.click(); });
    head.addEventListener('click', () => {
      const sign = head.getAttribute('aria-sort') === 'ascending' ? -1 : 1;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute('aria-sort');
      head.setAttribute('aria-sort', sign > 0 ? 'ascending' : 'descending');
      const by = (a, b) => compare(key(a, column), key(b, column), sign);
      for (const body of table.tBodies) {
        units(body).sort((a, b) => by(a[0], b[0])).forEach(rows => body.append(...rows));
      }
      [...table.tBodies].sort((a, b) => by(a.rows[0], b.rows[0])).forEach(body => table.append(body));
    });
  });
}
"""


def as_page(
    root: Path,
    found: Collection,
    sheets: Sequence[Sheet],
    drawings: Iterable["Drawing"],
    claims: Sequence[tuple[str, Sequence[Claim]]],
    note: str | None = None,
) -> str:
    """Return the page of the runs under `root`.

    Args:
        root: the folder that the title names.
        found: the runs, and the records that are broken.
        sheets: the tables.
        drawings: the figures, which are embedded as SVG.
        claims: the checked claims of the paper's text, by group of runs.
        note: a note below the figures, such as the number of figures that are not shown.
    """
    figures = [_figure(drawing) for drawing in drawings]
    failures = [run for run in found.runs if run.record.status != "done"]
    sections = {
        "Tables": "\n".join(map(sheet_as_html, sheets)),
        "Figures": "\n".join([*figures, *([f"<p>{html.escape(note)}</p>"] if note else [])]),
        "Claims": "\n".join(_claims(name, checked) for name, checked in claims),
        "Failures": _failures(failures, found.broken, root),
        "Settings": _settings(found.runs),
        "Runs": _runs(found.runs, root),
    }
    shown = {title: content for title, content in sections.items() if content}
    counts = Counter(run.record.status for run in found.runs)
    summary = ", ".join(f"{number} {status}" for status, number in counts.most_common())
    title = f"{len(found.runs)} runs in {root}"
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title>",
            f"<style>\n{STYLE}{PAGE_STYLE}</style>",
            "</head>",
            "<body>",
            f"<h1>{html.escape(title)}</h1>",
            f"<p>{html.escape(summary)}. A click on a column's head sorts by it.</p>",
            f"<nav>{''.join(map(_link, shown))}</nav>",
            *(_section(name, content) for name, content in shown.items()),
            f"<script>\n{SCRIPT}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _link(name: str) -> str:
    return f'<a href="#{name.lower()}">{name}</a>'


def _section(name: str, content: str) -> str:
    return f'<section id="{name.lower()}">\n<h2>{name}</h2>\n{content}\n</section>'


def _figure(drawing: "Drawing") -> str:
    """Embed a figure as an image, so that the ids inside two figures cannot collide."""
    content = base64.b64encode(drawing.save("svg")).decode("ascii")
    title = html.escape(drawing.title, quote=True)
    width = round(PIXELS_PER_INCH * drawing.figure.get_figwidth())
    return f'<figure><img alt="{title}" width="{width}" src="data:image/svg+xml;base64,{content}"></figure>'


def _claims(name: str, claims: Sequence[Claim]) -> str:
    rows = [[claim.text, claim.verdict, "; ".join(claim.numbers)] for claim in claims]
    return f"<h3>{html.escape(name)}</h3>\n" + _table(
        ["the text says", "in these runs", "numbers"], rows, reasons=(0, 2)
    )


def _failures(failed: Sequence[Run], broken: Sequence[str], root: Path) -> str:
    rows = [[_place(run, root), run.record.status, run.record.error or ""] for run in failed]
    rows += [[line.split(" ", 1)[0].rstrip(","), "broken", line] for line in broken]
    return _table(["run", "status", "reason"], rows, reasons=(2,)) if rows else ""


def _runs(runs: Sequence[Run], root: Path) -> str:
    heads = ["run", "status", "metric", "last", "best", "at step", "steps", "active params", "training s", "seed"]
    return _table(heads, [_run_row(run, root) for run in runs], texts=(1, 2))


def _run_row(run: Run, root: Path) -> list[str]:
    record = run.record
    last, best = (scores_of(record, which) for which in ("last", "best"))
    metric = record.main_metric or ""
    figures = (number(scores.get(metric)) for scores in (last, best))
    active, seconds = number(record.parameters.get("adapter_active")), number(record.train_seconds)
    return [
        _place(run, root),
        record.status,
        metric.replace("_", " "),
        *("" if value is None else f"{100 * value:.2f}" for value in figures),
        str(best.get("step", "")),
        "" if record.steps is None else str(record.steps),
        "" if active is None else f"{active:,.0f}",
        "" if seconds is None else f"{seconds:.0f}",
        str(record.seed),
    ]


def _settings(runs: Sequence[Run]) -> str:
    """Return the settings that differ between the runs, with their values, then a folded list of shared settings."""
    values: dict[str, Counter[str]] = {}
    for run in runs:
        for key, value in flat_keys(run.record.config).items():
            if key not in LOCATION_KEYS:
                values.setdefault(key, Counter())[_shown(value)] += 1
    shared = {key: seen for key, seen in values.items() if len(seen) == 1 and seen.total() == len(runs)}
    differ = [[key, _by_value(values[key], len(runs))] for key in values if key not in shared]
    common = _table(["setting", "value"], [[key, *seen] for key, seen in shared.items()], reasons=(1,))
    folded = f"<details><summary>{count(len(shared))} settings that all runs share</summary>\n{common}\n</details>"
    return "\n".join([*([_table(["setting", "values (runs)"], differ, reasons=(1,))] if differ else []), folded])


def _by_value(seen: Counter[str], runs: int) -> str:
    parts = [f"{value} ({number})" for value, number in seen.most_common(SHOWN_VALUES)]
    more = [f"and {len(seen) - SHOWN_VALUES} more"] if len(seen) > SHOWN_VALUES else []
    absent = [f"not set ({runs - seen.total()})"] if seen.total() < runs else []
    return ", ".join([*parts, *more, *absent])


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _place(run: Run, root: Path) -> str:
    return str(run.path.relative_to(root)) if run.path != root else run.path.name


def _table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], texts: Sequence[int] = (), reasons: Sequence[int] = ()
) -> str:
    """Return an HTML table. Columns in `texts` are aligned left. Columns in `reasons` are aligned left and wrap."""
    classes: Mapping[int, str] = {**dict.fromkeys(texts, "text"), **dict.fromkeys(reasons, "text reason")}

    def line(cells: Sequence[str], tag: str) -> str:
        marks = (f' class="{classes[i]}"' if i in classes else "" for i in range(len(cells)))
        return "".join(f"<{tag}{mark}>{html.escape(cell)}</{tag}>" for mark, cell in zip(marks, cells, strict=True))

    body = "\n".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f"<div><table>\n<thead><tr>{line(heads, 'th')}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"

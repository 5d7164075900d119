"""Write one HTML page about a sweep: tables, figures, settings, runs and failures. The file needs no network."""

import html
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flexlora.report.formats.html import STYLE, scrolled, sheet_as_html
from flexlora.report.page.charts import charts_of, ranks_of
from flexlora.report.page.plotly_source import packed_plotly
from flexlora.report.page.run_details import commit, data_of, machine, percent, place_of, shown_value
from flexlora.report.paper_claims import Claim
from flexlora.report.record_values import number, scores_of
from flexlora.report.seed_groups import Allocated
from flexlora.report.sheet import Sheet
from flexlora.results.collect import Collection, Run
from flexlora.results.folder import LOCATION_KEYS
from flexlora.results.record import RunRecord
from flexlora.settings import flat_keys

SHOWN_VALUES = 8
SHOWN_VERSIONS = ("flexlora", "torch", "transformers", "peft", "python")
USE = "A click on a column's head sorts by it; a click on a method lists its runs."
HERE = Path(__file__).parent


def as_page(
    root: Path,
    found: Collection,
    sheets: Sequence[Sheet],
    distinct: Sequence[Run],
    groups: Sequence[Allocated],
    claims: Sequence[tuple[str, Sequence[Claim]]],
    command: str,
    folder: Path,
    note: str | None = None,
) -> str:
    """Return the page of the runs under `root`.

    Args:
        root: the folder that the title names.
        found: the runs, and the records that are broken.
        sheets: the tables.
        distinct: the runs without copies, for the figures.
        groups: the groups of seeds whose ranks are shown.
        claims: the checked claims of the paper's text, by group of runs.
        command: the command that wrote the page.
        folder: the folder of the page. Links to the files of runs are relative to it.
        note: a note below the figures, such as the number of groups whose ranks are not shown.
    """
    values = [_settings_of(run) for run in found.runs]
    differ, shared = _differing(values)
    ranks = ranks_of(groups, found.runs)
    charts = charts_of(distinct)
    variants = {run.path: run.record.variant for run in distinct}
    details = [
        data_of(run, variants.get(run.path, ""), {key: one[key] for key in differ if key in one}, root, folder)
        for run, one in zip(found.runs, values, strict=True)
    ]
    with_ranks = {i: place_of(found.runs[i], root) for i in ranks}
    sections = {
        "Tables": "\n".join(map(sheet_as_html, sheets)),
        "Figures": _figures([chart["name"] for chart in charts], with_ranks, note),
        "Claims": "\n".join(_claims(name, checked) for name, checked in claims),
        "Failures": _failures(details, found.broken),
        "Settings": _settings(differ, shared, len(found.runs)),
        "Runs": _runs(found.runs, root),
    }
    shown = {title: content for title, content in sections.items() if content}
    counts = Counter(run.record.status for run in found.runs)
    summary = ", ".join(f"{number} {status}" for status, number in counts.most_common())
    title = f"{len(found.runs)} runs in {root}"
    data = {"runs": details, "charts": charts, "ranks": ranks}
    styles = STYLE + (HERE / "page.css").read_text(encoding="utf-8")
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title>",
            f"<style>\n{styles}</style>",
            "</head>",
            "<body>",
            f"<h1>{html.escape(title)}</h1>",
            f"<p>{html.escape(summary)}. {USE}</p>",
            _about(found.runs, command),
            f"<nav>{''.join(map(_link, shown))}</nav>",
            *(_section(name, content) for name, content in shown.items()),
            '<dialog aria-label="details"></dialog>',
            f'<script type="application/json" id="data">{_as_data(data)}</script>',
            f'<script type="text/plain" id="plotly">{packed_plotly()}</script>',
            f"<script>\n{(HERE / 'page.js').read_text(encoding='utf-8')}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _as_data(data: object) -> str:
    """Return JSON that cannot end the script that holds it."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _about(runs: Sequence[Run], command: str) -> str:
    """Return the command of the page, and dates, commits, machines and versions of the runs, folded."""
    records = [run.record for run in runs]
    dates = sorted(record.started for record in records if record.started)
    facts: dict[str, Iterable[str]] = {
        "command": [command],
        "runs started": dict.fromkeys([dates[0], dates[-1]]) if dates else [],
        "commit": _most([commit(record) for record in records]),
        "machine": _most([machine(record) for record in records]),
        "versions": _most([_versions(record) for record in records]),
    }
    rows = "".join(
        f"<dt>{name}</dt><dd>{html.escape(' · '.join(texts))}</dd>" for name, texts in facts.items() if texts
    )
    return f"<dl>{rows}</dl>"


def _versions(record: RunRecord) -> str:
    return ", ".join(f"{name} {record.versions[name]}" for name in SHOWN_VERSIONS if name in record.versions)


def _most(texts: Iterable[str]) -> list[str]:
    """Return the most frequent texts with their numbers of runs."""
    seen = Counter(filter(None, texts))
    if len(seen) == 1:
        return list(seen)
    return [f"{text} ({number})" for text, number in seen.most_common(SHOWN_VALUES)]


def _link(name: str) -> str:
    return f'<a href="#{name.lower()}">{name}</a>'


def _section(name: str, content: str) -> str:
    return f'<section id="{name.lower()}">\n<h2>{name}</h2>\n{content}\n</section>'


def _figures(charts: Sequence[str], ranks: Mapping[int, str], note: str | None) -> str:
    """Return the places of the figures. The page's script draws what is chosen."""
    parts = []
    if charts:
        parts.append(_figure("charts", "task", dict(enumerate(charts)), 2))
        parts.append("<p>Learning curves and last evaluations: mean over seeds ± standard deviation.</p>")
    if ranks:
        parts.append(_figure("ranks", "ranks of", ranks, 1))
    if note:
        parts.append(f"<p>{html.escape(note)}</p>")
    return "\n".join(parts)


def _figure(name: str, label: str, choices: Mapping[int, str], plots: int) -> str:
    options = "".join(f'<option value="{i}">{html.escape(text)}</option>' for i, text in choices.items())
    return (
        f'<figure><label>{label} <select name="{name}">{options}</select></label>'
        + '<div class="plot"></div>' * plots
        + "</figure>"
    )


def _claims(name: str, claims: Sequence[Claim]) -> str:
    rows = [[claim.text, claim.verdict, "; ".join(claim.numbers)] for claim in claims]
    return f"<h3>{html.escape(name)}</h3>\n" + _table(
        name, ["the text says", "in these runs", "numbers"], rows, reasons=(0, 2)
    )


def _failures(details: Sequence[Mapping[str, Any]], broken: Sequence[str]) -> str:
    failed = [run for run in details if run["status"] != "done"]
    rows = [[run["path"], run["status"], run["facts"].get("reason", ""), run["log"]] for run in failed]
    rows += [[line.split(" ", 1)[0].rstrip(","), "broken", line, ""] for line in broken]
    heads = ["run", "status", "reason", "last lines of its log"]
    return _table("failures", heads, rows, texts=(1,), reasons=(2, 3)) if rows else ""


def _runs(runs: Sequence[Run], root: Path) -> str:
    heads = ["run", "status", "metric", "last", "best", "at step", "steps", "active params", "training s", "seed"]
    return _table("runs", heads, [_run_row(run, root) for run in runs], texts=(1, 2))


def _run_row(run: Run, root: Path) -> list[str]:
    record = run.record
    last, best = (scores_of(record, which) for which in ("last", "best"))
    metric = record.main_metric or ""
    figures = (number(scores.get(metric)) for scores in (last, best))
    active, seconds = number(record.parameters.get("adapter_active")), number(record.train_seconds)
    return [
        place_of(run, root),
        record.status,
        metric.replace("_", " "),
        *map(percent, figures),
        str(best.get("step", "")),
        "" if record.steps is None else str(record.steps),
        "" if active is None else f"{active:,.0f}",
        "" if seconds is None else f"{seconds:.0f}",
        str(record.seed),
    ]


def _settings_of(run: Run) -> dict[str, str]:
    return {key: shown_value(value) for key, value in flat_keys(run.record.config).items() if key not in LOCATION_KEYS}


def _differing(runs: Sequence[Mapping[str, str]]) -> tuple[dict[str, Counter[str]], dict[str, str]]:
    """Return the values of the settings in which runs differ, with their numbers of runs, and the shared settings."""
    values: dict[str, Counter[str]] = {}
    for settings in runs:
        for key, value in settings.items():
            values.setdefault(key, Counter())[value] += 1
    shared = {key: next(iter(seen)) for key, seen in values.items() if len(seen) == 1 and seen.total() == len(runs)}
    return {key: seen for key, seen in values.items() if key not in shared}, shared


def _settings(differ: Mapping[str, Counter[str]], shared: Mapping[str, str], runs: int) -> str:
    """Return the settings that differ between the runs, with their values, then a folded list of shared settings."""
    rows = [[key, _by_value(seen, runs)] for key, seen in differ.items()]
    common = _table("settings that all runs share", ["setting", "value"], map(list, shared.items()), reasons=(1,))
    folded = f"<details><summary>{len(shared)} settings that all runs share</summary>\n{common}\n</details>"
    differing = _table("settings that differ", ["setting", "values (runs)"], rows, reasons=(1,))
    return "\n".join([*([differing] if rows else []), folded])


def _by_value(seen: Counter[str], runs: int) -> str:
    parts = [f"{value} ({number})" for value, number in seen.most_common(SHOWN_VALUES)]
    more = [f"and {len(seen) - SHOWN_VALUES} more"] if len(seen) > SHOWN_VALUES else []
    absent = [f"not set ({runs - seen.total()})"] if seen.total() < runs else []
    return ", ".join([*parts, *more, *absent])


def _table(
    name: str,
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    texts: Sequence[int] = (),
    reasons: Sequence[int] = (),
) -> str:
    """Return an HTML table with this name.

    Columns in `texts` are aligned left. Columns in `reasons` are aligned left and wrap.
    """
    classes: Mapping[int, str] = {**dict.fromkeys(texts, "text"), **dict.fromkeys(reasons, "text reason")}

    def line(cells: Sequence[str], tag: str) -> str:
        marks = (f' class="{classes[i]}"' if i in classes else "" for i in range(len(cells)))
        return "".join(f"<{tag}{mark}>{html.escape(cell)}</{tag}>" for mark, cell in zip(marks, cells, strict=True))

    body = "\n".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    head = f"<thead><tr>{line(heads, 'th')}</tr></thead>"
    return f"{scrolled(name)}<table>\n{head}\n<tbody>\n{body}\n</tbody>\n</table></div>"

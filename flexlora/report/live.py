"""The runs that are not finished: their last step, loss, score and ranks, from the files that they are writing."""

import contextlib
import html
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from flexlora.report.record_values import number
from flexlora.results.collect import Run
from flexlora.results.files import read_json_lines

LOGS = ("result.json", "config.yaml", "metrics.jsonl", "ranks.jsonl")
"""The files of a run whose change changes the page."""
WIDTH, HEIGHT = 160, 36
"""The size of a curve in pixels."""
Point = tuple[float, float]


@dataclass(frozen=True)
class Live:
    """The state of a run that is not finished."""

    name: str
    """Its folder, below the folder of all runs."""
    step: int | None
    epoch: str
    """Such as `1.5 of 20`; empty before the first line of the log."""
    loss: float | None
    metric: str
    scores: list[Point]
    """The step and the score of each evaluation."""
    ranks: list[Point]
    """The step and the mean rank after each rank event."""
    spread: str
    """The lowest and the highest rank now, such as `1–18`; empty without events."""
    age: float
    """The seconds since the run last wrote."""


def stamp_of(root: Path) -> str:
    """Return a text that changes whenever a run under `root` begins, writes a line or ends."""
    newest, count, size = 0, 0, 0
    for folder, below, files in os.walk(root):
        if "config.yaml" in files or "result.json" in files:
            below.clear()
        for name in set(files) & set(LOGS):
            try:
                status = Path(folder, name).stat()
            except OSError:  # the run has just moved or deleted it
                continue
            newest, count, size = max(newest, status.st_mtime_ns), count + 1, size + status.st_size
    return f"{newest}-{count}-{size}"


def unfinished(runs: Sequence[Run], root: Path, now: float | None = None) -> list[Live]:
    """Return the state of each run without a `result.json`, the one that wrote last first."""
    at = time.time() if now is None else now
    waiting = [run for run in runs if not (run.path / "result.json").is_file()]
    return sorted((_live(run, root, at) for run in waiting), key=lambda one: one.age)


def _live(run: Run, root: Path, now: float) -> Live:
    config = run.record.config
    metric = str(config.get("task", {}).get("main_metric") or "")
    rows, events = _rows(run.path / "metrics.jsonl"), _rows(run.path / "ranks.jsonl")
    last = rows[-1] if rows else {}
    losses = [number(row.get("loss")) for row in rows if row.get("kind") == "train"]
    epoch = number(last.get("epoch"))
    training = config.get("training", {})
    of = f" of {training.get('epochs')}" if training.get("max_steps") is None else ""
    ranks = [_ranks(row) for row in events]
    now_ranks = ranks[-1] if ranks else []
    step = number(last.get("step"))
    return Live(
        run.path.relative_to(root).as_posix(),
        None if step is None else int(step),
        "" if epoch is None else f"{epoch:.2f}{of}",
        losses[-1] if losses else None,
        metric,
        _points(rows, lambda row: number(row.get(metric)) if row.get("kind") == "eval" else None),
        _points(events, lambda row: fmean(found) if (found := _ranks(row)) else None),
        f"{min(now_ranks):.0f}–{max(now_ranks):.0f}" if now_ranks else "",
        max(0.0, now - _changed(run.path)),
    )


def _rows(file: Path) -> list[dict[str, Any]]:
    """Return the lines that are whole. A file that is not readable has none: its run says so when it ends."""
    rows: list[dict[str, Any]] = []
    with contextlib.suppress(OSError, ValueError):
        rows.extend(read_json_lines(file))
    return rows


def _ranks(row: dict[str, Any]) -> list[float]:
    ranks = row.get("ranks")
    found = [number(value) for value in ranks.values()] if isinstance(ranks, dict) else []
    return [value for value in found if value is not None]


def _points(rows: Sequence[dict[str, Any]], value_of: Callable[[dict[str, Any]], float | None]) -> list[Point]:
    found = ((number(row.get("step")), value_of(row)) for row in rows)
    return [(step, value) for step, value in found if step is not None and value is not None]


def _changed(folder: Path) -> float:
    times = [0.0]
    for name in (*LOGS, "log.txt"):
        try:
            times.append((folder / name).stat().st_mtime)
        except OSError:
            continue
    return max(times)


def as_lines(live: Sequence[Live]) -> Iterator[str]:
    """Yield a line for each run that is not finished."""
    for run in live:
        parts = [
            "" if run.step is None else f"step {run.step}",
            run.epoch and f"epoch {run.epoch}",
            "" if run.loss is None else f"loss {run.loss:.4f}",
            f"{run.metric} {run.scores[-1][1]:.4f}" if run.scores else "",
            run.spread and f"ranks {run.spread}",
            f"wrote {run.age:.0f} s ago",
        ]
        yield f"{run.name}  {'  '.join(part for part in parts if part)}"


def as_html(live: Sequence[Live]) -> str:
    """Return the section of the runs that are not finished, with a curve of the scores and of the mean rank."""
    if not live:
        return "<p>No run is unfinished.</p>"
    head = "".join(f"<th>{name}</th>" for name in HEADINGS)
    return (
        f"<h2>Unfinished runs</h2><div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>"
        + "".join(_row(run) for run in live)
        + "</tbody></table></div>"
    )


HEADINGS = ("run", "step", "epoch", "loss", "score", "scores", "ranks", "mean rank", "last line")


def _row(run: Live) -> str:
    cells = (
        html.escape(run.name),
        "" if run.step is None else str(run.step),
        run.epoch,
        "" if run.loss is None else f"{run.loss:.4f}",
        f"{html.escape(run.metric)} {run.scores[-1][1]:.4f}" if run.scores else "",
        _curve(run.scores, f"{run.metric} by step"),
        run.spread,
        _curve(run.ranks, "mean rank by step"),
        f"{run.age:.0f} s ago",
    )
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _curve(points: Sequence[Point], title: str) -> str:
    if len(points) < 2:
        return ""
    steps, values = zip(*points, strict=True)
    across, up = _scaled(steps, WIDTH), _scaled(values, HEIGHT)
    places = " ".join(f"{x:.1f},{HEIGHT - y:.1f}" for x, y in zip(across, up, strict=True))
    said = html.escape(f"{title}: {min(values):.4g} to {max(values):.4g}")
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{said}"><title>{said}</title>'
        f'<polyline points="{places}" fill="none" stroke="currentColor"/></svg>'
    )


def _scaled(values: Sequence[float], size: int) -> list[float]:
    """Return the places of the values on an axis of this size, with a margin of 2 pixels."""
    low, span = min(values), max(values) - min(values) or 1.0
    return [2 + (size - 4) * (value - low) / span for value in values]

"""What the page says about one run: facts, curve, the command that repeats it, the end of its log, its files."""

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from flexlora.reading import open_regular
from flexlora.report.numbers import count, percent_axis, short
from flexlora.report.record_values import number, scores_of
from flexlora.results.collect import Run
from flexlora.results.record import RunRecord

LOG_LINES = 8
LOG_BYTES = 2000
MOST_POINTS = 100
"""The largest number of evaluations in a run's curve. Of more, some are left out."""
TO_JSON = json.JSONEncoder(ensure_ascii=False).encode
FILES = {"record": "result.json", "log": "log.txt", "adapter": "adapter"}


def data_of(run: Run, variant: str, differs: Mapping[str, str], root: Path, folder: Path) -> dict[str, Any]:
    """Return the data of a run for the page's script.

    Args:
        run: the run.
        variant: the variant's name in the tables.
        differs: the settings in which the runs of the page differ.
        root: the folder of the runs.
        folder: the folder of the page. Links to the run's files are relative to it.
    """
    record = run.record
    metric = (record.main_metric or "").replace("_", " ")
    last, best = (number(scores_of(record, which).get(record.main_metric or "")) for which in ("last", "best"))
    history = _history(record)
    scores = [row[1] for row in history if row[1] is not None]
    active, seconds = number(record.parameters.get("adapter_active")), number(record.train_seconds)
    facts = {
        "status": record.status,
        "reason": record.error or "",
        f"{metric}, last": percent(last),
        f"{metric}, best": percent(best),
        "steps": f"{record.steps} of {record.total_steps}" if record.steps is not None else "",
        "active parameters": "" if active is None else count(active),
        "training": "" if seconds is None else f"{seconds:.1f} s",
        "started": record.started or "",
        "machine": machine(record),
        "commit": commit(record),
    }
    here = Path(os.path.relpath(run.path, folder))
    return {
        "path": place_of(run, root),
        "status": record.status,
        "scale": record.scale,
        "model": record.model,
        "method": record.method,
        "variant": variant,
        "metric": metric,
        "last": None if last is None else percent(last),
        "facts": {name: text for name, text in facts.items() if text},
        "differs": dict(differs),
        "command": _command(record),
        "log": log_end(run),
        "links": {name: quote(os.fsencode(here / file)) for name, file in FILES.items() if (run.path / file).exists()},
        "history": history,
        "span": percent_axis(scores),
    }


def place_of(run: Run, root: Path) -> str:
    """Return the run's folder, as a path below `root`."""
    return str(run.path.relative_to(root)) if run.path != root else run.path.name


def shown_value(value: object) -> str:
    """Return a setting's value as text."""
    return value if isinstance(value, str) else TO_JSON(value)


def log_end(run: Run) -> str:
    """Return the last lines of the run's log. They are empty if it has none that can be read."""
    try:
        with open_regular(run.path / "log.txt") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - LOG_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    whole = lines if size <= LOG_BYTES else lines[1:]
    return "\n".join(whole[-LOG_LINES:])


def commit(record: RunRecord) -> str:
    """Return the commit of the code that trained the run."""
    sha = record.git.get("sha")
    if not isinstance(sha, str):
        return ""
    return sha[:10] + (" with uncommitted changes" if record.git.get("dirty") else "")


def machine(record: RunRecord) -> str:
    """Return the accelerator or the processor that trained the run."""
    hardware = record.hardware
    return str(hardware.get("accelerator") or hardware.get("cpu") or "")


def _command(record: RunRecord) -> str | None:
    return None if record.overrides is None else shlex.join(["flexlora-run", *map(str, record.overrides)])


def percent(value: float | None) -> str:
    """Return a score in percent as text, which is empty without a score."""
    return "" if value is None else f"{100 * value:.2f}"


def _history(record: RunRecord) -> list[tuple[float | None, ...]]:
    """Return step, main figure in percent, training loss and evaluation loss of each evaluation."""
    rows = [row for row in record.history if isinstance(row, dict)]
    every = -(-len(rows) // MOST_POINTS)
    found = []
    for row in rows[::-1][:: max(1, every)][::-1]:
        score, losses = number(row.get(record.main_metric or "")), row.get("eval_loss")
        first = next(iter(losses.values()), None) if isinstance(losses, dict) else losses
        figures = (None if score is None else 100 * score, number(row.get("train_loss")), number(first))
        found.append((number(row.get("step")), *(None if one is None else short(one) for one in figures)))
    return found

"""The summary of a run, for its record and for the log."""

import logging
from pathlib import Path
from typing import Any

from flexlora.results.record import RunRecord
from flexlora.training.outcome import Outcome
from flexlora.training.progress import duration, rank_range
from flexlora.training.rank_alarms import rank_alarms

log = logging.getLogger("flexlora")


def fill_in(record: RunRecord, outcome: Outcome) -> None:
    """Put the outcome of a training into the run's record."""
    record.status, record.error = outcome.status, outcome.error
    record.steps, record.train_loss = outcome.steps, outcome.train_loss
    record.skipped_steps = outcome.skipped_steps
    record.resumed_at, record.sessions = outcome.resumed_at, outcome.sessions
    record.metrics = {"last": outcome.last, "best": outcome.best}
    record.history = outcome.history
    record.epochs = None if not outcome.history else outcome.history[-1]["epoch"]
    record.tokens = outcome.tokens
    record.flops = outcome.flops
    record.train_seconds = round(outcome.train_seconds, 3)
    record.eval_seconds = round(outcome.eval_seconds, 3)


def events_summary(outcome: Outcome, ranks: dict[str, int]) -> dict[str, Any]:
    """Return a summary of a training's rank events for the record. Events that moved no direction do not count.

    Args:
        outcome: the outcome of the training.
        ranks: the final rank of each module.
    """
    steps = [event["step"] for event in outcome.events if not event.get("empty")]
    return {
        "count": len(steps),
        "first_step": steps[0] if steps else None,
        "last_step": steps[-1] if steps else None,
        "final_ranks": ranks,
        "alarms": rank_alarms(outcome.events, outcome.losses),
    }


def log_summary(record: RunRecord, path: Path) -> None:
    """Log the summary of a run in a few lines."""
    rows = [("status", record.status if record.error is None else f"{record.status}: {record.error}")]
    last, best = record.metrics["last"], record.metrics["best"]
    if last is not None and best is not None:
        metric = record.main_metric or ""
        rows.append((metric, f"{last[metric]:.4f} last   {best[metric]:.4f} best (step {best['step']})"))
    if record.train_loss is not None:
        rows.append(("train loss", f"{record.train_loss:.4f}"))
    if record.skipped_steps:
        rows.append(("skipped", f"{record.skipped_steps} of {record.steps} steps: a gradient was not finite in fp16"))
    if record.rank_events is not None:
        events = record.rank_events
        rows.append(("ranks", f"{rank_range(events['final_ranks'])}   {events['count']} events"))
        rows += [("alarm", alarm) for alarm in events["alarms"]]
    if record.parameters:
        count = record.parameters
        spare = count["adapter_allocated"] - count["adapter_active"]
        held = f" ({count['adapter_allocated']:,} allocated)" if spare else ""
        rows.append(("parameters", f"adapter {count['adapter_active']:,}{held}   head {count['head']:,}"))
    if record.train_seconds is not None:
        times = f"training {duration(record.train_seconds)}   evaluation {duration(record.eval_seconds or 0.0)}"
        rows.append(("time", f"{times}   in all {duration(record.total_seconds or 0.0)}"))
    rows.append(("files", str(path)))
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        log.info("  %s  %s", name.ljust(width), text)

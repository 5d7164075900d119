"""Estimate how long a run takes from finished runs like it: their time for a step, times the steps of this run."""

import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flexlora.results.record import RunRecord, read_record
from flexlora.training.batching import steps_per_epoch

# The longest time of a run in seconds. A record with a longer time is damaged.
LONGEST = 1e9


def expected_seconds(path: Path, config: Mapping[str, Any]) -> float | None:
    """Return the expected time in seconds of the run in `path`, from finished runs of its method, task and model.

    If there are none, the finished runs of all methods there are taken. Without any the time is None.
    """
    method = path.parents[1]
    for pattern in (f"{method.name}/*/seed*/result.json", "*/*/seed*/result.json"):
        times = []
        for file in method.parent.glob(pattern):
            try:
                seconds = _scaled(read_record(file), config)
            except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):  # a damaged record
                continue
            if seconds is not None and 0 <= seconds < LONGEST:
                times.append(seconds)
        if times:
            return statistics.fmean(times)
    return None


def _scaled(record: RunRecord, config: Mapping[str, Any]) -> float | None:
    """Return the time of a finished run, with its training and its evaluations scaled to the length of another run."""
    if record.status != "done" or record.total_seconds is None:
        return None
    if not (record.steps and record.train_seconds):
        return record.total_seconds
    training, evaluating = record.train_seconds, record.eval_seconds or 0.0
    planned = _planned_steps(config, record) or record.steps
    evaluations = _evaluations(config, planned, record)
    # The record's total is the time of its last process only, so it may be less than the time of training.
    other = max(0.0, record.total_seconds - training - evaluating)
    return other + training / record.steps * planned + evaluating / max(1, len(record.history)) * evaluations


def _planned_steps(config: Mapping[str, Any], like: RunRecord) -> int | None:
    """Return the planned steps of a run on as many examples as `like` had, or None if its settings do not say."""
    training = config.get("training", {})
    if training.get("max_steps") is not None:
        return int(training["max_steps"])
    rows = like.samples.get("train")
    if not rows or training.get("epochs") is None:
        return None
    processes = like.hardware.get("processes") or 1
    an_epoch = steps_per_epoch(rows, training["batch_size"], training["gradient_accumulation"], processes)
    return int(training["epochs"]) * an_epoch


def _evaluations(config: Mapping[str, Any], planned: int, like: RunRecord) -> int:
    """Return the number of evaluations of a run of `planned` steps: every `eval_every` steps, or after each epoch."""
    every = config.get("training", {}).get("eval_every")
    if every is None:
        every = (like.steps or 1) / like.epochs if like.epochs else planned
    return max(1, math.ceil(planned / every))

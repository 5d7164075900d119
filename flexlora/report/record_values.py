"""Read values from a record. Nothing has checked them before, so a value that is not a number counts as missing."""

from collections.abc import Callable, Mapping

from flexlora.results.record import RunRecord

LARGEST = 1e300
"""The largest number that is read. Larger ones are from a damaged record: their percents or sums could overflow."""


NO_SCORES = {"step", "epoch", "train_loss", "eval_seconds"}
"""Numbers of an evaluation that are no scores."""
NO_SHARES = ("unparsed", "timed_out", "no_python", "loss")
"""The ends of the names of scores that are no shares: counts of examples, and losses."""


def number(value: object) -> float | None:
    """Return the value as a float, or None if it is not a number or is larger than `LARGEST`."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if abs(value) <= LARGEST else None


def scores_of(record: RunRecord, evaluation: str) -> Mapping[str, object]:
    """Return the scores of a run's `last` or `best` evaluation. They are empty if there was no evaluation."""
    found = record.metrics.get(evaluation)
    return found if isinstance(found, dict) else {}


def figure(record: RunRecord, metric: str, evaluation: str) -> float | None:
    """Return a figure of the `last` or `best` evaluation, or None if it is missing or the run is not done."""
    return number(scores_of(record, evaluation).get(metric)) if record.status == "done" else None


def further_scores(record: RunRecord) -> list[str]:
    """Return the names of a run's scores in its last evaluation besides the main metric. Scores are shares."""
    found = scores_of(record, "last")
    values = {name: number(value) for name, value in found.items() if name not in NO_SCORES}
    shares = (name for name, value in values.items() if value is not None and abs(value) <= 1)
    return [name for name in shares if name != record.main_metric and not name.endswith(NO_SHARES)]


def settings_of(record: RunRecord, group: str) -> dict[str, object]:
    """Return the settings of a group (`method`, `training`). They are empty if the record has none."""
    found = record.config.get(group)
    return found if isinstance(found, dict) else {}


def measures_cost(record: RunRecord) -> bool:
    """Return whether the run only measures the cost of training (`experiment=cost`). Its scores do not count."""
    return settings_of(record, "training").get("count_flops") is True


def is_generated(record: RunRecord) -> bool:
    """Return whether the run's data was generated."""
    return record.data.get("source") == "generated"


def is_part(record: RunRecord) -> bool:
    """Return whether the run used only a part of its task's data."""
    return bool(record.subset or record.data.get("held_out"))


def _samples_per_second(record: RunRecord) -> float | None:
    """Return the examples of all steps except the first, divided by the training time in seconds."""
    rows = record.samples.get("train")
    if not rows or not record.epochs or not record.train_seconds or not record.steps:
        return None
    return float(rows * record.epochs * (record.steps - 1) / record.steps / record.train_seconds)


# The value of each cost column, in seconds, bytes, operations, or examples per second.
COSTS: Mapping[str, Callable[[RunRecord], object]] = {
    "train_seconds": lambda record: record.train_seconds,
    "eval_seconds": lambda record: scores_of(record, "last").get("eval_seconds"),
    "device_bytes": lambda record: record.peak_memory.get("device_bytes"),
    "process_bytes": lambda record: record.peak_memory.get("process_bytes"),
    "flops": lambda record: record.flops,
    "samples_per_second": _samples_per_second,
}

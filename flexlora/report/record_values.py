"""What the report reads from a record. Nobody checked its values: what is no number counts as missing."""

from collections.abc import Callable, Mapping

from flexlora.results.record import RunRecord

LARGEST = 1e300
"""Numbers of a damaged record may be beyond it; up to here percents, sums and deviations are still floats."""


def number(value: object) -> float | None:
    """The value as a finite number; None where it is none."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if abs(value) <= LARGEST else None


def scores_of(record: RunRecord, evaluation: str) -> Mapping[str, object]:
    """What a run's `last` or `best` evaluation gave; empty where there was none."""
    found = record.metrics.get(evaluation)
    return found if isinstance(found, dict) else {}


def figure(record: RunRecord, metric: str, evaluation: str) -> float | None:
    """A figure of the `last` or `best` evaluation of a run that is done; None where there is none."""
    return number(scores_of(record, evaluation).get(metric)) if record.status == "done" else None


def settings_of(record: RunRecord, group: str) -> dict[str, object]:
    """The settings of a group (`method`, `training`); empty where the record has none."""
    found = record.config.get(group)
    return found if isinstance(found, dict) else {}


def measures_cost(record: RunRecord) -> bool:
    """Whether the run was made to measure what training costs, and not to learn well (`experiment=cost`)."""
    return settings_of(record, "training").get("count_flops") is True


def is_generated(record: RunRecord) -> bool:
    """Whether the run's data was generated."""
    return record.data.get("source") == "generated"


def is_part(record: RunRecord) -> bool:
    """Whether the run saw only a part of its task's data."""
    return bool(record.subset or record.data.get("held_out"))


def _samples_per_second(record: RunRecord) -> float | None:
    """Examples of all steps but the first over the training's seconds."""
    rows = record.samples.get("train")
    if not rows or not record.epochs or not record.train_seconds or not record.steps:
        return None
    return float(rows * record.epochs * (record.steps - 1) / record.steps / record.train_seconds)


# What a column of this name shows, in seconds, bytes, operations.
COSTS: Mapping[str, Callable[[RunRecord], object]] = {
    "train_seconds": lambda record: record.train_seconds,
    "eval_seconds": lambda record: scores_of(record, "last").get("eval_seconds"),
    "device_bytes": lambda record: record.peak_memory.get("device_bytes"),
    "process_bytes": lambda record: record.peak_memory.get("process_bytes"),
    "flops": lambda record: record.flops,
    "samples_per_second": _samples_per_second,
}

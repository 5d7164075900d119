"""What must be said beside a figure, as letters: on what data and with what settings its runs were made."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from flexlora.report.record_values import is_generated, is_part
from flexlora.results.record import RunRecord

MARKS = {
    "s": "subset of the data (task.max_train_rows, task.max_eval_rows)",
    "v": "on rows held out of train (task.validation_rows), to choose settings by",
    "g": "generated data",
    "d": "other data than most runs of this task (source, revision, content, or the rows of a subset)",
    "m": "its seeds ran with settings that differ",
    "x": "without seeds that did not end well or gave no figure",
    "f": "fewer seeds than another row",
    "c": "not printed: computed from the paper's printed figures",
}
# Figures with these marks cannot be ranked among those without.
NO_RIVAL = {"s", "v", "g", "d", "m"}
# A difference between figures with these marks and the paper's would say nothing.
NOT_COMPARABLE = {"s", "v", "g"}


class Usual(NamedTuple):
    """What most runs of a task saw: the data, and of the runs on a part of it the rows."""

    data: str
    rows: str

    def is_other(self, record: RunRecord) -> bool:
        """Whether a run saw other data, or another part of it than most of those that saw a part."""
        return data_identity(record) != self.data or (is_part(record) and _rows(record) != self.rows)


def usual_data(records: Iterable[RunRecord]) -> Usual:
    """What most of the runs saw; of data that two halves saw, the hub's."""
    counts: Counter[tuple[bool, str]] = Counter()
    rows: Counter[str] = Counter()
    for record in records:
        if record.data:
            counts[record.data.get("source") == "hub", data_identity(record)] += 1
        if is_part(record):
            rows[_rows(record)] += 1
    data = max(counts, key=lambda key: (counts[key], key), default=(False, ""))[1]
    return Usual(data, max(rows, key=lambda key: (rows[key], key), default=""))


def marks_of(used: Sequence[RunRecord], usual: Usual | None) -> frozenset[str]:
    """The marks of a figure of these runs; `usual` is what most runs of the task saw."""
    marks = {
        "s": any(record.subset for record in used),
        "v": any(record.data.get("held_out") for record in used),
        "g": any(is_generated(record) for record in used),
        "d": usual is not None and any(map(usual.is_other, used)),
        "m": len(used) > 1 and len({_settings(record) for record in used}) > 1,
    }
    return frozenset(mark for mark, holds in marks.items() if holds)


def data_identity(record: RunRecord) -> str:
    """What tells a run's data from another's: its files' content where that was recorded, else its revision."""
    data = record.data
    if is_generated(record):
        return "generated"
    if isinstance(data.get("sha256"), dict):
        return " ".join(sorted(map(str, data["sha256"].values())))
    return f"{data.get('path')} {data.get('revision')}"


def _rows(record: RunRecord) -> str:
    """How many rows a run trained and was evaluated on; of two runs with the same, they are the same rows."""
    return json.dumps(record.samples, sort_keys=True)


def _settings(record: RunRecord) -> str:
    """The settings that the seeds of one cell share: all but the seeds and where files are."""
    own = {"seed", "data_seed", "output_root", "path", "data_dir"}
    config = {key: value for key, value in record.config.items() if key not in own}
    groups = {
        key: {name: setting for name, setting in value.items() if name not in own}
        for key, value in config.items()
        if isinstance(value, dict)
    }
    return json.dumps(config | groups, sort_keys=True)

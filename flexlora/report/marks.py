"""The marks beside a figure: letters that say with which data and settings its runs were made."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from flexlora.report.protocol import is_own, protocol
from flexlora.report.record_values import is_generated, is_part
from flexlora.results.record import RunRecord

MARKS = {
    "s": "subset of the data (task.max_train_rows, task.max_eval_rows)",
    "v": "on rows held out of train (task.validation_rows), to choose settings by",
    "g": "generated data",
    "t": "trained for another length or with another batch than the task's (training.max_steps, epochs, batch_size)",
    "d": "other data than most runs of this task (source, revision, content, or the rows of a subset)",
    "o": "other length of training, batch or setting of the task (task.*) than most runs of this task",
    "m": "its seeds ran with settings that differ",
    "x": "without seeds that did not end well or gave no figure",
    "f": "fewer seeds than another row",
    "c": "not printed: computed from the paper's printed figures",
}
# Figures with these marks cannot be ranked among figures without them.
NO_RIVAL = {"s", "v", "g", "t", "d", "o", "m"}
# A difference between figures with these marks and the paper's would say nothing.
NOT_COMPARABLE = {"s", "v", "g", "t"}


class Usual(NamedTuple):
    """The data and the protocol of most runs of a task, and the rows of most of the runs on a part of the data."""

    data: str
    rows: str
    """Of the runs on a part of the data."""
    protocols: Mapping[bool, str]
    """Of the runs of the task's own length and batch (True), and of the others."""

    def has_other_protocol(self, record: RunRecord) -> bool:
        """Whether a run had another protocol than most runs of the task's own length, or than most of the others."""
        return protocol(record) != self.protocols.get(is_own(record))

    def is_other(self, record: RunRecord) -> bool:
        """Return whether a run used other data, or a part of the data that differs from the usual part."""
        return data_identity(record) != self.data or (is_part(record) and _rows(record) != self.rows)


def usual_data(records: Iterable[RunRecord]) -> Usual:
    """Return what most of the runs have. If two data sets are equally frequent, the hub's is returned."""
    protocols: dict[bool, Counter[str]] = {}
    counts: Counter[tuple[bool, str]] = Counter()
    rows: Counter[str] = Counter()
    for record in records:
        if record.status == "done":
            protocols.setdefault(is_own(record), Counter())[protocol(record)] += 1
        if record.data:
            counts[record.data.get("source") == "hub", data_identity(record)] += 1
        if is_part(record):
            rows[_rows(record)] += 1
    data = max(counts, key=lambda key: (counts[key], key), default=(False, ""))[1]
    return Usual(data, _most(rows), {own: _most(found) for own, found in protocols.items()})


def _most(counts: Counter[str]) -> str:
    return max(counts, key=lambda key: (counts[key], key), default="")


def marks_of(used: Sequence[RunRecord], usual: Usual | None) -> frozenset[str]:
    """Return the marks of a figure of these runs. `usual` is the data that most runs of the task used."""
    marks = {
        "s": any(record.subset for record in used),
        "v": any(record.data.get("held_out") for record in used),
        "g": any(is_generated(record) for record in used),
        "t": not all(map(is_own, used)),
        "d": usual is not None and any(map(usual.is_other, used)),
        "o": usual is not None and any(map(usual.has_other_protocol, used)),
        "m": len(used) > 1 and len({_settings(record) for record in used}) > 1,
    }
    return frozenset(mark for mark, holds in marks.items() if holds)


def data_identity(record: RunRecord) -> str:
    """Return a text that identifies a run's data: the hashes of its files if recorded, otherwise path and revision."""
    data = record.data
    if is_generated(record):
        return "generated"
    if isinstance(data.get("sha256"), dict):
        return " ".join(sorted(map(str, data["sha256"].values())))
    return f"{data.get('path')} {data.get('revision')}"


def _rows(record: RunRecord) -> str:
    """Return the numbers of rows for training and evaluation. Equal numbers mean that the rows are the same."""
    return json.dumps(record.samples, sort_keys=True)


def _settings(record: RunRecord) -> str:
    """Return the settings that all seeds of one cell must share: all except seeds and folders of files."""
    own = {"seed", "data_seed", "output_root", "path", "data_dir"}
    config = {key: value for key, value in record.config.items() if key not in own}
    groups = {
        key: {name: setting for name, setting in value.items() if name not in own}
        for key, value in config.items()
        if isinstance(value, dict)
    }
    return json.dumps(config | groups, sort_keys=True)

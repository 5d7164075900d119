"""From the runs behind one cell of a table to its figure, and to what must be said beside it."""

import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from flexlora.report.table import Average, Column, Count
from flexlora.results.collect import Run
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

LARGEST = 1e300
"""Numbers of a damaged record may be beyond it; up to here percents, sums and deviations are still floats."""

# Figures with these marks cannot be ranked among those without.
NO_RIVAL = {"s", "v", "g", "d", "m"}


@dataclass(frozen=True)
class Cell:
    """Mean, sample standard deviation (None for one seed) and number of seeds; or `word` where there is no figure."""

    mean: float | None = None
    std: float | None = None
    n: int = 0
    marks: frozenset[str] = frozenset()
    word: str = ""
    by_seed: Mapping[int, float] = field(default_factory=dict)
    place: int = 0
    """Among our rows that can be compared: 1 for the best figure of the column, 2 for the second, as printed."""


def summarise(values: Sequence[float]) -> Cell:
    """The cell of one value a seed; at least one."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return Cell(statistics.fmean(values), std, len(values))


def number(value: object) -> float | None:
    """What a record has where a number should be, which nobody checked; None where it is none, or no finite one."""
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


def score_cell(runs: Sequence[Run], column: Column, evaluation: str, usual: "Usual | None") -> Cell:
    """The cell of one row's runs of the column's task, in percent."""

    def percent(record: RunRecord) -> float | None:
        value = figure(record, column.metric, evaluation)
        return None if value is None else 100 * value

    return seeds_cell(runs, percent, usual)


def seeds_cell(runs: Sequence[Run], read: Callable[[RunRecord], float | None], usual: "Usual | None") -> Cell:
    """The cell of what `read` finds in each of one row's runs of a task, None where there is nothing."""
    if not runs:
        return Cell(word="–")
    found = [(run.record, read(run.record)) for run in runs]
    by_seed = {record.seed: value for record, value in found if value is not None}
    if not by_seed:
        words = sorted({record.status if record.status != "done" else "no figure" for record, _ in found})
        return Cell(word=", ".join(words))
    used = [record for record, value in found if value is not None]
    marks = {
        "s": any(record.subset for record in used),
        "v": any(record.data.get("held_out") for record in used),
        "g": any(is_generated(record) for record in used),
        "d": usual is not None and any(map(usual.is_other, used)),
        "m": len({_settings(record) for record in used}) > 1,
        "x": len(used) < len(found),
    }
    cell = summarise([*by_seed.values()])
    return replace(cell, marks=frozenset(mark for mark, holds in marks.items() if holds), by_seed=by_seed)


def average_cell(runs: dict[str, list[Run]], average: Average, cells: Sequence[Cell], evaluation: str) -> Cell:
    """The average of each seed that has all its columns (`cells` are the row's); `n/8` where none has."""
    by_seed: dict[int, dict[Column, float]] = {}
    for column in average.columns:
        for run in runs.get(column.task, []):
            by_seed.setdefault(run.record.seed, {})  # also of a seed that has no figure at all
            value = figure(run.record, column.metric, evaluation)
            if value is not None:
                by_seed[run.record.seed][column] = 100 * value
    size = len(average.columns)
    whole = {seed: average.mean(values) for seed, values in by_seed.items() if len(values) == size}
    if not whole:
        return Cell(word=f"{max(map(len, by_seed.values()), default=0)}/{size}")
    marks = frozenset().union(*(cell.marks for cell in cells))
    marks = marks - {"x", "f"} | ({"x"} if len(whole) < len(by_seed) else set())
    return replace(summarise([*whole.values()]), marks=marks, by_seed=whole)


def parameter_cell(runs: Iterable[Run], column: Count) -> Cell:
    """Mean of the column's count over the runs that are done."""
    counts = (run.record.parameters for run in runs if run.record.status == "done")
    parts = [[value for name in column.entries if (value := number(count.get(name))) is not None] for count in counts]
    sums = [sum(values) for values in parts if len(values) == len(column.entries)]
    return summarise(sums) if sums else Cell(word="–")


def method_settings(runs: Iterable[Run]) -> Mapping[str, object]:
    """The settings of these runs' method, by the first that has any; `m` marks cells whose runs differ in them."""
    found = (run.record.config.get("method") for run in runs)
    return next((settings for settings in found if isinstance(settings, dict)), {})


def mark_fewer(column: Sequence[Cell]) -> list[Cell]:
    """The same cells, those with fewer seeds than another one marked so."""
    most = max((cell.n for cell in column), default=0)
    return [replace(cell, marks=cell.marks | {"f"}) if 0 < cell.n < most else cell for cell in column]


def mark_places(column: Sequence[Cell], common: frozenset[str]) -> list[Cell]:
    """The same cells with their places: the best of two or more, the second of three or more.

    Figures that print alike share a place. What is not of the data and settings that the others are of has none.
    """
    rivals = [cell for cell in column if cell.mean is not None and not (cell.marks - common) & NO_RIVAL]
    figures = sorted({round(cell.mean, 1) for cell in rivals if cell.mean is not None}, reverse=True)
    if len(figures) < 2:
        return list(column)
    places = {figures[0]: 1} | ({figures[1]: 2} if len(rivals) > 2 else {})
    return [
        replace(cell, place=places.get(round(cell.mean, 1), 0)) if cell.mean is not None and cell in rivals else cell
        for cell in column
    ]


def measures_cost(record: RunRecord) -> bool:
    """Whether the run was made to measure what training costs, and not to learn well (`experiment=cost`)."""
    training = record.config.get("training")
    return isinstance(training, dict) and training.get("count_flops") is True


def is_generated(record: RunRecord) -> bool:
    """Whether the run's data was made up by us."""
    return record.data.get("source") == "generated"


def data_identity(record: RunRecord) -> str:
    """What tells a run's data from another's: its files' content where that was recorded, else its revision."""
    data = record.data
    if is_generated(record):
        return "generated"
    if isinstance(data.get("sha256"), dict):
        return " ".join(sorted(map(str, data["sha256"].values())))
    return f"{data.get('path')} {data.get('revision')}"


class Usual(NamedTuple):
    """What most runs of a task saw: the data, and of the runs on a part of it the rows."""

    data: str
    rows: str

    def is_other(self, record: RunRecord) -> bool:
        """Whether a run saw other data, or another part of it than most of those that saw a part."""
        return data_identity(record) != self.data or (is_part(record) and _rows(record) != self.rows)


def usual_data(runs: Iterable[Run]) -> Usual:
    """What most of the runs saw; of data that two halves saw, the hub's."""
    counts: Counter[tuple[bool, str]] = Counter()
    rows: Counter[str] = Counter()
    for run in runs:
        if run.record.data:
            counts[run.record.data.get("source") == "hub", data_identity(run.record)] += 1
        if is_part(run.record):
            rows[_rows(run.record)] += 1
    data = max(counts, key=lambda key: (counts[key], key), default=(False, ""))[1]
    return Usual(data, max(rows, key=lambda key: (rows[key], key), default=""))


def is_part(record: RunRecord) -> bool:
    """Whether the run saw a part of its task's data only."""
    return bool(record.subset or record.data.get("held_out"))


def _rows(record: RunRecord) -> str:
    """How many rows a run trained and was evaluated on; of two runs with the same, they are the same rows."""
    return json.dumps(record.samples, sort_keys=True)


def _settings(record: RunRecord) -> str:
    """The settings that the seeds of one cell share: all but the seeds and where things lie."""
    own = {"seed", "data_seed", "output_root", "path", "data_dir"}
    config = {key: value for key, value in record.config.items() if key not in own}
    groups = {
        key: {name: setting for name, setting in value.items() if name not in own}
        for key, value in config.items()
        if isinstance(value, dict)
    }
    return json.dumps(config | groups, sort_keys=True)

"""What a table is: columns, averages over them, the paper's rows, and what is to be said beside those."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from flexlora.report.record_values import COSTS, figure, number
from flexlora.results.record import RunRecord


@dataclass(frozen=True)
class Column:
    """One figure of the runs of one task: `metric` is a key of the record's evaluations, a share shown in percent."""

    task: str
    heading: tuple[str, str]
    metric: str
    published: str | None = None
    """What the paper calls this figure; None where it does not print it."""
    group: str = ""
    """In a terminal, columns of one group are printed together under its name."""
    optional: bool = False
    """Whether runs may do without it (a test set that was not asked for, a second average): shown where it is there."""

    def value(self, record: RunRecord, evaluation: str) -> float | None:
        """The run's figure in the unit of the column; None where it has none."""
        share = figure(record, self.metric, evaluation)
        return None if share is None else 100 * share


@dataclass(frozen=True)
class Count(Column):
    """A number of parameters: the sum of these entries of the record's `parameters`."""

    entries: tuple[str, ...] = ()

    def value(self, record: RunRecord, evaluation: str) -> float | None:
        if record.status != "done":
            return None
        found = [value for name in self.entries if (value := number(record.parameters.get(name))) is not None]
        return sum(found) if len(found) == len(self.entries) else None


@dataclass(frozen=True)
class Cost(Column):
    """What a run of the task cost: `metric` is one of `record_values.COSTS`, shown in units of `unit`."""

    unit: float = 1.0

    def value(self, record: RunRecord, evaluation: str) -> float | None:
        found = number(COSTS[self.metric](record)) if record.status == "done" else None
        return None if found is None else found / self.unit


@dataclass(frozen=True)
class Average(Column):
    """The mean over `of`, groups of columns, of each group's mean, seed by seed; of one group its plain mean."""

    of: tuple[tuple[Column, ...], ...] = ()

    @property
    def columns(self) -> tuple[Column, ...]:
        """All columns it is over."""
        return tuple(column for group in self.of for column in group)

    def mean(self, values: Mapping[Column, float]) -> float:
        """The average of these figures; all columns must be there."""
        return fmean(fmean(values[column] for column in group) for group in self.of)


@dataclass(frozen=True)
class PaperRow:
    """A method's printed row: its cells from the first of `tables` that has them (see the `table` column)."""

    method: str
    row: str
    tables: tuple[str, ...]
    settings: tuple[tuple[str, tuple[object, ...]], ...] = ()
    """What the settings of a method may be for its runs to stand beside it, such as `r`; others do not matter."""


@dataclass(frozen=True)
class TableRow:
    """A row that a table shows: the runs of a method, of all its variants or of one."""

    method: str
    variant: str | None = None


@dataclass(frozen=True)
class Table:
    """What a table shows. `methods` come first and in this order, whatever else was run after them."""

    name: str
    tasks: str
    columns: tuple[Column, ...]
    averages: tuple[Average, ...] = ()
    methods: tuple[str, ...] = ()
    rows: tuple[TableRow, ...] = ()
    """The rows it shows, in this order; empty: all, those of `methods` first."""
    paper_title: str = ""
    paper_table: int = 0
    """The number of its table in the paper."""
    paper_model: str | None = None
    """The model of the paper's numbers; None where the table has none."""
    published: str = ""
    paper_rows: tuple[PaperRow, ...] = ()
    footnotes: tuple[tuple[str | None, str], ...] = ()
    """A task, or None for all, and what is to be said beside the paper's numbers when it is shown."""
    fixed: tuple[tuple[str, object], ...] = ()
    """What these settings must be (`method.direction`), where a run has them, for it to be shown."""
    varied: str = ""
    """The only setting of a method that a variant's name may change for its runs to be shown; empty: any."""
    without_variant: str = ""
    """A variant whose runs are shown in another table."""
    parts: str = "tasks"
    """What its averages are over."""
    wide: bool = False
    """Whether its many columns need short cells: a deviation stands below its mean in a terminal, and the usual number
    of seeds is said once."""
    default: bool = False
    """Whether it is shown where no table is asked for."""

    @property
    def main(self) -> tuple[Column, ...]:
        """The columns that count in an average; all where there is none."""
        counted = {column for average in self.averages for column in average.columns}
        return tuple(column for column in self.columns if column in counted or not self.averages)

    @property
    def of_costs(self) -> bool:
        """Whether it shows what training costs, and not scores."""
        return any(isinstance(column, Cost) for column in self.columns)


ADAPTER = Count("", ("adapter", "params"), "adapter_parameters", entries=("adapter_active",))
TRAINABLE = Count("", ("all", "trained"), "trainable_parameters", entries=("adapter_active", "head"))

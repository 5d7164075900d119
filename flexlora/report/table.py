"""The description of a table: its columns, the averages over them, the paper's rows and their footnotes."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from flexlora.report.record_values import COSTS, figure, number
from flexlora.results.record import RunRecord


@dataclass(frozen=True)
class Column:
    """One figure of the runs of one task. `metric` is a key of the record's evaluations. It is shown in percent."""

    task: str
    heading: tuple[str, str]
    metric: str
    published: str | None = None
    """The paper's name for this figure, or None if the paper does not print it."""
    group: str = ""
    """The name of the group of columns. In a terminal, the columns of a group are printed together below its name."""
    optional: bool = False
    """Whether the column is shown only if a run has its figure, such as a test set that not every run evaluates."""
    secondary: bool = False
    """Whether this is a further figure of a task, which does not count among tasks and in comparisons over tasks."""

    def value(self, record: RunRecord, evaluation: str) -> float | None:
        """Return the run's figure in the unit of the column, or None if the run has none."""
        share = figure(record, self.metric, evaluation)
        return None if share is None else 100 * share


@dataclass(frozen=True)
class Count(Column):
    """A number of parameters: the sum of the `entries` of the record's `parameters`."""

    entries: tuple[str, ...] = ()

    def value(self, record: RunRecord, evaluation: str) -> float | None:
        if record.status != "done":
            return None
        found = [value for name in self.entries if (value := number(record.parameters.get(name))) is not None]
        return sum(found) if len(found) == len(self.entries) else None


@dataclass(frozen=True)
class Cost(Column):
    """A cost of a run of the task. `metric` is one of `record_values.COSTS`. It is shown in units of `unit`."""

    unit: float = 1.0

    def value(self, record: RunRecord, evaluation: str) -> float | None:
        found = number(COSTS[self.metric](record)) if record.status == "done" else None
        return None if found is None else found / self.unit


@dataclass(frozen=True)
class Average(Column):
    """The mean of the means of some groups of columns (`of`), seed by seed. With one group it is the plain mean."""

    of: tuple[tuple[Column, ...], ...] = ()

    @property
    def columns(self) -> tuple[Column, ...]:
        """All columns that the average includes."""
        return tuple(column for group in self.of for column in group)

    def mean(self, values: Mapping[Column, float]) -> float:
        """Return the average of these figures. `values` must have all columns of the average."""
        return fmean(fmean(values[column] for column in group) for group in self.of)


@dataclass(frozen=True)
class PaperRow:
    """A method's row in the paper. Each cell is from the first of `tables` (the CSV's `table` column) that has it."""

    method: str
    row: str
    tables: tuple[str, ...]
    settings: tuple[tuple[str, tuple[object, ...]], ...] = ()
    """The allowed values of settings such as `r`. Only runs with allowed values are compared with this row."""


@dataclass(frozen=True)
class TableRow:
    """A row that a table shows: the runs of a method. `variant` None means all its variants."""

    method: str
    variant: str | None = None


@dataclass(frozen=True)
class Table:
    """The description of a table. Rows of `methods` come first, in this order. Rows of other methods follow."""

    name: str
    tasks: str
    columns: tuple[Column, ...]
    averages: tuple[Average, ...] = ()
    methods: tuple[str, ...] = ()
    rows: tuple[TableRow, ...] = ()
    """The rows that the table shows, in this order. If it is empty, the table shows all rows, `methods` first."""
    paper_title: str = ""
    paper_table: int | None = 0
    """The number of this table in the paper, or None if it has a name instead."""
    paper_model: str | None = None
    """The model of the paper's numbers, or None if the table has no such numbers."""
    published: str = ""
    paper_rows: tuple[PaperRow, ...] = ()
    footnotes: tuple[tuple[str | None, str], ...] = ()
    """Pairs of a task and a footnote on the paper's numbers. A footnote is printed if its task (None: any) is shown."""
    fixed: tuple[tuple[str, object], ...] = ()
    """The required values of settings such as `method.direction`. A run that has another value is not shown."""
    varied: str = ""
    """The only method setting that a shown run's variant may change. If it is empty, a variant may change any."""
    without_variant: str = ""
    """A variant whose runs are not shown, because another table shows them."""
    parts: str = "tasks"
    """The word for the things that its averages are taken over."""
    wide: bool = False
    """Whether its many columns need short cells. In a terminal the deviation is then printed below its mean, and the
    usual number of seeds is said once, above the table."""
    default: bool = False
    """Whether the table is shown by default, without `--table`."""

    @property
    def main(self) -> tuple[Column, ...]:
        """The columns that count in an average. If the table has no average, all columns but the secondary ones."""
        counted = {column for average in self.averages for column in average.columns}
        return tuple(c for c in self.columns if (c in counted if self.averages else not c.secondary))

    @property
    def of_costs(self) -> bool:
        """Whether the table shows costs of training instead of scores."""
        return any(isinstance(column, Cost) for column in self.columns)


ADAPTER = Count("", ("adapter", "params"), "adapter_parameters", entries=("adapter_active",))
TRAINABLE = Count("", ("all", "trained"), "trainable_parameters", entries=("adapter_active", "head"))

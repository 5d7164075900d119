"""What a table is: columns, averages over them, the paper's rows, and what is to be said beside those."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True)
class Column:
    """One figure of the runs of one task: `metric` is a key of the record's evaluations, a share shown in percent."""

    task: str
    heading: tuple[str, str]
    metric: str
    published: str | None = None
    """What the paper calls this figure; None where it does not print it."""
    group: str = ""
    """In a terminal, columns of one group stand together under its name."""
    optional: bool = False
    """Whether runs may do without it (a test set that was not asked for, a second average): shown where it is there."""


@dataclass(frozen=True)
class Count(Column):
    """A number of parameters: the sum of these entries of the record's `parameters`."""

    entries: tuple[str, ...] = ()


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
class Cost(Column):
    """What a run of the task cost: `metric` is one of `flexlora/report/costs.py`, shown in units of `unit`."""

    unit: float = 1.0


@dataclass(frozen=True)
class PaperRow:
    """A method's printed row: its cells from the first of `tables` that has them (see the `table` column)."""

    method: str
    row: str
    tables: tuple[str, ...]
    settings: tuple[tuple[str, tuple[object, ...]], ...] = ()
    """What the settings of a method may be for its runs to stand beside it, such as `r`; others do not matter."""


@dataclass(frozen=True)
class Table:
    """What a table shows. `methods` come first and in this order, whatever else was run after them."""

    name: str
    tasks: str
    paper_title: str
    paper_model: str
    columns: tuple[Column, ...]
    averages: tuple[Average, ...]
    methods: tuple[str, ...]
    published: str
    paper_rows: tuple[PaperRow, ...]
    footnotes: tuple[tuple[str | None, str], ...]
    """A task, or None for all, and what is to be said beside the paper's numbers when it is shown."""
    only: tuple[str, ...] = ()
    """The methods whose runs it shows; empty: all."""
    fixed: tuple[tuple[str, object], ...] = ()
    """What these settings must be (`method.direction`), where a run has them, for it to be shown."""
    varied: str = ""
    """The only setting of a method that a variant's name may change for its runs to be shown; empty: any."""
    without_variant: str = ""
    """A variant whose runs stand in another table."""
    parts: str = "tasks"
    """What its averages are over."""
    wide: bool = False
    """Whether its many columns need short cells: a deviation stands below its mean in a terminal, and the usual number
    of seeds is said once."""

    @property
    def main(self) -> tuple[Column, ...]:
        """The columns that count in an average."""
        counted = {column for average in self.averages for column in average.columns}
        return tuple(column for column in self.columns if column in counted)


ADAPTER = Count("", ("adapter", "params"), "adapter_parameters", entries=("adapter_active",))
TRAINABLE = Count("", ("all", "trained"), "trainable_parameters", entries=("adapter_active", "head"))

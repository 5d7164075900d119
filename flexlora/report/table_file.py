"""Read a table from a YAML file of the package or the user. docs/reference/flexlora-report.md explains its keys."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml

from flexlora.errors import UserError, did_you_mean, one_line
from flexlora.reading import read_yaml_text
from flexlora.report.published import lines_of
from flexlora.report.table import Average, Column, Cost, PaperRow, Table, TableRow

FOLDER = Path(__file__).parent / "tables"
KEYS = (
    *("title", "columns", "rows", "methods", "averages", "costs", "units", "paper", "footnotes", "extends"),
    *("fixed", "varied", "without_variant", "parts", "wide", "default"),
)
# The keys that a table takes from the table that it extends, unless it has the key itself.
INHERITED = ("title", "columns", "averages", "costs", "units", "methods", "parts", "wide")
SECONDS = {"s": 1.0, "h": 3600.0}
BYTES = {"MB": 2.0**20, "GB": 2.0**30}  # powers of two, like the paper's units in every case that can be checked
KINDS = {
    str: "text",
    int: "a whole number",
    bool: "true or false",
    dict: "a mapping",
    list: "a list",
    object: "a text or a list of two",
}
Item = TypeVar("Item")


def read_table(path: Path) -> Table:
    """Return the table that a file describes. The table has the file's name.

    Raises:
        UserError: the file cannot be read, or a key is unknown, is missing, or has an invalid value.
    """
    values = _Values(path, _with_extended(path, _load(path)), KEYS)
    columns = [*values.items("columns", COLUMN, _column), *_costs(values)]
    if not columns:
        raise values.error("columns", "a table needs at least one column, with its task and metric")
    if len({(one.column.task, one.column.metric) for one in columns}) < len(columns):
        raise values.error("columns", "two columns have the same task and metric")
    paper = _Values(path, values.get("paper", dict, {}), ("title", "table", "model", "numbers", "rows"), "paper.")
    title = values.get("title", str, path.stem)
    # A paper's table has a number, or a name where its number is not known.
    printed = paper.get("table", str, "") if paper.has("table", str) else str(paper.get("table", int, 0))
    table = Table(
        name=path.stem,
        tasks=title,
        columns=tuple(one.column for one in columns),
        averages=tuple(values.items("averages", AVERAGE, lambda item: _average(item, columns), short="name")),
        methods=tuple(values.texts("methods")),
        rows=tuple(values.items("rows", ("method", "variant"), _row, short="method")),
        paper_title=paper.get("title", str, f"{title}, as Table {printed} of the FlexLoRA paper"),
        paper_table=int(printed) if printed.isdigit() else None,
        paper_model=paper.get("model", str, None),
        published=_numbers_of(path, paper.get("numbers", str, "")),
        paper_rows=tuple(paper.items("rows", PAPER_ROW, lambda item: _paper_row(item, printed))),
        footnotes=tuple(values.items("footnotes", ("for", "text"), _footnote, short="text")),
        fixed=tuple(values.get("fixed", dict, {}).items()),
        varied=values.get("varied", str, ""),
        without_variant=values.get("without_variant", str, ""),
        parts=values.get("parts", str, "tasks"),
        wide=values.get("wide", bool, False),
        default=values.get("default", bool, False),
    )
    if path.parent != FOLDER and table.paper_rows:
        _check_numbers(table, paper)
    return table


class _Values:
    """A mapping in the file. It knows the place of its keys in the file, for error messages."""

    def __init__(self, file: Path, values: object, keys: Sequence[str], place: str = "") -> None:
        self.file, self.place = file, place
        if not isinstance(values, dict):
            raise UserError(f"{file}: {place.removesuffix('.')}: it is a mapping with the keys {_list(keys)}")
        self._values = values
        for key in values:
            if key not in keys:
                near = did_you_mean(str(key), keys)
                raise self.error(str(key), f"there is no such key.{near} There are: {_list(keys)}")

    def error(self, key: str, what: str) -> UserError:
        return UserError(f"{self.file}: {self.place}{key}: {what}")

    def get(self, key: str, kind: type, *default: Any) -> Any:
        """Return the value of a key, or the default if the key is missing.

        Raises:
            UserError: the value is not of this kind, or the key is missing and there is no default.
        """
        if key not in self._values:
            if default:
                return default[0]
            raise self.error(key, f"this key is missing; its value is {KINDS[kind]}")
        value = self._values[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.error(key, f"its value is {KINDS[kind]}, and not {value!r}")
        return value

    def has(self, key: str, kind: type) -> bool:
        """Return whether the key has a value of this kind."""
        return isinstance(self._values.get(key), kind)

    def texts(self, key: str) -> list[str]:
        """Return the list of texts of a key. It is empty if the key is missing."""
        found = self.get(key, list, [])
        for value in found:
            if not isinstance(value, str):
                raise self.error(key, f"its values are text, and not {value!r}")
        return list(found)

    def items(
        self, key: str, keys: Sequence[str], read: Callable[["_Values"], Item], short: str | None = None
    ) -> list[Item]:
        """Return the results of `read` for each mapping in a list. A text means a mapping with only the key `short`."""
        found = []
        for i, item in enumerate(self.get(key, list, [])):
            whole = {short: item} if short is not None and isinstance(item, str) else item
            found.append(read(_Values(self.file, whole, keys, f"{self.place}{key}[{i}].")))
        return found


class _Column(NamedTuple):
    """A column, and whether an average over all columns includes it."""

    column: Column
    in_average: bool


COLUMN = ("task", "metric", "heading", "paper", "group", "optional", "in_average")
AVERAGE = ("name", "heading", "paper", "over", "without", "optional")
PAPER_ROW = ("row", "method", "tables", "settings")


def _column(item: _Values) -> _Column:
    task, metric = item.get("task", str), item.get("metric", str)
    column = Column(
        task,
        _heading(item, (task.rsplit("/", 1)[-1], metric.replace("_", " "))),
        metric,
        item.get("paper", str, None),
        item.get("group", str, ""),
        item.get("optional", bool, False),
    )
    return _Column(column, item.get("in_average", bool, True))


def _heading(item: _Values, default: tuple[str, str]) -> tuple[str, str]:
    """Return the two lines of a heading. The file has a text (one line) or a list of two texts."""
    if not item.has("heading", list):
        text = item.get("heading", str, "")
        return (text, "") if text else default
    lines = item.texts("heading")
    if len(lines) != 2:
        raise item.error("heading", f"it is a text or a list of two, and not {lines!r}")
    return lines[0], lines[1]


def _costs(values: _Values) -> list[_Column]:
    """Return the columns of training costs, six for each task."""
    units = _Values(values.file, values.get("units", dict, {}), ("time", "memory"), "units.")
    time, size = units.get("time", str, "s"), units.get("memory", str, "MB")
    for key, unit, known in (("time", time, SECONDS), ("memory", size, BYTES)):
        if unit not in known:
            raise units.error(key, f"there is no unit {unit!r}. There are: {_list(known)}")
    second, byte = SECONDS[time], BYTES[size]
    evaluation = "Eval Runtime (s)" if time == "s" else None  # Table 13 is in hours and has no evaluation time

    def columns(item: _Values) -> list[Column]:
        task = item.get("task", str)
        name = item.get("heading", str, task.rsplit("/", 1)[-1])
        return [
            Cost(task, (name, f"train {time}"), "train_seconds", f"Train Runtime ({time})", name, unit=second),
            Cost(task, (name, f"evaluation {time}"), "eval_seconds", evaluation, name, unit=second),
            Cost(task, (name, f"GPU {size}"), "device_bytes", f"GPU Mem ({size})", name, optional=True, unit=byte),
            Cost(task, (name, f"process {size}"), "process_bytes", None, name, optional=True, unit=byte),
            Cost(task, (name, "GFLOP a step"), "flops", None, name, unit=1e9),
            Cost(task, (name, "samples/s"), "samples_per_second", None, name),
        ]

    found = values.items("costs", ("task", "heading"), columns, short="task")
    return [_Column(column, False) for of_task in found for column in of_task]


def _average(item: _Values, columns: Sequence[_Column]) -> Average:
    """Return the average that the file describes: over the columns of its groups, or over all columns that count."""
    counted = [one.column for one in columns if one.in_average]
    without, known = item.texts("without"), {column.task for column in counted}
    for task in without:
        if task not in known:
            raise item.error("without", f"no column is of the task {task!r}.{did_you_mean(task, known)}")
    groups = []
    over: list[str | None] = [*item.texts("over")]
    for group in over or [None]:
        found = [one for one in counted if group in (None, one.group) and one.task not in without]
        if not found:
            raise item.error("over", f"no column has the group {group!r}")
        groups.append(tuple(found))
    optional = item.get("optional", bool, False)
    name, printed = item.get("name", str), item.get("paper", str, None)
    return Average(name, _heading(item, ("Avg.", "")), "average", printed, optional=optional, of=tuple(groups))


def _row(item: _Values) -> TableRow:
    return TableRow(item.get("method", str), item.get("variant", str, None))


def _paper_row(item: _Values, table: str) -> PaperRow:
    settings = {
        key: tuple(value) if isinstance(value, list) else (value,)
        for key, value in item.get("settings", dict, {}).items()
    }
    tables = tuple(item.texts("tables") or [table])
    return PaperRow(item.get("method", str), item.get("row", str), tables, tuple(settings.items()))


def _footnote(item: _Values) -> tuple[str | None, str]:
    return item.get("for", str, None), item.get("text", str)


def _list(keys: Sequence[str] | dict[str, float]) -> str:
    return ", ".join(keys)


@cache
def _load(path: Path) -> dict[str, Any]:
    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        values = yaml.load(read_yaml_text(path), loader)
    except OSError as error:
        raise UserError(f"{path}: the table cannot be read: {error.strerror or error}") from error
    except Exception as error:  # YAML's constructors raise any error: a number of 5,000 digits, day 32
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or one_line(error)
        raise UserError(f"{path}{where}: the table is not valid YAML: {problem}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: a table is a mapping with the keys {_list(KEYS)}")
    return values


def _with_extended(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Return the table's values, completed with those of the package's table that it extends."""
    if "extends" not in values:
        return values
    name = values["extends"]
    known = sorted(file.stem for file in FOLDER.glob("*.yaml"))
    if name not in known:
        near = did_you_mean(str(name), known)
        raise UserError(f"{path}: extends: there is no table {name!r}.{near} There are: {_list(known)}")
    base = _load(FOLDER / f"{name}.yaml")
    base = _with_extended(path, base)
    found = {key: base[key] for key in INHERITED if key in base} | values
    if isinstance(values.get("paper"), dict):
        found["paper"] = {**base.get("paper", {}), **values["paper"]}
    tasks = {column["task"] for column in base.get("columns", ())}
    of_columns = [note for note in base.get("footnotes", ()) if isinstance(note, dict) and note.get("for") in tasks]
    if of_columns and isinstance(values.get("footnotes", []), list) and "columns" not in values:
        found["footnotes"] = [*values.get("footnotes", []), *of_columns]
    return found


def _numbers_of(path: Path, name: str) -> str:
    """Return the file of printed numbers. The package's files are in `published/`, the user's beside the table."""
    return name if path.parent == FOLDER or not name else str(path.parent.absolute() / name)


def _check_numbers(table: Table, paper: _Values) -> None:
    """Check that the printed numbers of a user's table can be shown.

    Raises:
        UserError: the file of numbers cannot be read, or lacks a row.
    """
    for i, row in enumerate(table.paper_rows):
        try:
            lines_of(row, table.published)
        except UserError as error:
            raise paper.error(f"rows[{i}]", str(error)) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = getattr(error, "strerror", None) or one_line(error)
            raise paper.error("numbers", f"{table.published} cannot be read: {reason}") from error

"""A table of the user: one or two texts and a label in each row. Columns, classes and split are read from the data.

The rows then go through `Glue`, as those of GLUE do: its tokens, batches, loss and metrics.
"""

import logging
import math
from collections.abc import Mapping
from typing import Any

from flexlora.errors import UserError
from flexlora.settings import GlueTask, LabelKind, OwnTableTask, TsvData
from flexlora.tasks.glue import Glue, glue
from flexlora.tasks.glue_columns import table_rows
from flexlora.tasks.metrics import load_metric
from flexlora.tasks.own_files import (
    TRAIN,
    Part,
    has,
    listed,
    read_parts,
    require,
    source_facts,
    split_facts,
    split_line,
    warn_of_small_classes,
)
from flexlora.tasks.rows import Rows, as_class, drawn
from flexlora.tasks.tables import Table
from flexlora.tasks.tokens import Examples

log = logging.getLogger("flexlora")

# With more different whole numbers, a label may be a class or a number.
MOST_CLASSES = 20
# A larger share of unknown words gets a warning.
MOST_UNKNOWN = 0.1
DEFAULT_METRIC = {LabelKind.classes: "accuracy_macro_f1", LabelKind.numbers: "pearson_spearman"}
# The main score of a metric where it is not the first one.
MAIN = {"pearson_spearman": "pearson_spearman_mean"}


def load(settings: OwnTableTask) -> Glue:
    """Read a table from `task.data_dir`, find its columns and classes, and split it if it has no split.

    Raises:
        UserError: there is no such file, a column is missing, a cell is empty, or the labels allow no training.
    """
    root, parts = read_parts(settings.data_dir, "a table of texts with a column of labels")
    columns = _columns(settings, parts)
    labels = [label for part in parts.values() for label in part.values(settings.label)]
    classes = _classes(settings, labels, parts)
    kind = LabelKind.numbers if classes is None else LabelKind.classes
    task = _as_glue(settings, columns, classes, kind, [name for name in parts if name != TRAIN] or ["test"])
    rows = {name: _rows(part, task, settings.label) for name, part in parts.items()}
    drawn_with = None
    if len(rows) == 1:
        rows = _split(settings, rows[TRAIN], classes)
        drawn_with = settings.split_seed
    facts = {
        "columns": {"text": columns, "label": settings.label},
        "kind": kind.value,
        "classes": classes,
        "split": split_facts({name: len(part) for name, part in rows.items()}, drawn_with),
    }
    for line in _lines(facts):
        log.info("%s", line)
    if classes is not None:
        tests = [label for name, part in rows.items() if name != TRAIN for label in part.labels]
        warn_of_small_classes(classes, rows[TRAIN].labels, tests)
    provenance = {**source_facts(root, parts, "table"), "left_out": {}, **facts}
    return glue(task, rows.pop(TRAIN), rows, provenance, OwnTable)


class OwnTable(Glue):
    """A task of GLUE's kind that warns if the model's tokenizer does not know many of the words."""

    def preprocess(self, processor: Any) -> None:
        super().preprocess(processor)
        assert isinstance(self.train.examples, Examples)
        ids = self.train.examples.tokens.columns["input_ids"]
        share = float((ids == processor.unk_token_id).mean()) if processor.unk_token_id is not None else 0.0
        if share > MOST_UNKNOWN:
            log.warning("%.0f %% of the words are unknown to this model: it can learn little from them", 100 * share)


def _lines(facts: dict[str, Any]) -> list[str]:
    """Return the lines that tell the user how the data were read."""
    columns, classes = facts["columns"], facts["classes"]
    what = "a number" if classes is None else f"{len(classes)} classes, in this order: {listed(classes)}"
    return [
        f"data: text {' and '.join(columns['text'])}; label {columns['label']}, {what}",
        split_line(facts["split"]),
    ]


# --- columns and labels -----------------------------------------------------------------------------------------------


def _columns(settings: OwnTableTask, parts: Mapping[str, Part]) -> list[str]:
    """Return the text columns, after a check that every file has all columns and no empty text."""
    tables = [entry for part in parts.values() for entry in part.tables]
    first, table = tables[0]
    require(settings.label, "task.label", first, table)
    columns = settings.text
    if columns is None:
        columns = [name for name in table.columns if name != settings.label]
        if len(columns) not in (1, 2):
            raise UserError(
                f"task.text is not set, and {first} has {len(columns)} columns beside '{settings.label}': "
                f"give one or two, as in task.text=[COLUMN]. {has(table)}"
            )
    if len(columns) not in (1, 2) or len({*columns, settings.label}) <= len(columns):
        raise UserError(
            f"task.text=[{','.join(columns)}], task.label={settings.label}: give one or two columns of texts, "
            "and another column of labels"
        )
    for path, table in tables:
        for column in columns:
            require(column, "task.text", path, table)
        require(settings.label, "task.label", path, table)
        for column in (*columns, settings.label):
            for number, value in enumerate(table.columns[column], start=1):
                if value is None or (isinstance(value, str) and not value.strip()) or value != value:
                    raise UserError(f"{path}, row {number}: {column} is empty: fill it in or remove the row")
    return columns


def _classes(settings: OwnTableTask, labels: list[tuple[str, Any]], parts: Mapping[str, Part]) -> list[str] | None:
    """Return the names of the classes in order, or None if the labels are numbers."""
    kind = settings.kind
    named = next((table.names for part in parts.values() for _, table in part.tables if table.names), None)
    values = [_number(value) for _, value in labels]
    different = {_name(value) for _, value in labels}
    if kind is None:
        kind = LabelKind.classes
        if named is None and settings.labels is None and None not in values:
            whole = all(value is not None and value.is_integer() for value in values)
            if whole and len(different) > MOST_CLASSES:
                raise UserError(
                    f"column '{settings.label}' has {len(different)} different whole numbers: "
                    "set task.kind=classes or task.kind=numbers"
                )
            kind = LabelKind.classes if whole else LabelKind.numbers
            if whole:
                log.info("data: whole numbers as labels are taken as classes; task.kind=numbers predicts numbers")
    if kind is LabelKind.numbers:
        if settings.labels is not None:
            raise UserError("task.labels names classes, but task.kind is numbers: leave one of them out")
        if len(set(values)) == 1 and None not in values:
            raise UserError(f"column '{settings.label}' has the same number in every row: there is nothing to learn")
        return None
    if named is not None and settings.labels is None:
        return [*named]
    classes = settings.labels if settings.labels is not None else _sorted(different)
    if len(classes) < 2:
        raise UserError(
            f"column '{settings.label}' has only the class '{classes[0] if classes else ''}': two are needed"
        )
    return classes


def _sorted(names: set[str]) -> list[str]:
    """Sort the names of classes: by size if all are numbers, otherwise as texts."""
    if all(_number(name) is not None for name in names):
        return sorted(names, key=lambda name: (float(name), name))
    return sorted(names)


def _number(label: Any) -> float | None:
    try:
        value = math.nan if isinstance(label, bool) else float(label)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _name(label: Any) -> str:
    """Return a label as the name of a class: 2.0 in a file of numbers is class 2."""
    if isinstance(label, bool):
        return str(label).lower()
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    return str(label).strip()


def _as_glue(
    settings: OwnTableTask, columns: list[str], classes: list[str] | None, kind: LabelKind, evaluation: list[str]
) -> GlueTask:
    metric = settings.metric or DEFAULT_METRIC[kind]
    main = MAIN.get(metric) or load_metric(metric).scores[0]
    return GlueTask(
        name=settings.name,
        family=settings.family,
        num_labels=1 if classes is None else len(classes),
        labels=[] if classes is None else classes,
        label_range=None,
        text=columns,
        metric=metric,
        main_metric=settings.main_metric or main,
        max_length=settings.max_length,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        data_dir=settings.data_dir,
        max_train_rows=settings.max_train_rows,
        max_eval_rows=settings.max_eval_rows,
        validation_rows=settings.validation_rows,
        token_cache=settings.token_cache,
        tsv=TsvData(evaluation={name: name for name in evaluation}),
    )


# --- rows -------------------------------------------------------------------------------------------------------------


def _rows(part: Part, task: GlueTask, label: str) -> Rows:
    found = []
    for path, table in part.tables:
        columns = dict(table.columns)
        if task.num_labels > 1 and not table.names:
            columns[label] = [
                _class(value, task, f"{path}, row {i}") for i, value in enumerate(columns[label], start=1)
            ]
        found.append(table_rows(Table(columns, table.names), task, str(path), label))
    texts = tuple([text for rows in found for text in rows.texts[i]] for i in range(len(task.text)))
    return Rows(texts, [label for rows in found for label in rows.labels], part.sha256)


def _class(value: Any, task: GlueTask, where: str) -> int:
    """Return the class of a label. A number is a name here, not the position of a class."""
    found = as_class(_name(value), task)
    if isinstance(found, str):
        raise UserError(f"{where}: {found}")
    return found


def _split(settings: OwnTableTask, rows: Rows, classes: list[str] | None) -> dict[str, Rows]:
    labels = rows.labels if classes is not None else [0] * len(rows)
    train, test = drawn(labels, 1 - settings.test_share, settings.test_share, settings.split_seed)
    without = {*labels} - {labels[i] for i in train}
    if not test or without:
        what = (
            f"no training row of {listed([str(classes[i]) for i in sorted(without)])}"
            if without and classes
            else "no test row"
        )
        raise UserError(
            f"task.test_share={settings.test_share:g} of {len(rows)} rows leaves {what}: "
            "give more rows, another share, or files train and test"
        )
    return {TRAIN: rows.pick(train), "test": rows.pick(test)}

"""GLUE's splits with the hub's columns: from the hub, or from parquet, JSON or CSV files with the same columns."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flexlora.errors import UserError
from flexlora.settings import GlueTask
from flexlora.tasks.rows import Rows, as_class, as_number, out_of_range
from flexlora.tasks.tables import LABEL, READERS, Readers, Table, read_table
from flexlora.text_files import HALF_LETTER

# How a table writes a class number as a text: as a whole number, or as a float with nothing behind its point.
WHOLE_NUMBER = re.compile(r"0*(\d{1,9})(\.0*)?", re.ASCII)
# The name of one part of a split, as on the hub: train-00000-of-00002.parquet
PART = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<parts>\d{5})")


def find_split(folder: Path, split: str, readers: Readers = READERS) -> list[Path]:
    """Find the files of one split in `folder`, in order: `<split>.parquet` (.json, .jsonl, .csv), whole or in parts.

    Raises:
        UserError: the folder has the split more than once, or a part is missing.
    """
    whole, parts = [], []
    for path in sorted(folder.iterdir()):
        part = PART.fullmatch(path.stem)
        if path.suffix.lower() not in readers or not path.is_file():
            continue
        if path.stem == split:
            whole.append(path)
        elif part and part["split"] == split:
            parts.append((path, int(part["number"]), int(part["parts"])))
    if len(whole) + bool(parts) > 1:
        names = ", ".join(path.name for path in [*whole, *(path for path, _, _ in parts)])
        raise UserError(f"task.data_dir: {folder} has split '{split}' more than once: {names}")
    if parts:
        count = parts[0][2]
        if [(number, total) for _, number, total in parts] != [(number, count) for number in range(count)]:
            found = ", ".join(path.name for path, _, _ in parts)
            raise UserError(f"task.data_dir: split '{split}' in {folder} is incomplete: it has only {found}")
    return whole or [path for path, _, _ in parts]


def read_files(paths: Sequence[Path], settings: GlueTask) -> Rows:
    """Read the rows of one split from its files.

    Raises:
        UserError: a file cannot be read, lacks a column, or has a broken row. The message names the file and the row.
    """
    every = [_read_file(path, settings) for path in paths]
    texts = tuple([text for rows in every for text in rows.texts[i]] for i in range(len(settings.text)))
    labels = [label for rows in every for label in rows.labels]
    if not labels:
        raise UserError(f"{paths[0]} has no rows")
    return Rows(texts, labels, {name: sha256 for rows in every for name, sha256 in rows.sha256.items()})


def hub_rows(split: Any, settings: GlueTask, name: str) -> Rows:
    """Read the rows of a split that the `datasets` library loaded.

    Raises:
        UserError: a column is missing, or a row is broken. The message names the split and the row.
    """
    wanted = [column for column in (*settings.text, LABEL) if column in split.column_names]
    columns = dict.fromkeys(split.column_names, ()) | split.select_columns(wanted)[:]
    return table_rows(Table(columns, getattr(split.features.get(LABEL), "names", None)), settings, f"split '{name}'")


def _read_file(path: Path, settings: GlueTask) -> Rows:
    table, sha256 = read_table(path)
    rows = table_rows(table, settings, str(path))
    rows.sha256[path.name] = sha256
    return rows


def table_rows(table: Table, settings: GlueTask, where: str, label: str = LABEL) -> Rows:
    """Return the rows of a table.

    Raises:
        UserError: a column is missing, or a row is broken. The message begins with `where`.
    """
    if not table.columns:
        raise UserError(f"{where} has no rows")
    for column in (*settings.text, label):
        if column not in table.columns:
            raise UserError(f"{where} has no column '{column}'. It has: {', '.join(map(str, table.columns))}")
    # The same classes in another order would give every label another meaning.
    if table.names is not None and set(table.names) == set(settings.labels) and [*table.names] != settings.labels:
        order, ours = ", ".join(table.names), ", ".join(settings.labels)
        raise UserError(f"{where} has the classes in the order {order}, but task.labels has {ours}")
    for column in settings.text:
        for number, text in enumerate(table.columns[column], start=1):
            if not isinstance(text, str):
                what = "null" if text is None else f"{text!r}, not a text"
                raise UserError(f"{where}, row {number}: {column} is {what}")
            if not text.isascii() and HALF_LETTER.search(text):
                raise UserError(f"{where}, row {number}: {column} contains half of a surrogate pair")
    as_label = as_number if settings.num_labels == 1 else _class
    labels: list[Any] = []
    for number, value in enumerate(table.columns[label], start=1):
        found = as_label(value, settings)
        if isinstance(found, str):
            raise UserError(f"{where}, row {number}: {found}")
        labels.append(found)
    return Rows(tuple(list(table.columns[column]) for column in settings.text), labels)


def _class(label: Any, settings: GlueTask) -> int | str:
    """Return a label's class, given as a number or as a text, or an error text if it is neither."""
    if isinstance(label, str) and label in settings.labels:
        return as_class(label, settings)
    written = WHOLE_NUMBER.fullmatch(label) if isinstance(label, str) else None
    number = int(written[1]) if written else label
    if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < settings.num_labels:
        return number
    return out_of_range(label, f"0 and {settings.num_labels - 1}")

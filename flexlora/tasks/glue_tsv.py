"""The TSV files of the classic GLUE download: tab-separated, UTF-8, no quoting. A `"` is an ordinary character."""

import hashlib
import logging
from pathlib import Path
from typing import Any

from flexlora.errors import UserError
from flexlora.reading import read_bytes
from flexlora.settings import GlueTask
from flexlora.tasks.rows import Rows, as_class, as_number
from flexlora.text_files import decode

log = logging.getLogger("flexlora")


def read_tsv(path: Path, settings: GlueTask) -> Rows:
    """Read the rows of one labelled split whose columns `settings.tsv` describes.

    Up to `settings.tsv.broken_rows` lines with a wrong number of columns are left out with a warning.

    Raises:
        UserError: the file does not exist, or a line is broken. The message names the file and the line.
    """
    if not path.is_file():
        files = [settings.tsv.train, *settings.tsv.evaluation.values()]
        raise UserError(f"there is no file {path}: the task needs {', '.join(files[:-1])} and {files[-1]}")
    content = read_bytes(path)
    # Only a newline ends a row. `splitlines` also splits at U+2028 and similar characters, which the texts contain.
    lines = decode(content, path).split("\n")
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise UserError(f"{path} has no rows")
    header = _cells(lines[0]) if settings.tsv.header else None
    width = len(header) if header else settings.tsv.width
    text_at = [_position(column, header, width, path) for column in settings.tsv.text]
    label_at = _position(settings.tsv.label, header, width, path)

    texts: tuple[list[str], ...] = tuple([] for _ in text_at)
    labels: list[Any] = []
    broken: list[int] = []
    as_label = as_number if settings.num_labels == 1 else as_class
    for number, line in enumerate(lines[1:] if header else lines, start=2 if header else 1):
        cells = _cells(line)
        if len(cells) != width:
            broken.append(number)
            if len(broken) > settings.tsv.broken_rows:
                limit = settings.tsv.broken_rows
                beyond = f", and more than {limit} such lines (task.tsv.broken_rows)" if limit else ""
                what = f"{len(cells)} tab-separated columns where {width} are expected"
                raise UserError(f"{path}, line {number}: {what}{beyond}")
            continue
        label = as_label(cells[label_at], settings)
        if isinstance(label, str):
            raise UserError(f"{path}, line {number}: {label}")
        for column, position in zip(texts, text_at, strict=True):
            column.append(cells[position])
        labels.append(label)
    if not labels:
        raise UserError(f"{path} has no rows")
    if broken:
        log.warning("%s: %d broken rows left out, lines %s", path, len(broken), ", ".join(map(str, broken)))
    digest = hashlib.sha256(content).hexdigest()
    return Rows(texts, labels, {path.name: digest}, {path.name: broken} if broken else {})


def _cells(line: str) -> list[str]:
    return line.removesuffix("\r").split("\t")


def _position(column: Any, header: list[str] | None, width: int | None, path: Path) -> int:
    if header is None:
        if not isinstance(column, int) or width is None or not 0 <= column < width:
            raise UserError(
                f"task.tsv: there is no column {column!r}: without a header, name columns by position, "
                "0 to task.tsv.width - 1"
            )
        return column
    if column not in header:
        raise UserError(f"{path}, line 1: there is no column '{column}'. There are: {', '.join(header)}")
    if header.count(column) > 1:
        raise UserError(f"{path}, line 1: there is more than one column '{column}'")
    return header.index(column)

"""The TSV files of the classic GLUE download: tab-separated, UTF-8, no quoting; a `"` is only a `"`."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexlora.errors import UserError
from flexlora.settings import GlueTask


@dataclass
class Rows:
    """A split as read: one list for each text column, a label for each row (a class's number, or a float)."""

    texts: tuple[list[str], ...]
    labels: list[Any]
    sha256: str | None
    """Of the file the rows were read from."""

    def first(self, count: int | None) -> "Rows":
        """The first `count` rows, all of them for None."""
        return Rows(tuple(text[:count] for text in self.texts), self.labels[:count], self.sha256)


def read_tsv(path: Path, settings: GlueTask) -> Rows:
    """The rows of one labelled split, as `settings.tsv` lays out its columns.

    Raises:
        UserError: no such file, or a line that is broken; the message names file and line.
    """
    if not path.is_file():
        raise UserError(f"there is no {path}: the task needs {settings.tsv.train} and {_names(settings)}")
    content = path.read_bytes()
    # Only a newline ends a row: `splitlines` would also break at U+2028 and its kin, which texts do contain.
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    header = _cells(lines[0], path, 1) if settings.tsv.header and lines else None
    width = len(header) if header else settings.tsv.width
    text_at = [_position(column, header, width, path) for column in settings.tsv.text]
    label_at = _position(settings.tsv.label, header, width, path)

    texts: tuple[list[str], ...] = tuple([] for _ in text_at)
    labels: list[Any] = []
    for number, line in enumerate(lines[1:] if header else lines, start=2 if header else 1):
        cells = _cells(line, path, number)
        if len(cells) != width:
            raise UserError(f"{path}, line {number}: {len(cells)} tab-separated columns where {width} are expected")
        for column, position in zip(texts, text_at, strict=True):
            column.append(cells[position])
        labels.append(_label(cells[label_at], settings, path, number))
    if not labels:
        raise UserError(f"{path} has no rows")
    return Rows(texts, labels, hashlib.sha256(content).hexdigest())


def _cells(line: bytes, path: Path, number: int) -> list[str]:
    try:
        return line.removesuffix(b"\r").decode("utf-8").split("\t")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, line {number}: not UTF-8") from error


def _position(column: Any, header: list[str] | None, width: int | None, path: Path) -> int:
    if header is None:
        if not isinstance(column, int) or width is None or not 0 <= column < width:
            raise UserError(
                f"task.tsv: there is no column {column!r}: without a header columns have positions, "
                "0 to task.tsv.width - 1"
            )
        return column
    if column not in header:
        raise UserError(f"{path}, line 1: there is no column '{column}' among {', '.join(header)}")
    return header.index(column)


def _label(text: str, settings: GlueTask, path: Path, number: int) -> int | float:
    if settings.num_labels == 1:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if math.isnan(value):
            raise UserError(f"{path}, line {number}: label '{text}' is not a number")
        return value
    if text not in settings.labels:
        raise UserError(f"{path}, line {number}: label '{text}' is none of {', '.join(settings.labels)}")
    return settings.labels.index(text)


def _names(settings: GlueTask) -> str:
    return ", ".join(settings.tsv.evaluation.values())

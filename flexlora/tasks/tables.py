"""Tables in files: parquet, JSON (a list of objects, or one object on each line) and CSV. JSON may be gzipped."""

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from flexlora.errors import UserError, one_line
from flexlora.reading import read_bytes
from flexlora.text_files import decode

LABEL = "label"
"""The column whose class names a parquet file may contain."""
LARGEST = 2**31
"""The largest text of a gzipped file, in bytes."""


@dataclass
class Table:
    """The columns as read. `names` are the names of the classes if the file contains them."""

    columns: Mapping[str, Sequence[Any]]
    names: Sequence[str] | None = None


def read_table(path: Path, readers: "Readers | None" = None) -> tuple[Table, str]:
    """Read a file whose ending is in `readers` (`READERS` without it), and return its table and its SHA-256.

    Raises:
        UserError: the file cannot be read or is damaged. The message names the file.
    """
    try:
        content = read_bytes(path)
        table = (readers or READERS)[ending(path)](content, path)
    except UserError:
        raise
    except Exception as error:  # pyarrow and datasets raise any kind of error on a damaged file
        raise UserError(f"cannot read {path}: {one_line(error)}") from error
    return table, hashlib.sha256(content).hexdigest()


def ending(path: Path) -> str:
    """Return the ending of a file's name, in lower case; of a gzipped file both endings, as in ".jsonl.gz"."""
    return "".join(path.suffixes[-2:] if path.suffix.lower() == ".gz" else path.suffixes[-1:]).lower()


def _parquet(content: bytes, _: Path) -> Table:
    import pyarrow.parquet
    from datasets import ClassLabel, Features

    table = pyarrow.parquet.read_table(io.BytesIO(content))
    feature = Features.from_arrow_schema(table.schema).get(LABEL)
    return Table(table.to_pydict(), feature.names if isinstance(feature, ClassLabel) else None)


def _json(content: bytes, path: Path) -> Table:
    """Parse a list of objects, or one object on each line."""
    text = decode(content, path)
    if text.lstrip().startswith("["):
        rows = json.loads(text, object_pairs_hook=_object)
    else:
        rows = []
        for number, line in enumerate(text.split("\n"), start=1):
            try:
                rows += [json.loads(line, object_pairs_hook=_object)] if line.strip() else []
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number}: {error.msg}") from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} is not an object")
    # A key that is missing in some rows becomes null there. `_rows` then refuses the row by its number.
    names = dict.fromkeys(name for row in rows for name in row)
    return Table({name: [row.get(name) for row in rows] for name in names})


def _json_gz(content: bytes, path: Path) -> Table:
    with gzip.open(io.BytesIO(content)) as file:
        text = file.read(LARGEST + 1)  # a small file can stand for any number of bytes
    if len(text) > LARGEST:
        raise ValueError(f"it has more than {LARGEST // 2**30} GiB of text")
    return _json(text, path)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a row of JSON and refuse duplicate keys. Python's own parser silently keeps the last value."""
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a row has a key more than once")
    return row


def _csv(content: bytes, path: Path, delimiter: str = ",") -> Table:
    """Parse separated values with a header; fields may be quoted."""
    reader = csv.reader(io.StringIO(decode(content, path), newline=""), strict=True, delimiter=delimiter)
    try:
        header = next(reader, [])
        other = next((mark for mark in ";\t" if len(header) == 1 and mark in header[0]), None)
        if other is not None:
            name = "semicolons" if other == ";" else "tabs"
            raise ValueError(f"its columns are separated by {name}: save it with commas, or with tabs as .tsv")
        if len(set(header)) < len(header):
            raise ValueError("line 1: two columns have the same name")
        rows = []
        for row in reader:
            if row and len(row) != len(header):
                raise ValueError(f"line {reader.line_num}: {len(row)} columns where {len(header)} are expected")
            rows += [row] if row else []
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from error
    return Table({name: [row[i] for row in rows] for i, name in enumerate(header)})


Readers = Mapping[str, Callable[[bytes, Path], Table]]
READERS: Readers = {
    ".parquet": _parquet,
    ".json": _json,
    ".jsonl": _json,
    ".csv": _csv,
    ".json.gz": _json_gz,
    ".jsonl.gz": _json_gz,
}
WITH_TSV: Readers = {**READERS, ".tsv": partial(_csv, delimiter="\t")}
"""The readers of a table of the user. In GLUE, a .tsv file is the classic download, which `glue_tsv` reads."""

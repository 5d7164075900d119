"""The files of a user's own data: a table, or a folder with a table, or with one for each split; and what they hold."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flexlora.errors import UserError, did_you_mean
from flexlora.paths import existing_path
from flexlora.tasks.glue_columns import find_split
from flexlora.tasks.tables import WITH_TSV, Table, ending, read_table

log = logging.getLogger("flexlora")

TRAIN, TESTS = "train", ("test", "dev", "validation", "valid", "val")
# The number of names, and of letters of a column's name, that a message shows.
NAMED, LETTERS = 10, 30


class Part(NamedTuple):
    """The tables of one split, with the file of each and its hash."""

    tables: list[tuple[Path, Table]]
    sha256: dict[str, str]

    @property
    def rows(self) -> int:
        """The number of rows of all tables."""
        return sum(len(next(iter(table.columns.values()))) for _, table in self.tables)

    def values(self, column: str) -> list[tuple[str, Any]]:
        """Return every value of a column with its place, for messages."""
        return [
            (f"{path}, row {number}", value)
            for path, table in self.tables
            for number, value in enumerate(table.columns[column], start=1)
        ]


def read_parts(data_dir: str | None, wanted: str) -> tuple[Path, dict[str, Part]]:
    """Read the tables of `task.data_dir`. Return its folder, and a part `train` and one to evaluate on if it has one.

    Args:
        data_dir: the setting.
        wanted: what the file holds, for the message if the setting is missing.

    Raises:
        UserError: there is no such file, or it cannot be read or has no rows.
    """
    if data_dir is None:
        raise UserError(f"task.data_dir is not set: give task.data_dir=FILE, {wanted}")
    try:
        root, files = _files(existing_path("task.data_dir", data_dir))
        return root, {name: _read(paths) for name, paths in files.items()}
    except OSError as error:
        raise UserError(f"task.data_dir: cannot read {error.filename}: {error.strerror}") from error


def source_facts(root: Path, parts: Mapping[str, Part], layout: str) -> dict[str, Any]:
    """Return the source of the data for the record."""
    sha256 = {file: digest for part in parts.values() for file, digest in part.sha256.items()}
    return {"source": "folder", "layout": layout, "path": str(root), "revision": None, "sha256": sha256}


def split_facts(sizes: Mapping[str, int], seed: int | None) -> dict[str, Any]:
    """Return the split for the record: its sizes, and the seed it was drawn with (None: the files are the split)."""
    return {"by": "files" if seed is None else f"drawn with seed {seed}", **sizes}


def split_line(split: Mapping[str, Any], rows: str = "rows") -> str:
    """Return the line that tells the user the sizes of the split."""
    sizes = ", ".join(f"{count:,} {name}" for name, count in split.items() if name != "by")
    return f"data: {sizes} {rows}, {'split by files' if split['by'] == 'files' else split['by']}"


def warn_of_small_classes(classes: Sequence[str], train: Sequence[int], test: Sequence[int], row: str = "row") -> None:
    """Log a warning for the classes without a training row, and one for those with a single row in all."""
    learned, counts = {*train}, Counter((*train, *test))
    absent = [name for number, name in enumerate(classes) if number not in learned]
    single = [name for number, name in enumerate(classes) if counts[number] == 1]
    if absent:
        log.warning("%d of %d classes have no training %s: %s", len(absent), len(classes), row, listed(absent))
    if single:
        what = "%d of %d classes have a single %s, which is either learned or evaluated: %s"
        log.warning(what, len(single), len(classes), row, listed(single))


def listed(names: Sequence[str]) -> str:
    """Return the first names for a message."""
    return ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")


def require(column: str, setting: str, path: Path, table: Table) -> None:
    """Check that a table has a column.

    Raises:
        UserError: the table does not have the column that `setting` names.
    """
    if column not in table.columns:
        near = did_you_mean(column, list(table.columns))
        raise UserError(
            f"{setting}: {path} has no column '{column}'.{near} {has(table)} "
            "If these are the words of a row, add a first line with the names of the columns."
        )


def has(table: Table) -> str:
    """Return the sentence that names the columns of a table."""
    names = [name if len(name) <= LETTERS else f"{name[:LETTERS]}…" for name in map(str, table.columns)]
    return f"It has: {listed(names)}."


def _files(place: Path) -> tuple[Path, dict[str, list[Path]]]:
    """Return the folder of the data and the files of each split: `train`, and one to evaluate on if there is one."""
    endings = ", ".join(WITH_TSV)
    if place.is_file():
        if ending(place) not in WITH_TSV:
            raise UserError(f"task.data_dir: {place} is no table: its name must end in one of {endings}")
        return place.parent, {TRAIN: [place]}
    train = find_split(place, TRAIN, WITH_TSV)
    if train:
        tests = {name: files for name in TESTS if (files := find_split(place, name, WITH_TSV))}
        for unused in list(tests)[1:]:
            log.warning("data: the split %s in %s is not used", unused, place)
        return place, {TRAIN: train, **dict(list(tests.items())[:1])}
    found = sorted(path for path in place.iterdir() if path.is_file() and ending(path) in WITH_TSV)
    if len(found) == 1:
        return place, {TRAIN: found}
    what = f"has {len(found)} tables, none of them called train" if found else "has no table"
    raise UserError(f"task.data_dir: {place} {what}: name a file, or call the files train and test ({endings})")


def _read(paths: Sequence[Path]) -> Part:
    read = {path: read_table(path, WITH_TSV) for path in paths}
    for path, (table, _) in read.items():
        if not table.columns or not next(iter(table.columns.values())):
            raise UserError(f"{path} has no rows")
    return Part(
        [(path, table) for path, (table, _) in read.items()], {path.name: sha for path, (_, sha) in read.items()}
    )

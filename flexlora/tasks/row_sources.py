"""Where a task's training and test rows come from: two files of a folder, or two data sets on the hub."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexlora.errors import UserError, did_you_mean
from flexlora.hub import trouble_with, what_failed
from flexlora.paths import existing_folder
from flexlora.settings import HubFile, TextTaskSettings
from flexlora.tasks.tables import READERS, ending, read_table
from flexlora.text_files import HALF_LETTER


@dataclass(frozen=True)
class RowFile:
    """The columns of one file. Messages about a row name the file and the row, counted from 1."""

    path: Path
    columns: Mapping[str, Sequence[Any]]
    sha256: str

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def texts(self, column: str) -> list[str]:
        """Return a column as texts; a number becomes its text.

        Raises:
            UserError: a value is missing, empty, neither a text nor a number, or contains half of a surrogate pair.
        """
        texts = []
        for number, value in enumerate(self.columns[column], start=1):
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            text = str(value) if is_number else value
            if not isinstance(text, str) or not text.strip():
                raise UserError(f"{self.path}, row {number}: '{column}' is missing, empty or not a text")
            if not text.isascii() and HALF_LETTER.search(text):
                raise UserError(f"{self.path}, row {number}: '{column}' contains half of a surrogate pair")
            texts.append(text)
        return texts

    def column(self, key: str, wanted: str | None, known: Sequence[str]) -> str:
        """Return the name of a column: `wanted`, or the first of `known` that the file has.

        Args:
            key: the setting that names the column, for messages.
            wanted: the value of that setting; None means one of `known`.
            known: the names that data sets use, the preferred one first.

        Raises:
            UserError: the file does not have the column.
        """
        there = ", ".join(map(str, self.columns))
        if wanted is not None:
            if wanted not in self.columns:
                near = did_you_mean(wanted, self.columns)
                raise UserError(f"{key}: {self.path} has no column '{wanted}'.{near} It has: {there}")
            return wanted
        found = next((name for name in known if name in self.columns), None)
        if found is None:
            raise UserError(f"{self.path} has none of the columns {', '.join(known)}. It has: {there}. Set {key}=NAME")
        return found


@dataclass(frozen=True)
class Sources:
    """The files that were read, and their source for the record. `test` is None if no test rows are needed."""

    train: RowFile
    test: RowFile | None
    provenance: dict[str, Any]


def read_sources(settings: TextTaskSettings, known_train: Sequence[str], known_test: Sequence[str]) -> Sources:
    """Read the training and the test file from `task.data_dir`, or from the hub. Held-out rows replace the test file.

    Args:
        settings: `task.*`.
        known_train: the usual names of a training file, which are looked for if `task.train_file` is null.
        known_test: the same for the test file.

    Raises:
        UserError: a folder or file is missing or damaged, or the hub cannot be reached.
    """
    tests = settings.validation_rows is None
    if settings.data_dir is not None:
        root = existing_folder("task.data_dir", settings.data_dir)
        names = [_chosen(root, "train_file", settings.train_file, known_train)]
        names += [_chosen(root, "test_file", settings.test_file, known_test)] if tests else []
        files = [read_file(root / name) for name in names]
        provenance: dict[str, Any] = {"source": "folder", "path": str(root), "revision": None}
    else:
        wanted = [settings.train_hub, settings.test_hub] if tests else [settings.train_hub]
        names = [f"{hub.path}/{hub.file}" for hub in wanted]
        found = [_from_hub(hub) for hub in wanted]
        files = [read_file(path) for path, _ in found]
        repositories = dict(zip((hub.path for hub in wanted), (revision for _, revision in found), strict=True))
        provenance = {"source": "hub", "path": ", ".join(repositories), "revision": ", ".join(repositories.values())}
    provenance["sha256"] = {name: file.sha256 for name, file in zip(names, files, strict=True)}
    return Sources(files[0], files[1] if tests else None, provenance)


def read_file(path: Path) -> RowFile:
    """Read a file whose ending is in `READERS`.

    Raises:
        UserError: the file cannot be read, is damaged or has no rows.
    """
    table, sha256 = read_table(path)
    if not table.columns or not next(iter(table.columns.values())):
        raise UserError(f"{path} has no rows")
    return RowFile(path, table.columns, sha256)


def _chosen(root: Path, key: str, wanted: str | None, known: Sequence[str]) -> str:
    """Return the name of the file in `root` that the setting `task.<key>` names, or the only one of `known` there."""
    there = sorted(path.name for path in root.iterdir() if ending(path) in READERS)
    listed = f"It has: {', '.join(there)}" if there else f"It has no {', '.join(READERS)} at all"
    if wanted is not None:
        if ending(Path(wanted)) not in READERS:
            raise UserError(f"task.{key}: '{wanted}' is none of {', '.join(READERS)}")
        if Path(wanted).is_absolute():  # the record names files by their place from the folder
            wanted = os.path.relpath(wanted, root.resolve())
        if not (root / wanted).is_file():
            raise UserError(f"task.{key}: {root} has no file {wanted}.{did_you_mean(wanted, there)} {listed}")
        return wanted
    found = [name for name in known if (root / name).is_file()]
    if len(found) > 1:
        raise UserError(f"task.data_dir: {root} has {' and '.join(found)}: choose one with task.{key}={found[0]}")
    if not found:
        raise UserError(
            f"task.data_dir: {root} has none of {', '.join(known)}. {listed}. Set task.{key}=NAME to use another file"
        )
    return found[0]


def _from_hub(hub: HubFile) -> tuple[Path, str]:
    """Fetch one file of a data set, and return its path in the cache and its commit."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    hint = "task.data_dir=DIR takes a folder with the files"
    trouble = trouble_with(hub.path, "dataset", hub.revision)
    try:
        path = Path(
            hf_hub_download(
                hub.path, hub.file, repo_type="dataset", revision=hub.revision, local_files_only=trouble is not None
            )
        )
    except Exception as error:  # the cache and the network libraries raise many kinds of errors
        if trouble is not None:
            raise UserError(f"{hub.file} of {hub.path} is not in the local cache and {trouble}; {hint}") from error
        raise UserError(f"cannot load {hub.file} of {hub.path} from the hub: {what_failed(error)}; {hint}") from error
    # The cache names a snapshot's folder after its commit.
    folder = path.parents[len(Path(hub.file).parts) - 1]
    return path, folder.name

"""The VTAB-1k list layout: `<task>/{train800,val200,train800val200,test}.txt` with a path and a class on every line."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

from flexlora.errors import UserError
from flexlora.paths import existing_folder
from flexlora.reading import TEXT, read_bytes
from flexlora.settings import MAX_WIDTH, VtabSplit, VtabTask
from flexlora.text_files import decode

LISTS = ("train800.txt", "val200.txt", "train800val200.txt", "test.txt")
# For each split: the training list, our name of the evaluation split, and the evaluation list.
PARTS = {
    VtabSplit.train800val200_test: ("train800val200.txt", "test", "test.txt"),
    VtabSplit.train800_val200: ("train800.txt", "val", "val200.txt"),
}
SIZES = {"train800.txt": 800, "val200.txt": 200, "train800val200.txt": 1000}


class Packed(Protocol):
    """An image within a larger file."""

    def read(self) -> bytes:
        """Return the image as the content of an image file."""


@dataclass
class ImageRows:
    """Images, not yet read, and their classes."""

    names: list[str]
    """The name of each image in error messages."""
    images: Sequence[Path | bytes | Packed]
    """The image files, their contents, or images within larger files."""
    labels: list[int]
    sha256: dict[str, str] = field(default_factory=dict)
    """The hash of the list file, by its name."""

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int | None) -> "ImageRows":
        """Return the first `count` rows, or all rows if `count` is None."""
        return ImageRows(self.names[:count], self.images[:count], self.labels[:count], self.sha256)

    def pick(self, numbers: Sequence[int]) -> "ImageRows":
        """Return the rows with these numbers, counted from 0."""
        names, labels = [self.names[i] for i in numbers], [self.labels[i] for i in numbers]
        return ImageRows(names, [self.images[i] for i in numbers], labels, self.sha256)

    def read(self, index: int) -> bytes:
        """Read the content of an image's file."""
        image = self.images[index]
        if isinstance(image, bytes):
            return image
        return read_bytes(image) if isinstance(image, Path) else image.read()


def task_folder(settings: VtabTask) -> Path:
    """Find the folder with the task's lists: `task.data_dir`/<one of the task's names>, or `task.data_dir` itself.

    Raises:
        UserError: `task.data_dir` is not set or does not exist, or none of these folders has a list.
    """
    if settings.data_dir is None:
        raise UserError(
            "task.data_dir is not set: set task.data_dir=DIR, a folder that has "
            f"{settings.folders[0]}/train800val200.txt (docs/reference/vtab.md)"
        )
    root = existing_folder("task.data_dir", settings.data_dir)
    needed = PARTS[settings.split][0]
    for folder in (*(root / name for name in settings.folders), root):
        if any((folder / name).is_file() for name in LISTS):
            return folder
    tried = ", ".join(f"{root / name}" for name in settings.folders)
    raise UserError(f"task.data_dir: neither {tried} nor {root} has the file {needed} (the VTAB-1k list layout)")


def read_split(folder: Path, settings: VtabTask) -> tuple[ImageRows, str, ImageRows]:
    """Read the training rows, the name of the evaluation split and its rows. The image files are not opened yet.

    Raises:
        UserError: a list is missing, empty or broken, a path leaves the folder, or the number of classes in all lists
            of the folder differs from `task.num_classes`.
    """
    train, name, evaluation = PARTS[settings.split]
    lists = {file: read_list(folder / file, settings.num_classes) for file in (train, evaluation)}
    highest = max(max(rows.labels) for rows in lists.values())
    for file in LISTS:
        # A class may be missing in the thousand training rows but occur in the test set or in another list.
        if highest + 1 < settings.num_classes and file not in lists and (folder / file).is_file():
            highest = max(highest, *read_list(folder / file, settings.num_classes).labels)
    if highest + 1 != settings.num_classes:
        raise UserError(
            f"task.num_classes is {settings.num_classes}, but the lists in {folder} have classes 0 to {highest}: "
            f"set task.num_classes={highest + 1} if the lists are right"
        )
    return lists[train], name, lists[evaluation]


def read_list(file: Path, num_classes: int | None) -> ImageRows:
    """Read the rows of one list. `num_classes` None: any number of classes is allowed.

    Raises:
        UserError: the list is missing or empty, a line is not a path and a class, or a path leaves the list's folder.
    """
    try:
        content = read_bytes(file, TEXT)
    except FileNotFoundError:
        raise UserError(f"task.data_dir: {file.parent} has no {file.name}") from None
    except OSError as error:
        raise UserError(f"task.data_dir: cannot read {file}: {error.strerror}") from error
    lines = decode(content, f"task.data_dir: {file}").splitlines()
    rows = ImageRows([], images := [], [], {file.name: hashlib.sha256(content).hexdigest()})
    inside = _Inside(file.parent)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        where = f"task.data_dir: {file} line {number}"
        if not name.strip():
            raise UserError(f"{where}: '{line.strip()}' is not a path and a class")
        try:
            klass = int(label)
        except ValueError:
            raise UserError(f"{where}: label '{label}' is not a number") from None
        if not 0 <= klass < (num_classes or MAX_WIDTH):
            why = f"task.num_classes is {num_classes}" if num_classes else "a head has no more classes"
            raise UserError(f"{where}: label {klass} is not between 0 and {(num_classes or MAX_WIDTH) - 1} ({why})")
        name = name.strip()
        try:
            path = inside.path(name)
        except OSError as error:  # the name is too long, or the folder may not be searched
            raise UserError(f"{where}: '{name[:80]}': {error.strerror}") from error
        if path is None:
            raise UserError(f"{where}: '{name}' is outside the folder")
        rows.names.append(name)
        images.append(path)
        rows.labels.append(klass)
    if not rows.labels:
        raise UserError(f"task.data_dir: {file} is empty")
    return rows


class _Inside:
    """Checks that paths stay under a folder, links included. It caches folders: most paths share a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._root = folder.resolve()
        self._parents: dict[PurePosixPath, bool] = {}

    def path(self, name: str) -> Path | None:
        """Return the path of the file `name`, which need not exist; None if it is outside the folder."""
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts or "\0" in name:
            return None
        parent = relative.parent
        if parent not in self._parents:
            self._parents[parent] = self._holds(self._folder / parent)
        path = self._folder / relative
        inside = self._parents[parent] and (not path.is_symlink() or self._holds(path))
        return path if inside else None

    def _holds(self, path: Path) -> bool:
        try:
            return path.resolve().is_relative_to(self._root)
        except (OSError, RuntimeError):  # the links form a cycle
            return False

"""The VTAB-1k list layout: `<task>/{train800,val200,train800val200,test}.txt`, a path and a class on every line."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from flexlora.errors import UserError
from flexlora.paths import existing_folder
from flexlora.settings import VtabSplit, VtabTask

LISTS = ("train800.txt", "val200.txt", "train800val200.txt", "test.txt")
# To train on and to evaluate on, with our name of what is evaluated.
PARTS = {
    VtabSplit.train800val200_test: ("train800val200.txt", "test", "test.txt"),
    VtabSplit.train800_val200: ("train800.txt", "val", "val200.txt"),
}
SIZES = {"train800.txt": 800, "val200.txt": 200, "train800val200.txt": 1000}


@dataclass
class ImageRows:
    """Images, not yet read, and their classes."""

    names: list[str]
    """What to call each where something is wrong with it."""
    images: Sequence[Path | bytes]
    """Files, or files' contents."""
    labels: list[int]
    sha256: dict[str, str] = field(default_factory=dict)
    """Of the list they come from, by its name."""

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int | None) -> "ImageRows":
        """The first `count` rows, all of them for None."""
        return ImageRows(self.names[:count], self.images[:count], self.labels[:count], self.sha256)

    def pick(self, numbers: Sequence[int]) -> "ImageRows":
        """The rows of these numbers, counted from 0."""
        names, labels = [self.names[i] for i in numbers], [self.labels[i] for i in numbers]
        return ImageRows(names, [self.images[i] for i in numbers], labels, self.sha256)

    def read(self, index: int) -> bytes:
        """The file of an image, as it is."""
        image = self.images[index]
        return image if isinstance(image, bytes) else image.read_bytes()


def task_folder(settings: VtabTask) -> Path:
    """The first folder of the task's names under `task.data_dir`, or that one itself, that has a list to train on.

    Raises:
        UserError: none is given, or there is none.
    """
    if settings.data_dir is None:
        raise UserError(
            "task.data_dir is not set: VTAB-1K is read from a folder, DIR of DIR/"
            f"{settings.folders[0]}/train800val200.txt (docs/reference/vtab.md)"
        )
    root = existing_folder("task.data_dir", settings.data_dir)
    needed = PARTS[settings.split][0]
    for folder in (*(root / name for name in settings.folders), root):
        if any((folder / name).is_file() for name in LISTS):
            return folder
    tried = ", ".join(f"{root / name}" for name in settings.folders)
    raise UserError(f"task.data_dir: neither {tried} nor {root} has a {needed} (the VTAB-1k list layout)")


def read_split(folder: Path, settings: VtabTask) -> tuple[ImageRows, str, ImageRows]:
    """What is trained on, our name of what is evaluated on, and that; the files are not looked at yet.

    Raises:
        UserError: a list is missing, empty or broken, a path leaves the folder, or the classes are not
            `task.num_classes` as all the folder's lists know them.
    """
    train, name, evaluation = PARTS[settings.split]
    lists = {file: read_list(folder / file, settings.num_classes) for file in (train, evaluation)}
    highest = max(max(rows.labels) for rows in lists.values())
    for file in LISTS:
        # A class may be missing from a thousand rows: the test set, or the other lists, may have it.
        if highest + 1 < settings.num_classes and file not in lists and (folder / file).is_file():
            highest = max(highest, *read_list(folder / file, settings.num_classes).labels)
    if highest + 1 != settings.num_classes:
        raise UserError(
            f"task.num_classes is {settings.num_classes}, and the lists in {folder} have classes 0 to {highest}: "
            f"set task.num_classes={highest + 1} if they are right"
        )
    return lists[train], name, lists[evaluation]


def read_list(file: Path, num_classes: int) -> ImageRows:
    """The rows of one list.

    Raises:
        UserError: it is missing or empty, a line is not a path and a class, or a path leaves the list's folder.
    """
    try:
        content = file.read_bytes()
        lines = content.decode("utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"task.data_dir: {file.parent} has no {file.name}") from None
    except OSError as error:
        raise UserError(f"task.data_dir: cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"task.data_dir: {file} is no list of images: it is not UTF-8") from error
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
        if not 0 <= klass < num_classes:
            raise UserError(
                f"{where}: label {klass} is not between 0 and {num_classes - 1} (task.num_classes is {num_classes})"
            )
        name = name.strip()
        try:
            path = inside.path(name)
        except OSError as error:  # a name that is too long, a folder that is not to be searched
            raise UserError(f"{where}: '{name[:80]}': {error.strerror}") from error
        if path is None:
            raise UserError(f"{where}: '{name}' leaves the folder")
        rows.names.append(name)
        images.append(path)
        rows.labels.append(klass)
    if not rows.labels:
        raise UserError(f"task.data_dir: {file} is empty")
    return rows


class _Inside:
    """Paths under a folder, followed through every link; a list has thousands in few folders."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._root = folder.resolve()
        self._parents: dict[PurePosixPath, bool] = {}

    def path(self, name: str) -> Path | None:
        """The file of that name, which need not be there; None where it would lie outside."""
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
        except (OSError, RuntimeError):  # links in a circle
            return False

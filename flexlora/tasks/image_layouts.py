"""The layouts of any image set: lists, parquet files as on the hub, or a folder for each class.

A reader returns None if the folder does not have its layout. An image is not opened before the images are decoded.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexlora.errors import UserError, one_line
from flexlora.reading import read_bytes
from flexlora.results.stamps import stamp
from flexlora.settings import ImageSetTask
from flexlora.tasks.glue_columns import find_split
from flexlora.tasks.image_lists import ImageRows, Packed, read_list
from flexlora.tasks.rows import drawn

ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".webp", ".tif", ".tiff", ".gif"})
# The names of a training list and of the list to evaluate on. The second pair is that of VTAB-1k's layout.
LISTS = (("train.txt", "test.txt"), ("train.txt", "val.txt"), ("train800val200.txt", "test.txt"))
TRAIN, TESTS = "train", ("test", "val", "valid", "validation")
IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img"), ("label", "labels")


@dataclass
class Found:
    """The two splits of an image set. `classes` has the name of each class."""

    layout: str
    train: ImageRows
    test: ImageRows
    classes: list[str]
    note: str = ""
    """One line for the user about the split, or an empty text."""
    seed: int | None = None
    """The seed with which the split was drawn, or None if the files are the split."""


Reader = Callable[[Path, ImageSetTask], Found | None]


def named_rows(images: Iterable[tuple[str, Path]], classes: Sequence[str], root: Path, where: str) -> ImageRows:
    """Return the rows of images that are given with the name of their class.

    Args:
        images: pairs of a class and a file.
        classes: the names of the classes, in order.
        root: the folder that names in messages are relative to.
        where: the place of the images, for the message.

    Raises:
        UserError: there are no images, or a class is not in `classes`.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    rows = ImageRows([], files := [], [])
    for name, path in images:
        if name not in numbers:
            raise UserError(f"task.data_dir: {where} has the class '{name}', which the training images do not have")
        rows.names.append(path.relative_to(root).as_posix())
        files.append(path)
        rows.labels.append(numbers[name])
    if not rows.labels:
        raise UserError(f"task.data_dir: {where} has no images")
    return rows


def lists(folder: Path, settings: ImageSetTask) -> Found | None:
    """Read a training list and a list to evaluate on: a path and the number of a class on every line."""
    for train_name, test_name in LISTS:
        if not ((folder / train_name).is_file() and (folder / test_name).is_file()):
            continue
        train, test = (read_list(folder / name, settings.num_classes) for name in (train_name, test_name))
        count = 1 + max(*train.labels, *test.labels)
        return Found("lists", train, test, [str(number) for number in range(count)])
    return None


def split_folders(folder: Path, settings: ImageSetTask) -> Found | None:
    """Read `train/<class>/` and `test/<class>/` (or `val/`), as torchvision's `ImageFolder` does."""
    if not (folder / TRAIN).is_dir():
        return None
    train = class_folders(folder / TRAIN)
    if not train:
        return None
    name = next((name for name in TESTS if (folder / name).is_dir()), None)
    if name is None:
        raise UserError(
            f"task.data_dir: {folder} has the folder train, but no folder test or val to evaluate on: "
            f"for a split by chance, set task.data_dir={folder / TRAIN}"
        )
    classes = [path.name for path in train]
    return Found(
        "folders",
        named_rows(_images_of(train), classes, folder, str(folder / TRAIN)),
        named_rows(_images_of(class_folders(folder / name)), classes, folder, str(folder / name)),
        classes,
    )


def one_folder(folder: Path, settings: ImageSetTask) -> Found | None:
    """Read `<class>/` folders, and draw the test images of each class. The draw is the same for every seed."""
    found = class_folders(folder)
    if len(found) < 2:
        return None
    classes = [path.name for path in found]
    rows = named_rows(_images_of(found), classes, folder, str(folder))
    train, test = drawn(rows.labels, settings.train_share, settings.test_share, settings.split_seed)
    kept = {rows.labels[i] for i in train}
    without = next((i for i, label in enumerate(rows.labels) if label not in kept), None)
    if without is not None:
        share = f"task.train_share={settings.train_share:g}"
        raise UserError(f"{share} leaves no training image of {rows.names[without]}'s class")
    left = len(rows) - len(train) - len(test)
    note = f"data: {left:,} of {len(rows):,} images are not used" if left else ""
    return Found("one folder", rows.pick(train), rows.pick(test), classes, note, settings.split_seed)


def class_folders(folder: Path) -> list[Path]:
    """Return the subfolders that hold images, sorted by name as text. Hidden ones are left out."""
    subfolders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [path for path in subfolders if any(True for _ in images_in(path))]


def images_in(folder: Path) -> Iterable[Path]:
    """Yield the image files directly in a folder, in no order. Their endings decide."""
    return (path for path in folder.iterdir() if path.suffix.lower() in ENDINGS and not path.name.startswith("."))


def _images_of(folders: Sequence[Path]) -> Iterable[tuple[str, Path]]:
    return ((folder.name, path) for folder in folders for path in sorted(images_in(folder)))


def parquet(folder: Path, settings: ImageSetTask) -> Found | None:
    """Read parquet files with the hub's columns: `train.parquet`, or parts: `data/train-00000-of-00004.parquet`."""
    places = [folder, folder / "data", *([folder / settings.hub_name] if settings.hub_name else [])]
    for place in places:
        files = {name: _parquet_files(place, name) for name in (TRAIN, *TESTS)} if place.is_dir() else {}
        if not files.get(TRAIN):
            continue
        name = next((name for name in TESTS if files[name]), None)
        if name is None:
            raise UserError(f"task.data_dir: {place} has {files[TRAIN][0].name}, but no {TESTS[0]}.parquet")
        splits = {key: _loaded(files[key]) for key in (TRAIN, name)}
        found = columns(splits[TRAIN], splits[name], str(place))
        for key, rows in ((TRAIN, found.train), (name, found.test)):
            rows.sha256 = {path.relative_to(folder).as_posix(): stamp(path)["sha256"] for path in files[key]}
        return found
    return None


def _parquet_files(folder: Path, split: str) -> list[Path]:
    return [path for path in find_split(folder, split) if path.suffix.lower() == ".parquet"]


def _loaded(files: Sequence[Path]) -> Any:
    """Load parquet files as a table that is mapped into memory: an image set may be larger than the memory."""
    import datasets

    datasets.utils.logging.disable_progress_bar()
    datasets.utils.logging.set_verbosity_error()
    try:
        return datasets.Dataset.from_parquet([str(path) for path in files])
    except Exception as error:  # pyarrow and datasets raise any kind of error on a damaged file
        raise UserError(f"task.data_dir: cannot read {files[0]}: {one_line(error)}") from error


@dataclass(frozen=True)
class _Cell(Packed):
    """An image in a column of a table."""

    column: Any
    row: int

    def read(self) -> bytes:
        value = self.column[self.row].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        if isinstance(content, bytes):
            return content
        path = value.get("path") if isinstance(value, dict) else None
        if not path:
            raise OSError("has no content")
        return read_bytes(Path(path))


def columns(train: Any, test: Any, where: str) -> Found:
    """Return the splits of two tables of the `datasets` library, with a column of images and one of classes.

    Raises:
        UserError: a column is missing, or a class is neither a number nor a text.
    """
    names = _class_names(train, where)
    return Found("columns", _rows_of(train, names, "train", where), _rows_of(test, names, "test", where), names)


def _class_names(table: Any, where: str) -> list[str]:
    """Return the names of the classes: those that the file has, the texts in it, or the numbers as texts."""
    column = _column(table, LABEL_COLUMNS, where)
    own = getattr(table.features[column], "names", None)
    if own:
        return list(own)
    labels = set(table.data.column(column).unique().to_pylist())
    if all(isinstance(label, str) for label in labels):
        return sorted(labels)
    if all(isinstance(label, int) and label >= 0 for label in labels):
        return [str(number) for number in range(max(labels) + 1)]
    wrong = next(label for label in labels if not isinstance(label, int) or label < 0)
    raise UserError(f"{where}: label {wrong!r} of the training images is neither a class number nor a text")


def _rows_of(table: Any, classes: Sequence[str], split: str, where: str) -> ImageRows:
    images = table.data.column(_column(table, IMAGE_COLUMNS, where))
    numbers = {name: number for number, name in enumerate(classes)}
    rows = ImageRows([], [], [])
    for number, label in enumerate(table.data.column(_column(table, LABEL_COLUMNS, where)).to_pylist()):
        klass = numbers.get(label) if isinstance(label, str) else label
        if not isinstance(klass, int) or not 0 <= klass < len(classes):
            raise UserError(f"{where}, {split} row {number + 1}: label {label!r} is not one of {len(classes)} classes")
        rows.names.append(f"{split} row {number + 1}")
        rows.labels.append(klass)
    if not rows.labels:
        raise UserError(f"{where}: {split} has no rows")
    rows.images = [_Cell(images, number) for number in range(len(rows))]
    return rows


def _column(table: Any, names: Sequence[str], where: str) -> str:
    for name in names:
        if name in table.column_names:
            return name
    raise UserError(f"{where} has no column '{names[0]}'. It has: {', '.join(table.column_names)}")


READERS: tuple[Reader, ...] = (lists, parquet, split_folders, one_folder)

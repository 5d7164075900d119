"""The layouts in which five of the image sets are distributed: `task.distribution` names one of them."""

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from flexlora.errors import UserError, one_line
from flexlora.reading import TEXT, read_bytes, regular
from flexlora.results.stamps import stamp
from flexlora.settings import ImageSetTask
from flexlora.tasks.image_layouts import Found, Reader, class_folders, images_in, named_rows
from flexlora.tasks.image_lists import ImageRows, Packed
from flexlora.text_files import decode

Named = list[tuple[str, Path]]
"""Images with the names of their classes."""


def cars(folder: Path, settings: ImageSetTask) -> Found | None:
    """Read Stanford Cars: `cars_train/`, `cars_test/`, and MATLAB files with the class of each image."""
    train = _first(folder, "devkit/cars_train_annos.mat", "cars_train_annos.mat")
    if train is None:
        return None
    name = "cars_test_annos_withlabels.mat"
    test = _first(folder, name, f"devkit/{name}")
    if test is None:
        raise UserError(f"task.data_dir: {folder} has no {name}: the test list of the devkit has no classes")
    named, tested = _car_list(train, folder / "cars_train"), _car_list(test, folder / "cars_test")
    return _found(folder, "cars", named, tested, [train, test])


def dtd(folder: Path, settings: ImageSetTask) -> Found | None:
    """Read DTD's first split: `labels/train1.txt` and `val1.txt` to train on, `test1.txt` to evaluate on."""
    files = [folder / "labels" / f"{name}1.txt" for name in ("train", "val", "test")]
    if not all(file.is_file() for file in files):
        return None
    train, val, test = (_listed(file, folder / "images") for file in files)
    return _found(folder, "dtd", train + val, test, files)


def sun397(folder: Path, settings: ImageSetTask) -> Found | None:
    """Read SUN397's first partition: `Training_01.txt` and `Testing_01.txt`, images in `SUN397/<letter>/<class>/`."""
    places = ("", "Partitions/", "SUN397/")
    train, test = (_first(folder, *(f"{place}{name}_01.txt" for place in places)) for name in ("Training", "Testing"))
    if train is None or test is None:
        return None
    root = folder / "SUN397" if (folder / "SUN397").is_dir() else folder
    return _found(folder, "sun397", _listed(train, root), _listed(test, root), [train, test])


def gtsrb(folder: Path, settings: ImageSetTask) -> Found | None:
    """Read GTSRB as its authors pack it, as torchvision unpacks it, or with `Train.csv` and `Test.csv`."""
    tables = [folder / name for name in ("Train.csv", "Test.csv")]
    if all(table.is_file() for table in tables):
        train, test = (_table(table, ",", "Path", folder) for table in tables)
        return _found(folder, "gtsrb", train, test, tables)
    for root in (folder, folder / "GTSRB"):
        place = next((root / name for name in ("Final_Training/Images", "Training") if (root / name).is_dir()), None)
        if place is None:
            continue
        images = root / "Final_Test" / "Images"
        name = "GT-final_test.csv"
        truth = next((file for file in (images / name, root / name, root.parent / name) if file.is_file()), None)
        if truth is None:
            raise UserError(
                f"task.data_dir: {root} has no {name}, the classes of the test images (GTSRB_Final_Test_GT)"
            )
        train = [(_number(one.name), path) for one in class_folders(place) for path in sorted(images_in(one))]
        return _found(folder, "gtsrb", train, _table(truth, ";", "Filename", images), [truth])
    return None


@dataclass(frozen=True)
class _Pixels(Packed):
    """An image of an array of SVHN, whose shape is (rows, columns, 3, images)."""

    pixels: Any
    index: int

    def read(self) -> bytes:
        image = self.pixels[..., self.index]
        return b"P6 %d %d 255\n" % (image.shape[1], image.shape[0]) + image.tobytes()


def svhn(folder: Path, settings: ImageSetTask) -> Found | None:
    """Read SVHN's cropped digits: `train_32x32.mat` and `test_32x32.mat`, in which the digit 0 has the class 10."""
    files = [folder / f"{name}_32x32.mat" for name in ("train", "test")]
    if not all(file.is_file() for file in files):
        return None
    train, test = (_digits(file) for file in files)
    train.sha256 = _hashes(folder, files)
    return Found("svhn", train, test, [str(digit) for digit in range(10)])


READERS: Mapping[str, Reader] = {"cars": cars, "dtd": dtd, "gtsrb": gtsrb, "sun397": sun397, "svhn": svhn}


def _first(folder: Path, *names: str) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _found(folder: Path, layout: str, train: Named, test: Named, files: Sequence[Path]) -> Found:
    """Return two splits whose classes are those of the training images. `files` are the lists that were read."""
    classes = sorted({name for name, _ in train}, key=lambda name: (int(name) if name.isdigit() else 0, name))
    where = [f"the {split} list of {folder}" for split in ("training", "test")]
    rows, tested = (named_rows(one, classes, folder, text) for one, text in zip((train, test), where, strict=True))
    rows.sha256 = _hashes(folder, files)
    return Found(layout, rows, tested, classes)


def _hashes(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    return {Path(os.path.relpath(file, folder)).as_posix(): stamp(file)["sha256"] for file in files}


def _car_list(file: Path, folder: Path) -> Named:
    try:
        return [
            (str(int(one["class"])), folder / str(one["fname"])) for one in np.atleast_1d(_matlab(file)["annotations"])
        ]
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise UserError(f"task.data_dir: {file} is not a list of Stanford Cars: {one_line(error)}") from error


def _digits(file: Path) -> ImageRows:
    values = _matlab(file)
    pixels, labels = np.asarray(values.get("X", 0)), np.ravel(values.get("y", []))
    if (
        pixels.ndim != 4
        or pixels.shape[2:] != (3, len(labels))
        or pixels.dtype != np.uint8
        or not np.isin(labels, range(11)).all()
    ):
        raise UserError(f"task.data_dir: {file} does not have SVHN's images X (… x 3 x count) and digits y (1 to 10)")
    names = [f"{file.name} image {number + 1}" for number in range(len(labels))]
    return ImageRows(names, [_Pixels(pixels, number) for number in range(len(labels))], (labels % 10).tolist())


def _text(file: Path) -> str:
    return decode(read_bytes(file, TEXT), f"task.data_dir: {file}")


def _listed(file: Path, root: Path) -> Named:
    """Read the paths of a list. The class of an image is the folder that holds it."""
    paths = [PurePosixPath(line.strip().lstrip("/")) for line in _text(file).splitlines() if line.strip()]
    for number, path in enumerate(paths, start=1):
        if ".." in path.parts or len(path.parts) < 2:
            raise UserError(
                f"task.data_dir: {file} line {number}: '{path}' is not the path of an image in its class's folder"
            )
    return [(path.parent.as_posix(), root / path) for path in paths]


def _table(file: Path, delimiter: str, column: str, root: Path) -> Named:
    """Read a table with a column of paths and the column ClassId."""
    named = []
    for number, row in enumerate(csv.DictReader(io.StringIO(_text(file)), delimiter=delimiter), start=2):
        path, label = row.get(column), row.get("ClassId")
        if not path or label is None or not label.strip().isdigit() or ".." in PurePosixPath(path).parts:
            raise UserError(f"task.data_dir: {file} line {number}: it needs {column} (a path) and ClassId (a number)")
        named.append((_number(label), root / path.lstrip("/")))
    return named


def _number(text: str) -> str:
    """Return a number as a text without zeros before it: `00007` becomes `7`."""
    return str(int(text)) if text.strip().isdigit() else text


def _matlab(file: Path) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        values: dict[str, Any] = loadmat(regular(file), squeeze_me=True)
    except Exception as error:  # scipy raises any kind of error on a damaged file
        raise UserError(f"task.data_dir: cannot read {file}: {one_line(error)}") from error
    return values

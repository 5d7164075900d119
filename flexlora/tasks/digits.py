"""`scale=tiny`: scikit-learn's handwritten digits as VTAB-1K tasks; from the files' contents on it is `Vtab`."""

import hashlib
import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from flexlora.errors import UserError
from flexlora.settings import VtabTask
from flexlora.tasks.image_lists import PARTS, ImageRows
from flexlora.tasks.vtab import Vtab, vtab

log = logging.getLogger("flexlora")

TRAIN, VAL = 1000, 200
# Pixels of a side: of an image, and of a digit in it (8 x 8 as they come).
CANVAS, DIGIT = 32, 16
# Numbers that images and their order are drawn from: the same ones everywhere and for every seed of a run.
SEED = 0

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Digits:
    """Some of the 1,797 digits: (rows, 8, 8), and which digit each is."""

    pixels: Pixels
    digits: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.digits)


Example = Callable[[Digits, int, np.random.Generator], tuple[Pixels, int]]
"""The image (32, 32) and the class of a row: of these digits, the row's own, with what is drawn for it."""


def which(digits: Digits, row: int, draw: np.random.Generator) -> tuple[Pixels, int]:
    """The digit itself."""
    return _resized(digits.pixels[row], CANVAS), int(digits.digits[row])


def odd(digits: Digits, row: int, draw: np.random.Generator) -> tuple[Pixels, int]:
    """Whether the digit is odd."""
    return _resized(digits.pixels[row], CANVAS), int(digits.digits[row] % 2)


def how_many(digits: Digits, row: int, draw: np.random.Generator) -> tuple[Pixels, int]:
    """How many digits, one to eight, lie in the nine cells of a square."""
    count = int(draw.integers(1, 9))
    square = np.zeros((3 * DIGIT, 3 * DIGIT), dtype=np.uint8)
    others = draw.integers(len(digits), size=count - 1)
    for cell, number in zip(draw.permutation(9)[:count], [row, *others], strict=True):
        _put(square, digits.pixels[number], DIGIT * (cell // 3), DIGIT * (cell % 3))
    return _resized(square, CANVAS), count - 1


def turned(digits: Digits, row: int, draw: np.random.Generator) -> tuple[Pixels, int]:
    """By how many sixteenths of a circle the digit is turned."""
    sixteenths = int(draw.integers(16))
    image = Image.fromarray(_resized(digits.pixels[row], CANVAS))
    return np.asarray(image.rotate(22.5 * sixteenths, Image.Resampling.BICUBIC)), sixteenths


def column(digits: Digits, row: int, draw: np.random.Generator) -> tuple[Pixels, int]:
    """In which of 16 columns the digit begins, at any height."""
    image = np.zeros((CANVAS, CANVAS), dtype=np.uint8)
    left, top = int(draw.integers(16)), int(draw.integers(CANVAS - DIGIT + 1))
    _put(image, digits.pixels[row], top, left)
    return image, left


RELATIVES: dict[str, tuple[int, Example]] = {
    "vtab/svhn": (10, which),
    "vtab/patch_camelyon": (2, odd),
    "vtab/clevr_count": (8, how_many),
    "vtab/dsprites_ori": (16, turned),
    "vtab/dsprites_loc": (16, column),
}
"""By the task's name: its classes, as many as the real one has, and its small relative."""


def load(settings: VtabTask) -> Vtab:
    """The digits as a small relative of a VTAB-1K task: 1,000 to train on, 797 to test on, no digit in both.

    Raises:
        UserError: a folder of data is given too, the task has no relative, or another number of classes is asked for.
    """
    if settings.data_dir is not None:
        raise UserError("scale=tiny makes its data: leave out task.data_dir, or scale=tiny")
    if settings.name not in RELATIVES:
        raise UserError(f"scale=tiny has no task {settings.name}: it has {', '.join(RELATIVES)}")
    classes, example = RELATIVES[settings.name]
    if settings.num_classes != classes:
        raise UserError(f"task.num_classes is {settings.num_classes}, {settings.name} has {classes} at scale=tiny")
    log.info("scale=tiny: scikit-learn's digits and a small model; this says nothing about the paper")
    train, test = _parts()
    rows = {"train800val200.txt": _rows(train, example, "train"), "test.txt": _rows(test, example, "test")}
    rows["train800.txt"] = rows["train800val200.txt"].first(TRAIN - VAL)
    rows["val200.txt"] = rows["train800val200.txt"].pick(range(TRAIN - VAL, TRAIN))
    train_list, name, evaluation_list = PARTS[settings.split]
    provenance: dict[str, Any] = {
        "source": "scikit-learn's digits",
        "path": None,
        "revision": _source_hash(),
        "sha256": {},
    }
    return vtab(settings, rows[train_list], {name: rows[evaluation_list]}, provenance)


def _parts() -> tuple[Digits, Digits]:
    """The digits to train on and those to test on, in an order of our own."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)  # they come as 0 to 16
    order = np.random.default_rng(SEED).permutation(len(pixels))
    train, test = (Digits(pixels[part], data.target[part]) for part in (order[:TRAIN], order[TRAIN:]))
    return train, test


def _rows(digits: Digits, example: Example, split: str) -> ImageRows:
    """One row a digit, its image as a PNG file's content: it is decoded and resized as any file's is."""
    draw = np.random.default_rng([SEED, len(digits)])
    rows = ImageRows([], images := [], [])
    for number in range(len(digits)):
        pixels, label = example(digits, number, draw)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        rows.names.append(f"{split} {number}")
        images.append(file.getvalue())
        rows.labels.append(label)
    return rows


def _resized(pixels: Pixels, side: int) -> Pixels:
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))


def _put(image: Pixels, digit: Pixels, top: int, left: int) -> None:
    image[top : top + DIGIT, left : left + DIGIT] = _resized(digit, DIGIT)


@cache
def _source_hash() -> str:
    """A hash of this file: what it makes is a function of it and of scikit-learn's digits."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]

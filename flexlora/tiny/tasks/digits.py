"""`scale=tiny`: scikit-learn's handwritten digits as VTAB-1K tasks. `ImageClassification` processes the image files."""

import io
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from flexlora.errors import UserError
from flexlora.settings import ImageSetTask, VtabTask
from flexlora.source_hash import files_of, hash_of_files
from flexlora.tasks.image_lists import PARTS, ImageRows
from flexlora.tasks.image_task import ImageClassification, image_task
from flexlora.tiny import digit_images, generated
from flexlora.tiny.digit_images import RELATIVES, Digits, Example

TRAIN, VAL = 1000, 200
# Seed of the images and of their order. It does not depend on the run's seed.
SEED = 0


def load(settings: VtabTask) -> ImageClassification:
    """Load a small relative of a VTAB-1K task: 1,000 digits to train on, and 797 other digits to test on.

    Raises:
        UserError: `task.data_dir` is set, the task has no small relative, or `task.num_classes` is not its number.
    """
    check(settings, RELATIVES)
    train, test = drawn(RELATIVES[settings.name][1])
    rows = {"train800val200.txt": train, "test.txt": test}
    rows["train800.txt"] = rows["train800val200.txt"].first(TRAIN - VAL)
    rows["val200.txt"] = rows["train800val200.txt"].pick(range(TRAIN - VAL, TRAIN))
    train_list, name, evaluation_list = PARTS[settings.split]
    return image_task(settings, rows[train_list], {name: rows[evaluation_list]}, provenance())


def check(settings: VtabTask | ImageSetTask, relatives: Mapping[str, tuple[int, Example]]) -> None:
    """Check that the task has a small relative, and say that the results say nothing about the paper.

    Raises:
        UserError: `task.data_dir` is set, the task has no small relative, or `task.num_classes` is not its number.
    """
    generated.begin(settings, "data_dir", data="scikit-learn's digits")
    if settings.name not in relatives:
        raise UserError(f"scale=tiny has no task {settings.name}: it has {', '.join(relatives)}")
    classes, _ = relatives[settings.name]
    if settings.num_classes not in (None, classes):
        raise UserError(
            f"task.num_classes is {settings.num_classes}, but {settings.name} has {classes} classes at scale=tiny"
        )


def provenance() -> dict[str, Any]:
    """Return the source of the images, for the record."""
    return {
        "source": "scikit-learn's digits",
        "path": None,
        "revision": hash_of_files(*files_of(sys.modules[__name__], digit_images)),
        "sha256": {},
    }


@lru_cache(maxsize=4)
def drawn(example: Example) -> tuple[ImageRows, ImageRows]:
    """Make the training and test rows. They are cached for the next run of a sweep, so they must not change."""
    train, test = _parts()
    return _rows(train, example, "train"), _rows(test, example, "test")


def _parts() -> tuple[Digits, Digits]:
    """Split the digits into those to train on and those to test on, in a fixed random order."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)  # scikit-learn's values are 0 to 16
    order = np.random.default_rng(SEED).permutation(len(pixels))
    train, test = (Digits(pixels[part], data.target[part]) for part in (order[:TRAIN], order[TRAIN:]))
    return train, test


def _rows(digits: Digits, example: Example, split: str) -> ImageRows:
    """Make one row for each digit. The image is the content of a PNG file, decoded and resized like any image file."""
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

"""`scale=tiny`: scikit-learn's handwritten digits as VTAB-1K tasks; from the files' contents on it is `Vtab`."""

import io
import logging
import sys
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from flexlora.errors import UserError
from flexlora.settings import VtabTask
from flexlora.source_hash import files_of, hash_of_files
from flexlora.tasks.image_lists import PARTS, ImageRows
from flexlora.tasks.vtab import Vtab, vtab
from flexlora.tiny import digit_images
from flexlora.tiny.digit_images import RELATIVES, Digits, Example

log = logging.getLogger("flexlora")

TRAIN, VAL = 1000, 200
# Numbers that images and their order are drawn from: the same ones everywhere and for every seed of a run.
SEED = 0


def load(settings: VtabTask) -> Vtab:
    """The digits as a small relative of a VTAB-1K task: 1,000 to train on, 797 to test on, no digit in both.

    Raises:
        UserError: a folder of data is given too, the task has no relative, or another number of classes is asked for.
    """
    if settings.data_dir is not None:
        raise UserError("scale=tiny makes its data: leave out task.data_dir, or scale=tiny")
    if settings.name not in RELATIVES:
        raise UserError(f"scale=tiny has no task {settings.name}: it has {', '.join(RELATIVES)}")
    classes, _ = RELATIVES[settings.name]
    if settings.num_classes != classes:
        raise UserError(f"task.num_classes is {settings.num_classes}, {settings.name} has {classes} at scale=tiny")
    log.info("scale=tiny: scikit-learn's digits and a small model; this says nothing about the paper")
    rows = dict(zip(("train800val200.txt", "test.txt"), _drawn(settings.name), strict=True))
    rows["train800.txt"] = rows["train800val200.txt"].first(TRAIN - VAL)
    rows["val200.txt"] = rows["train800val200.txt"].pick(range(TRAIN - VAL, TRAIN))
    train_list, name, evaluation_list = PARTS[settings.split]
    provenance: dict[str, Any] = {
        "source": "scikit-learn's digits",
        "path": None,
        "revision": hash_of_files(*files_of(sys.modules[__name__], digit_images)),
        "sha256": {},
    }
    return vtab(settings, rows[train_list], {name: rows[evaluation_list]}, provenance)


@lru_cache(maxsize=4)
def _drawn(task: str) -> tuple[ImageRows, ImageRows]:
    """The rows to train on and to test on. They are kept for the next run of a sweep; nobody changes them."""
    _, example = RELATIVES[task]
    train, test = _parts()
    return _rows(train, example, "train"), _rows(test, example, "test")


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

"""The VTAB-1K family: an image in, a class out. The 19 tasks differ only in their YAML files."""

import logging
from typing import Any

from flexlora.settings import VtabTask
from flexlora.tasks.image_lists import PARTS, SIZES, ImageRows, read_split, task_folder
from flexlora.tasks.image_task import ImageClassification, image_task

log = logging.getLogger("flexlora")


def load(settings: VtabTask) -> ImageClassification:
    """Read a task's lists from `task.data_dir`. `preprocess` decodes the images, because it knows the backbone's size.

    Raises:
        UserError: the folder or a list is missing, or a list is broken.
    """
    folder = task_folder(settings)
    train, name, evaluation = read_split(folder, settings)
    provenance: dict[str, Any] = {
        "source": "folder",
        "layout": "vtab-1k",
        "path": str(folder),
        "revision": None,
        "sha256": train.sha256 | evaluation.sha256,
        "sizes": _sizes(settings, train, evaluation),
    }
    return image_task(settings, train, {name: evaluation}, provenance)


def _sizes(settings: VtabTask, train: ImageRows, evaluation: ImageRows) -> dict[str, list[int]]:
    """Return the number of rows of each list, and the benchmark's number. A difference is logged as a warning."""
    train_file, _, evaluation_file = PARTS[settings.split]
    expected = {**SIZES, "test.txt": settings.test_rows}
    sizes = {file: [len(rows), expected[file]] for file, rows in ((train_file, train), (evaluation_file, evaluation))}
    for file, (rows, benchmark) in sizes.items():
        if rows != benchmark:
            log.warning("%s has %d rows, but VTAB-1K has %d: this is not the benchmark's split", file, rows, benchmark)
    return sizes

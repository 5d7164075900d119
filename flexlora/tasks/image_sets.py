"""Whole image sets: the seven of E²LoRA's tables, and any folder. They differ only in their YAML files."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from flexlora.errors import UserError, did_you_mean
from flexlora.hub import load_splits
from flexlora.paths import existing_folder
from flexlora.settings import ImageSetTask
from flexlora.tasks import image_distributions, image_layouts
from flexlora.tasks.image_layouts import TESTS, TRAIN, Found, Reader
from flexlora.tasks.image_task import ImageClassification, image_task
from flexlora.tasks.own_files import listed, split_facts, split_line, warn_of_small_classes

log = logging.getLogger("flexlora")

DOCUMENTED = "docs/reference/images.md has the layouts"


def load(settings: ImageSetTask) -> ImageClassification:
    """Read the lists of a set from `task.data_dir` or from the hub. `preprocess` decodes the images.

    Raises:
        UserError: the folder has none of the layouts, a list is broken, the number of classes is not the set's, or the
            hub cannot be reached.
    """
    if settings.train_share + settings.test_share > 1 + 1e-9:
        raise UserError(
            f"task.train_share={settings.train_share:g} and task.test_share={settings.test_share:g} are more than 1"
        )
    found, where = _from_hub(settings) if settings.data_dir is None else _from_folder(settings)
    _check_classes(settings, found, where["path"])
    provenance = {
        **where,
        "layout": found.layout,
        "sha256": found.train.sha256 | found.test.sha256,
        "sizes": _sizes(settings, found),
        "classes": found.classes,
        "split": split_facts({"train": len(found.train), "test": len(found.test)}, found.seed),
    }
    log.info("data: %d classes, in this order: %s", len(found.classes), listed(found.classes))
    log.info("%s", split_line(provenance["split"], "images"))
    if found.note:
        log.info("%s", found.note)
    return image_task(replace(settings, num_classes=len(found.classes)), found.train, {"test": found.test}, provenance)


def _from_folder(settings: ImageSetTask) -> tuple[Found, dict[str, Any]]:
    """Read the first folder, and the first layout, that fits: `task.data_dir`/<one of the set's names>, or itself."""
    assert settings.data_dir is not None
    root = existing_folder("task.data_dir", settings.data_dir)
    tried = [folder for folder in (*(root / name for name in settings.folders), root) if folder.is_dir()]
    try:
        for folder in tried:
            for read in _readers(settings):
                found = read(folder, settings)
                if found is not None:
                    return found, {"source": "folder", "path": str(folder), "revision": None}
    except OSError as error:
        raise UserError(f"task.data_dir: cannot read {error.filename}: {error.strerror or error}") from error
    names = " and ".join(str(folder) for folder in tried)
    own = f"no files of {settings.name.rpartition('/')[2]}'s own, " if settings.distribution else ""
    raise UserError(
        f"task.data_dir: {names}: {own}no train.txt and test.txt, no train.parquet, "
        f"and no folders of classes (train/<class>/ and test/<class>/) with images: {DOCUMENTED}"
    )


def _readers(settings: ImageSetTask) -> Iterator[Reader]:
    own = settings.distribution
    if own is not None:
        if own not in image_distributions.READERS:
            near = did_you_mean(own, image_distributions.READERS)
            raise UserError(
                f"there is no task.distribution '{own}'.{near} There are: {', '.join(image_distributions.READERS)}."
            )
        yield image_distributions.READERS[own]
    yield from image_layouts.READERS


def _from_hub(settings: ImageSetTask) -> tuple[Found, dict[str, Any]]:
    if settings.hub_path is None:
        raise UserError(f"task.data_dir is not set: set task.data_dir=DIR, a folder with images ({DOCUMENTED})")
    hint = f"task.data_dir=DIR takes the images from a folder ({DOCUMENTED})"
    loaded = load_splits(settings.hub_path, settings.hub_name, settings.hub_revision, hint)
    name = next((name for name in TESTS if name in loaded), None)
    if TRAIN not in loaded or name is None:
        raise UserError(f"{settings.hub_path} has no splits train and test. It has: {', '.join(loaded)}")
    found = image_layouts.columns(loaded[TRAIN], loaded[name], settings.hub_path)
    return found, {"source": "hub", "path": settings.hub_path, "revision": settings.hub_revision}


def _check_classes(settings: ImageSetTask, found: Found, where: str) -> None:
    """Check the number of classes. Classes without a training image are logged as a warning."""
    count = len(found.classes)
    if settings.num_classes is not None and count != settings.num_classes:
        raise UserError(
            f"task.num_classes is {settings.num_classes}, but {where} has {count} classes: "
            f"set task.num_classes={count} if the folder is right"
        )
    if count < 2:
        raise UserError(f"task.data_dir: {where} has {count} class: a task needs at least 2")
    warn_of_small_classes(found.classes, found.train.labels, found.test.labels, "image")


def _sizes(settings: ImageSetTask, found: Found) -> dict[str, list[int]]:
    """Return the number of rows of each split and the set's numbers. A difference is logged as a warning."""
    sizes = {}
    for split, rows in (("train", found.train), ("test", found.test)):
        known = settings.sizes.get(split, [])
        sizes[split] = [len(rows), *known]
        if known and len(rows) not in known:
            log.warning(
                "%s has %s %s images, but the set has %s: this is not its usual split",
                settings.name,
                f"{len(rows):,}",
                "training" if split == "train" else "test",
                " or ".join(f"{count:,}" for count in known),
            )
    return sizes

"""`scale=tiny`: questions about a small world in Commonsense170K's eight formats. `Commonsense` processes the rows."""

import hashlib
import json
import logging
from functools import lru_cache
from random import Random

from flexlora.errors import UserError
from flexlora.settings import CommonsenseTask
from flexlora.tasks.commonsense import Commonsense, check_sets, commonsense
from flexlora.tasks.commonsense_rows import Row
from flexlora.tiny import world

log = logging.getLogger("flexlora")

# Rows of each set.
TRAIN, TEST = 512, 100


def load(settings: CommonsenseTask) -> Commonsense:
    """Generate the training and test questions: like real data, they are the same on every machine and for every seed.

    No thing in a test question occurs in a training question: the model must know it from pretraining.

    Raises:
        UserError: `task.data_dir` or `task.hub_path` is set, or a named set does not exist.
    """
    if settings.data_dir is not None or settings.hub_path is not None:
        raise UserError(
            "scale=tiny generates its data: leave out task.data_dir and task.hub_path, or leave out scale=tiny"
        )
    check_sets(settings)
    log.info("scale=tiny: generated data and a small model; the results say nothing about the paper")
    train, tests, sha256 = _asked(tuple(settings.train_sets or world.ASKED), tuple(settings.test_sets))
    provenance = {"source": "generated", "path": None, "revision": world.source_hash(), "sha256": {"rows": sha256}}
    return commonsense(settings, train, tests, provenance)


@lru_cache(maxsize=4)
def _asked(train_sets: tuple[str, ...], test_sets: tuple[str, ...]) -> tuple[list[Row], dict[str, list[Row]], str]:
    """Generate the training and test rows and their hash. They are cached for the next run, so they must not change."""
    familiar = {quality: things[: world.ASKED_IN_TRAINING] for quality, things in world.QUALITIES.items()}
    others = {quality: things[world.ASKED_IN_TRAINING :] for quality, things in world.QUALITIES.items()}
    train: list[Row] = []
    for name in train_sets:
        train += world.rows(name, familiar, TRAIN, Random(f"{name} train"))
    tests = {name: world.rows(name, others, TEST, Random(f"{name} test")) for name in test_sets}
    return train, tests, hashlib.sha256(json.dumps([train, tests]).encode()).hexdigest()

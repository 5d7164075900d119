"""`scale=tiny`: Commonsense170K's eight formats about a small world; from the rows on it is `Commonsense`."""

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
    """Questions to train on and to test with: the same ones everywhere and for every seed, as real data would be.

    No thing that a test question is about is in a training question: what it is has to be known from the pretraining.

    Raises:
        UserError: data of one's own are given too, or there is no such set.
    """
    if settings.data_dir is not None or settings.hub_path is not None:
        raise UserError("scale=tiny generates its data: leave out task.data_dir and task.hub_path, or scale=tiny")
    check_sets(settings)
    log.info("scale=tiny: generated data and a small model; this says nothing about the paper")
    train, tests, sha256 = _asked(tuple(settings.train_sets or world.ASKED), tuple(settings.test_sets))
    provenance = {"source": "generated", "path": None, "revision": world.source_hash(), "sha256": {"rows": sha256}}
    return commonsense(settings, train, tests, provenance)


@lru_cache(maxsize=4)
def _asked(train_sets: tuple[str, ...], test_sets: tuple[str, ...]) -> tuple[list[Row], dict[str, list[Row]], str]:
    """The rows to train on and to test with, and their hash. They are kept for the next run; nobody changes them."""
    familiar = {quality: things[: world.ASKED_IN_TRAINING] for quality, things in world.QUALITIES.items()}
    others = {quality: things[world.ASKED_IN_TRAINING :] for quality, things in world.QUALITIES.items()}
    train: list[Row] = []
    for name in train_sets:
        train += world.rows(name, familiar, TRAIN, Random(f"{name} train"))
    tests = {name: world.rows(name, others, TEST, Random(f"{name} test")) for name in test_sets}
    return train, tests, hashlib.sha256(json.dumps([train, tests]).encode()).hexdigest()

"""`scale=tiny`: questions about a small world in Commonsense170K's eight formats. `Commonsense` processes the rows."""

from functools import lru_cache
from random import Random

from flexlora.settings import CommonsenseTask
from flexlora.tasks.commonsense import Commonsense, check_sets, commonsense
from flexlora.tasks.commonsense_rows import Row
from flexlora.tiny import generated, world

# Rows of each set.
TRAIN, TEST = 512, 100


def load(settings: CommonsenseTask) -> Commonsense:
    """Generate the training and test questions: like real data, they are the same on every machine and for every seed.

    No thing in a test question occurs in a training question: the model must know it from pretraining.

    Raises:
        UserError: `task.data_dir` or `task.hub_path` is set, or a named set does not exist.
    """
    generated.begin(settings, "data_dir", "hub_path")
    check_sets(settings)
    train, tests = _asked(tuple(settings.train_sets or world.ASKED), tuple(settings.test_sets))
    provenance = generated.provenance(world.source_hash(), [train, tests])
    return commonsense(settings, train, tests, provenance)


@lru_cache(maxsize=4)
def _asked(train_sets: tuple[str, ...], test_sets: tuple[str, ...]) -> tuple[list[Row], dict[str, list[Row]]]:
    """Generate the training and test rows. They are cached for the next run, so they must not change."""
    familiar = {quality: things[: world.ASKED_IN_TRAINING] for quality, things in world.QUALITIES.items()}
    others = {quality: things[world.ASKED_IN_TRAINING :] for quality, things in world.QUALITIES.items()}
    train: list[Row] = []
    for name in train_sets:
        train += world.rows(name, familiar, TRAIN, Random(f"{name} train"))
    tests = {name: world.rows(name, others, TEST, Random(f"{name} test")) for name in test_sets}
    return train, tests

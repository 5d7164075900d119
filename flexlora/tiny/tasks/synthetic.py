"""`scale=tiny`: generated rows with a GLUE task's columns, labels and metric. `Glue` processes the rows."""

import hashlib
import json
import logging
from functools import lru_cache

from flexlora.errors import UserError
from flexlora.settings import GlueTask
from flexlora.tasks.glue import Glue, glue
from flexlora.tasks.rows import Rows, check_columns, check_labels
from flexlora.tiny.english import TASKS, generate, source_hash

log = logging.getLogger("flexlora")


def load(settings: GlueTask) -> Glue:
    """Generate the rows of a GLUE task: like real data, they are the same on every machine and for every seed.

    Raises:
        UserError: `task.data_dir` is set, or there is no generator for this task.
    """
    if settings.data_dir is not None:
        raise UserError("scale=tiny generates its data: leave out task.data_dir, or leave out scale=tiny")
    if settings.name not in TASKS:
        raise UserError(f"scale=tiny has no task {settings.name}: it generates {', '.join(TASKS)}")
    check_columns(settings)
    check_labels(settings)
    log.info("scale=tiny: generated data and a small model; the results say nothing about the paper")
    splits, sha256 = _generated(settings.name, tuple(settings.tsv.evaluation))
    provenance = {"source": "generated", "path": None, "revision": source_hash(), "sha256": {"rows": sha256}}
    evaluation = {name: rows for name, rows in splits.items() if name != "train"}
    return glue(settings, splits["train"], evaluation, provenance)


@lru_cache(maxsize=4)
def _generated(task: str, evaluation: tuple[str, ...]) -> tuple[dict[str, Rows], str]:
    """Generate the splits and a hash of their rows. They are cached for the next run, so they must not change."""
    splits: dict[str, Rows] = {}
    digest = hashlib.sha256()
    for name, rows in generate(task, list(evaluation)).items():
        texts = tuple(list(column) for column in zip(*(texts for texts, _ in rows), strict=True))
        splits[name] = Rows(texts, [label for _, label in rows])
        digest.update(json.dumps([name, rows]).encode())
    return splits, digest.hexdigest()

"""`scale=tiny`: a GLUE task's columns, labels and metric over generated rows; from the tokenizer on it is `Glue`."""

import hashlib
import json
import logging

from flexlora.errors import UserError
from flexlora.settings import GlueTask
from flexlora.tasks.glue import Glue, glue
from flexlora.tasks.rows import Rows, check_columns, check_labels
from flexlora.tiny.english import TASKS, generate, source_hash

log = logging.getLogger("flexlora")


def load(settings: GlueTask) -> Glue:
    """Generate the rows of a GLUE task: the same ones everywhere and for every seed, as real data would be.

    Raises:
        UserError: a folder of data is given too, or there is no generator for this task.
    """
    if settings.data_dir is not None:
        raise UserError("scale=tiny generates its data: leave out task.data_dir, or scale=tiny")
    if settings.name not in TASKS:
        raise UserError(f"scale=tiny has no task {settings.name}: it generates {', '.join(TASKS)}")
    check_columns(settings)
    check_labels(settings)
    log.info("scale=tiny: generated data and a small model; this says nothing about the paper")
    splits: dict[str, Rows] = {}
    digest = hashlib.sha256()
    for name, rows in generate(settings.name, list(settings.tsv.evaluation)).items():
        texts = tuple(list(column) for column in zip(*(texts for texts, _ in rows), strict=True))
        splits[name] = Rows(texts, [label for _, label in rows])
        digest.update(json.dumps([name, rows]).encode())
    provenance = {
        "source": "generated",
        "path": None,
        "revision": source_hash(),
        "sha256": {"rows": digest.hexdigest()},
    }
    return glue(settings, splits.pop("train"), splits, provenance)

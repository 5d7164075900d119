"""`scale=tiny`: generated rows with a GLUE task's columns, labels and metric. `Glue` processes the rows."""

from functools import lru_cache
from typing import Any

from flexlora.errors import UserError
from flexlora.settings import GlueTask
from flexlora.tasks.glue import Glue, glue
from flexlora.tasks.rows import Rows, check_columns, check_labels
from flexlora.tiny import generated
from flexlora.tiny.english import TASKS, generate, source_hash


def load(settings: GlueTask) -> Glue:
    """Generate the rows of a GLUE task: like real data, they are the same on every machine and for every seed.

    Raises:
        UserError: `task.data_dir` is set, or there is no generator for this task.
    """
    generated.begin(settings, "data_dir")
    if settings.name not in TASKS:
        raise UserError(f"scale=tiny has no task {settings.name}: it generates {', '.join(TASKS)}")
    check_columns(settings)
    check_labels(settings)
    splits, plain = _generated(settings.name, tuple(settings.tsv.evaluation))
    provenance = generated.provenance(source_hash(), plain)
    evaluation = {name: rows for name, rows in splits.items() if name != "train"}
    return glue(settings, splits["train"], evaluation, provenance)


@lru_cache(maxsize=4)
def _generated(task: str, evaluation: tuple[str, ...]) -> tuple[dict[str, Rows], dict[str, Any]]:
    """Generate the splits, also as plain data. They are cached for the next run, so they must not change."""
    plain = generate(task, list(evaluation))
    splits: dict[str, Rows] = {}
    for name, rows in plain.items():
        texts = tuple(list(column) for column in zip(*(texts for texts, _ in rows), strict=True))
        splits[name] = Rows(texts, [label for _, label in rows])
    return splits, plain

"""Folders that a run reads, refused before torch is imported where they are missing."""

from pathlib import Path

import flexlora
from flexlora.models import on_hub
from flexlora.paths import existing_folder
from flexlora.results.record import recorded_run
from flexlora.settings import RunSettings


def refuse_missing_inputs(settings: RunSettings) -> None:
    """Refuse a folder that the task, the model or the method would refuse, some seconds later.

    What only code from outside this package reads is left to that code, and so is the data that flexlora/tiny makes.

    Raises:
        UserError: a folder is missing.
    """
    task, model, method = settings.task, settings.model, settings.method
    if method.fields.get("ranks_from") is not None:
        recorded_run("method.ranks_from", method.fields["ranks_from"])
    if _has_module("tasks", task.family) and task.data_dir is not None:  # a family from outside may have no such field
        existing_folder("task.data_dir", task.data_dir)
    if model.path is not None and _has_module("models", model.kind) and not on_hub(model):
        existing_folder("model.path", model.path)
    if settings.adapter is not None:
        existing_folder("adapter", settings.adapter)


def _has_module(folder: str, name: str) -> bool:
    """Whether `flexlora/<folder>/<name>.py` exists; importing the package would import torch."""
    return (Path(flexlora.__file__).parent / folder / f"{name}.py").is_file()

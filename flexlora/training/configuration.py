"""What a method chooses from gradients before it wraps the model: made once, kept in the run's folder for a resume."""

import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexlora.errors import UserError, one_line
from flexlora.reading import read_text
from flexlora.results.files import to_json, write_text
from flexlora.results.whole import CONFIGURATION

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

    from flexlora.methods import Method
    from flexlora.settings import RunSettings
    from flexlora.tasks import Task

log = logging.getLogger("flexlora")


def configure(
    method: "Method",
    model: "nn.Module",
    task: "Task",
    settings: "RunSettings",
    accelerator: "Accelerator",
    folder: Path | None = None,
    resume: bool = False,
) -> dict[str, Any] | None:
    """Let a method choose its configuration from gradients of the first batches; None if it does not.

    All processes call this, each with its own batches, and make the same choice. A run that resumes reads the choice
    that it made at first, because gradients on another machine may differ in the last digits. A run that starts from a
    saved adapter takes the adapter's.

    Args:
        method: the run's method, before `wrap`.
        model: the plain backbone. It is on the run's device afterwards.
        task: the task, preprocessed.
        settings: the settings of the run.
        accelerator: the accelerator of the run.
        folder: the run's folder, where the choice is written. Without it nothing is written.
        resume: whether the choice is read from the folder.

    Raises:
        UserError: the gradients do not allow a choice, or the settings contradict the saved adapter's choice.
        ValueError: the file of a resumed run is missing or damaged.
    """
    if not method.configures:
        return None
    saved = None if settings.adapter is None else method.configuration_of(Path(settings.adapter).expanduser())
    if resume and folder is not None:
        method.take_configuration(_read(folder / CONFIGURATION))
    elif saved is not None:
        try:
            method.take_configuration(saved)
        except ValueError as error:
            raise UserError(f"adapter: {settings.adapter}: {one_line(error)}") from error
    else:
        from flexlora.training.loader import TaskLoader

        loader = TaskLoader(task, settings.training, accelerator, settings.data_seed)
        method.configure(model.to(accelerator.device), loader.first_batches(), task.loss)
    if folder is not None and not resume and accelerator.is_main_process:
        write_text(folder / CONFIGURATION, to_json(method.configuration()) + "\n")
    for line in method.configuration_lines():
        log.info("%s", line)
    return method.configuration()


def identity(configuration: dict[str, Any] | None) -> dict[str, dict[str, str]]:
    """Return the hash of a choice, for the identity in a checkpoint."""
    if configuration is None:
        return {}
    digest = hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()
    return {"choice from gradients": {CONFIGURATION: digest}}


def _read(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(read_text(file))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{file} cannot be read: {reason}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} is not a JSON object")
    return values

"""The source of a pretrained transformers model, and the error messages if it cannot be loaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flexlora.errors import UserError, one_line
from flexlora.hub import trouble_with, what_failed
from flexlora.models import on_hub
from flexlora.paths import existing_folder
from flexlora.settings import ModelSettings


@contextmanager
def pretrained(settings: ModelSettings, hint: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the first argument and the keywords for `from_pretrained`. Errors in the block become one-line messages.

    Args:
        settings: `model.*`.
        hint: what the user can do if the hub cannot be reached.

    Raises:
        UserError: `model.path` is not set or does not exist, the hub's model cannot be reached, or a file cannot be
            read.
    """
    if settings.path is None:
        raise UserError("model.path is not set: model=local needs model.path=DIR, a folder with a saved model")
    folder = Path(settings.path).expanduser()
    if not on_hub(settings):
        existing_folder("model.path", settings.path)
        if not (folder / "config.json").is_file():
            raise UserError(f"model.path: {settings.path} has no config.json: it is not a saved transformers model")
        source, trouble = str(folder), None
    else:
        source, trouble = settings.path, trouble_with(settings.path, "model", settings.revision)
    only_here = folder.is_dir() or trouble is not None
    try:
        yield source, {"revision": settings.revision, "local_files_only": only_here, "trust_remote_code": False}
    except UserError:
        raise
    except Exception as error:  # libraries raise many kinds of errors on damaged files and broken connections
        if folder.is_dir():
            kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
            raise UserError(f"model.path: cannot load {settings.path}: {kind}{one_line(error)}") from error
        if trouble is not None:
            raise UserError(f"{settings.path} is not in the local cache and {trouble}; {hint}") from error
        raise UserError(f"cannot load {settings.path} from the hub: {what_failed(error)}; {hint}") from error

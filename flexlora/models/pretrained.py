"""Where a pretrained transformers model is read from, and what to say where it cannot be."""

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
    """The first argument and the keywords of a `from_pretrained`; what fails in the block is said in one line.

    Args:
        settings: `model.*`.
        hint: what to do where the hub cannot be reached.

    Raises:
        UserError: nothing at `model.path`, no such model in reach, or files that cannot be read.
    """
    if settings.path is None:
        raise UserError("model.path is not set: model=local needs model.path=DIR, a folder with a saved model")
    folder = Path(settings.path).expanduser()
    if not on_hub(settings):
        existing_folder("model.path", settings.path)
        if not (folder / "config.json").is_file():
            raise UserError(f"model.path: {settings.path} has no config.json, it is not a saved transformers model")
        source, trouble = str(folder), None
    else:
        source, trouble = settings.path, trouble_with(settings.path, "model", settings.revision)
    only_here = folder.is_dir() or trouble is not None
    try:
        yield source, {"revision": settings.revision, "local_files_only": only_here, "trust_remote_code": False}
    except UserError:
        raise
    except Exception as error:  # a damaged file makes each library fail in its own ways, and so does a connection
        if folder.is_dir():
            kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
            raise UserError(f"model.path: cannot load {settings.path}: {kind}{one_line(error)}") from error
        if trouble is not None:
            raise UserError(f"{settings.path} is not in the local cache and {trouble}; {hint}") from error
        raise UserError(f"cannot load {settings.path} from the hub: {what_failed(error)}; {hint}") from error

"""Where a pretrained transformers model is read from, and what to say where it cannot be."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flexlora.errors import UserError, one_line
from flexlora.hub import hub_is_offline
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
    if not folder.is_dir() and (settings.name is None or folder.is_absolute()):
        raise UserError(f"model.path: there is no folder {settings.path}")
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"model.path: {settings.path} has no config.json, it is not a saved transformers model")
        source, offline = str(folder), True
    else:
        source, offline = settings.path, hub_is_offline()
    from safetensors import SafetensorError

    try:
        yield source, {"revision": settings.revision, "local_files_only": offline, "trust_remote_code": False}
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        if folder.is_dir():
            raise UserError(f"model.path: cannot load {settings.path}: {one_line(error)}") from error
        if offline:
            raise UserError(
                f"{settings.path} is not in the local cache and the hub cannot be reached "
                f"(or HF_HUB_OFFLINE=1 is set): {hint}"
            ) from error
        raise UserError(f"cannot load {settings.path} from the hub: {one_line(error)}; {hint}") from error

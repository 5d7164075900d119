"""The source of a pretrained transformers model, and the error messages if it cannot be loaded."""

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flexlora.errors import UserError, one_line
from flexlora.hub import trouble_with, what_failed
from flexlora.models import on_hub
from flexlora.models.saved_files import require_config
from flexlora.saved_adapter import CONFIG as ADAPTER
from flexlora.settings import ModelSettings

log = logging.getLogger("flexlora")


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
        require_config(settings.path, "saved transformers")
        refuse_second_adapter(folder / ADAPTER, settings.path)
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


def refuse_second_adapter(file: Path, path: str) -> None:
    """Refuse a model with an adapter beside its weights.

    The run's adapter would be trained on top of the other one, and would not fit the model alone.

    Raises:
        UserError: `file` exists.
    """
    if file.is_file():
        raise _second_adapter(path)


def refuse_misfits(model: Any, report: Mapping[str, Any], path: str | None, head: Collection[str] = ()) -> list[str]:
    """Check what `from_pretrained` reports: all weights except the head's come from the checkpoint.

    Returns:
        The names of the head's weights that the checkpoint lacks, or has in another shape.

    Raises:
        UserError: a weight is missing or has another shape, the checkpoint has more layers than its configuration, or
            an adapter was loaded with it.
    """
    if getattr(model, "_hf_peft_config_loaded", False):
        raise _second_adapter(path)

    def in_head(name: str) -> bool:
        return not set(head).isdisjoint(name.split("."))

    missing = sorted(name for name in report["missing_keys"] if not in_head(name))
    if missing:
        raise UserError(f"model.path: {path} lacks {len(missing)} of the model's weights, such as {missing[0]}")
    layers = [name for name in report["unexpected_keys"] if not {"layer", "layers"}.isdisjoint(name.split("."))]
    if layers:
        raise UserError(
            f"model.path: {path} contradicts its config.json: the weights have {min(layers)}, "
            "but config.json describes no such layer"
        )
    for name, theirs, ours in report["mismatched_keys"]:
        if not in_head(name):
            raise UserError(
                f"model.path: {path} contradicts its config.json: {name} has shape {list(theirs)}, "
                f"but config.json gives {list(ours)}"
            )
        log.info("model.path: %s has another shape in the checkpoint and is initialised again", name)
    return [*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])]


def _second_adapter(path: str | None) -> UserError:
    return UserError(
        f"model.path: {path} has {ADAPTER} beside its weights: an adapter of an earlier training. Merge it first "
        f"(PeftModel.from_pretrained(...).merge_and_unload().save_pretrained(DIR)), or move {ADAPTER} away"
    )

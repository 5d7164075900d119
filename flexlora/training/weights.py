"""A run's weights on the disk: damaged weights are refused, and the adapter is saved whole or not at all."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from flexlora.errors import UserError, one_line
from flexlora.paths import saved_folder
from flexlora.saved_adapter import checked_record

if TYPE_CHECKING:
    from flexlora.methods import Method

log = logging.getLogger("flexlora")


def refuse_not_finite(model: nn.Module, what: str) -> None:
    """Refuse weights that a damaged file made NaN or infinite. Otherwise the training would seem to diverge.

    Raises:
        UserError: a weight is not finite; the message begins with `what`.
    """
    for name, parameter in model.named_parameters():
        # The sum of a tensor needs no further memory, and it is finite only if every value is finite.
        if parameter.is_floating_point() and not parameter.detach().sum(dtype=torch.float32).isfinite():
            raise UserError(f"{what} has values in {name} that are not finite: the file is damaged")


def load_start(
    method: "Method", model: nn.Module, folder: str, labels: Sequence[str], base: Mapping[str, str] | None = None
) -> None:
    """Load the adapter in `folder`, the value of the setting `adapter`, into the adapted model.

    One line warns about an adapter that was trained on other weights than this run's: its update fits only those.

    Args:
        method: the run's method.
        model: the model that it wrapped.
        folder: the folder of the adapter.
        labels: the names of the task's classes, in order.
        base: the SHA-256 of the model's files by name, as the record has it; None if it is not known.

    Raises:
        UserError: the folder does not exist, one of its files is not what its run wrote, its head has the task's
            classes in another order, a value is not finite, or the adapter does not fit (`Method.load`).
    """
    adapter = saved_folder("adapter", folder)
    try:
        record = checked_record(adapter)
    except ValueError as error:
        raise UserError(f"adapter: {error}") from error
    if record is not None:
        _refuse_other_order((record.config.get("task") or {}).get("labels"), list(labels), folder)
        other = _other_weights(record.backbone.get("sha256"), base)
        if other is not None:
            log.warning("adapter: %s was trained on another model than this run's: %s differs", folder, other)
    method.load(model, adapter)
    refuse_not_finite(model, f"adapter: {folder}")
    log.info("starting from %s", folder)


def _refuse_other_order(theirs: Any, ours: list[str], folder: str) -> None:
    if isinstance(theirs, list) and theirs != ours and sorted(map(str, theirs)) == sorted(ours):
        raise UserError(
            f"adapter: the head in {folder} has the classes in the order {', '.join(map(str, theirs))}, "
            f"but task.labels has {', '.join(ours)}"
        )


def _other_weights(theirs: Any, ours: Mapping[str, str] | None) -> str | None:
    """Return the name of the first file of weights whose hash differs; None if no hash differs or none is known."""
    if not isinstance(theirs, dict) or ours is None:
        return None
    weights = (name for name in sorted(theirs.keys() & ours.keys()) if Path(name).suffix in (".safetensors", ".bin"))
    return next((name for name in weights if theirs[name] != ours[name]), None)


def save_adapter(method: "Method", model: nn.Module, path: Path) -> list[Path]:
    """Write `adapter/` into the run's folder `path`, whole or not at all; return the files of its weights."""
    part, adapter = path / ".adapter.part", path / "adapter"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        method.save(model, part)
        mode = part.stat().st_mode  # the mode of a new folder of this user
        for file in part.rglob("*"):
            file.chmod(mode if file.is_dir() else mode & 0o666)  # safetensors writes 0600 and ignores the umask
        shutil.rmtree(adapter, ignore_errors=True)  # it is of a run that was killed before its record was written
        part.replace(adapter)
    except SafetensorError as error:  # safetensors raises this for any failure of the file system
        raise UserError(f"cannot write {part}: {one_line(error)}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return sorted(adapter.glob("*.safetensors"))

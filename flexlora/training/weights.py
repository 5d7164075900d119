"""A run's weights on the disk: damaged ones are refused, and the adapter is saved whole or not at all."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import nn

from flexlora.errors import UserError, one_line
from flexlora.results.files import file_sha256
from flexlora.results.record import read_record

if TYPE_CHECKING:
    from flexlora.methods import Method


def refuse_not_finite(model: nn.Module, what: str) -> None:
    """Refuse weights that a damaged file made NaN or infinite, before a training is said to diverge over them.

    Raises:
        UserError: there are such weights; the message begins with `what`.
    """
    for name, parameter in model.named_parameters():
        # The sum of a tensor needs no memory beside it, and is finite only if every value is.
        if parameter.is_floating_point() and not parameter.detach().sum(dtype=torch.float32).isfinite():
            raise UserError(f"{what} has values in {name} that are not finite: the file is damaged")


def refuse_damaged(adapter: Path) -> None:
    """Refuse the adapter of a finished run whose weights are no longer those that the run wrote.

    Raises:
        UserError: a file differs from its run's record. An adapter from elsewhere has no record and is not refused.
    """
    try:
        written = read_record(adapter.resolve().parent / "result.json").adapter_sha256
    except ValueError:
        return
    for name, sha256 in written.items():
        file = adapter / name
        if file.is_file() and file_sha256(file) != sha256:
            raise UserError(f"adapter: {file} is not what its run wrote: it is damaged, or was changed since")


def save_adapter(method: "Method", model: nn.Module, path: Path) -> list[Path]:
    """Write `adapter/` into the run's folder `path`, whole or not at all; return the files with its weights."""
    part, adapter = path / ".adapter.part", path / "adapter"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        method.save(model, part)
        mode = part.stat().st_mode  # of a new folder of this user
        for file in part.rglob("*"):
            file.chmod(mode if file.is_dir() else mode & 0o666)  # safetensors writes 0600, whatever the umask is
        shutil.rmtree(adapter, ignore_errors=True)  # of a run that was killed before its record was written
        part.replace(adapter)
    except SafetensorError as error:  # its own word for any failure of the file system
        raise UserError(f"cannot write {part}: {one_line(error)}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return sorted(adapter.glob("*.safetensors"))

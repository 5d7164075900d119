"""Checkpoints of a run: all that the steps to come depend on, whole or absent, and checked before it is believed."""

import hashlib
import io
import itertools
import logging
import random
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from flexlora.errors import one_line
from flexlora.results.checkpoint_files import (
    CHECKPOINTS,
    MANIFEST,
    REPLACED,
    STATE,
    TENSORS,
    checkpoint_folders,
    verify,
)
from flexlora.results.files import sync, to_json, write_text

log = logging.getLogger("flexlora")

KEPT = 2


class Checkpoints:
    """`<run>/checkpoints/step-<n>/`, the newest two.

    Each holds `trained.safetensors` (parameters that train, and every buffer: masks too), `state.pt` (optimizer,
    schedule, random generators, position in the data, the method's own state; read with `weights_only=True`) and
    `manifest.json` with the SHA-256 of both, written last. A folder gets its name when it is whole and on the disk.
    Only then are older ones deleted.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.folder = run / CHECKPOINTS
        self._damaged: list[Path] = []

    def save(self, step: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
        """Write the checkpoint of `step` and drop all but the newest two.

        Raises:
            OSError: the disk is full or read-only; the older checkpoints are untouched.
        """
        part = self.folder / f".step-{step:09d}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            # Through memory: writing to a full disk themselves, both raise errors that do not say so.
            archive = io.BytesIO()
            torch.save(dict(state), archive)
            hashes = {}
            for name, content in ((TENSORS, save(dict(tensors))), (STATE, archive.getbuffer())):
                (part / name).write_bytes(content)
                sync(part / name)
                hashes[name] = hashlib.sha256(content).hexdigest()
            write_text(part / MANIFEST, to_json({"step": step, "sha256": hashes}))
            sync(part)
            target = self.folder / f"step-{step:09d}"
            if target.exists():  # it stays until the new one is on the disk
                replaced = target.with_name(f"{target.name}{REPLACED}")
                shutil.rmtree(replaced, ignore_errors=True)
                target.replace(replaced)
            part.replace(target)
            sync(self.folder)
            sync(self.run)
            # Damaged ones too: newer than this one, they would be kept in its place.
            for old in {*self._damaged, *self.folder.glob(f"step-*{REPLACED}")} - {target}:
                shutil.rmtree(old, ignore_errors=True)
            self._damaged.clear()
        finally:
            shutil.rmtree(part, ignore_errors=True)
        for old in list(checkpoint_folders(self.run).values())[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)

    def load(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Tensors and state of the newest checkpoint that is whole, on the CPU; None without one.

        A damaged one is passed over with a line in the log, and goes when the next is saved.
        """
        folders = list(checkpoint_folders(self.run).values())
        for folder, older in itertools.zip_longest(folders, folders[1:]):
            try:
                verify(folder)
                tensors = load_file(folder / TENSORS)
                return tensors, torch.load(folder / STATE, weights_only=True, map_location="cpu")
            except (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError) as error:
                instead = f"falling back to {older.name}" if older else "there is no other, the run begins again"
                log.warning("%s is damaged (%s): %s", folder, one_line(error), instead)
                self._damaged.append(folder)
        return None


def changing_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies on the CPU of what a training may change: parameters that train, and all buffers (masks of ranks)."""
    return {name: _cpu(tensor) for name, tensor in _changing(model)}


def restore_tensors(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put `changing_tensors` back, in place.

    Raises:
        ValueError: the model has other parameters that train, or of other shapes.
    """
    held = dict(_changing(model))
    strange = sorted(set(held) ^ set(tensors)) or [n for n in held if held[n].shape != tensors[n].shape]
    if strange:
        raise ValueError(f"the checkpoint is of another model: {strange[0]} differs")
    with torch.no_grad():
        for name, tensor in held.items():
            tensor.copy_(tensors[name])


def _changing(model: nn.Module) -> Iterable[tuple[str, torch.Tensor]]:
    yield from ((name, p) for name, p in model.named_parameters() if p.requires_grad)
    yield from model.named_buffers()


def _cpu(tensor: torch.Tensor) -> torch.Tensor:
    # A clone: safetensors refuses tensors that share memory, as a buffer and its view may.
    return tensor.detach().to("cpu", copy=True).contiguous()


def random_state() -> dict[str, Any]:
    """The generators of python, numpy and torch on this process, as tensors and plain values."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 (whatever a library draws from)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put `random_state` back."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])

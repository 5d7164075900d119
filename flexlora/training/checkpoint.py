"""Checkpoints of a run: everything that later steps depend on. Each is whole or absent, and is checked before use."""

import hashlib
import io
import itertools
import logging
import random
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from flexlora.errors import UserError, one_line
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
from flexlora.tuner.adapter_parameters import current_names

if TYPE_CHECKING:
    from flexlora.training.loop import Loop

log = logging.getLogger("flexlora")

KEPT = 2
# Parts of the state that have the same form in every training. `Outcome.take` and the methods check the other parts.
ALIKE = ("optimizer", "scheduler", "random", "epoch", "steps_in_epoch", "evaluation_due", "sums", "tokens")
LARGEST = 2.0**64
# Tensors of an optimizer's state that have the shape of their parameter.
MOMENTS = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"}


class Checkpoints:
    """The folders `<run>/checkpoints/step-<n>/`. Only the newest two are kept.

    Each folder holds `trained.safetensors` (parameters that train, and every buffer: masks too), `state.pt` (optimizer,
    schedule, random generators, position in the data, the method's own state; read with `weights_only=True`) and
    `manifest.json` with the SHA-256 of both, written last. A folder gets its name when it is whole and on the disk.
    Older folders are deleted after that.
    """

    def __init__(self, run: Path, guard: Callable[[], None] = lambda: None) -> None:
        """Keep the checkpoints of the run in the folder `run`; `guard` is called before one is written."""
        self.run = run
        self._guard = guard
        self.folder = run / CHECKPOINTS
        self._damaged: list[Path] = []

    def save(self, step: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
        """Write the checkpoint of `step` and delete all checkpoints except the newest two.

        Raises:
            OSError: the disk is full or read-only; the older checkpoints remain.
        """
        self._guard()
        part = self.folder / f".step-{step:09d}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            # Both parts are made in memory first: their own writes to a full disk raise errors that do not say so.
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
            if target.exists():  # the old one stays until the new one is on the disk
                replaced = target.with_name(f"{target.name}{REPLACED}")
                shutil.rmtree(replaced, ignore_errors=True)
                target.replace(replaced)
            part.replace(target)
            sync(self.folder)
            sync(self.run)
            # Damaged ones are deleted too. If they were newer than this one, they would be kept in its place.
            for old in {*self._damaged, *self.folder.glob(f"step-*{REPLACED}")} - {target}:
                shutil.rmtree(old, ignore_errors=True)
            self._damaged.clear()
        finally:
            shutil.rmtree(part, ignore_errors=True)
        for old in list(checkpoint_folders(self.run).values())[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)

    def load(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Return the tensors (on the CPU) and the state of the newest whole checkpoint; None if there is none.

        A damaged checkpoint is skipped with a line in the log. It is deleted when the next one is saved.
        """
        folders = list(checkpoint_folders(self.run).values())
        for folder, older in itertools.zip_longest(folders, folders[1:]):
            try:
                verify(folder)
                tensors = load_file(folder / TENSORS)
                state = torch.load(folder / STATE, weights_only=True, map_location="cpu")
                if not isinstance(state, dict):
                    raise ValueError(f"{STATE} is not a checkpoint's")
                return tensors, state
            except (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError) as error:
                instead = f"falling back to {older.name}" if older else "there is no other, the run begins again"
                log.warning("%s is damaged (%s): %s", folder, one_line(error), instead)
                self._damaged.append(folder)
        return None


def check_restored(
    state: Mapping[str, Any], optimizer: torch.optim.Optimizer, epoch_size: int, total_steps: int
) -> None:
    """Check the values that a training took from a checkpoint: wrong ones would make it fail some steps later.

    Raises:
        ValueError: the number of steps contradicts the position in the data, or a moment of the optimizer does not have
            the shape of its parameter.
    """
    steps, place = state["outcome"]["steps"], state["epoch"] * epoch_size + state["steps_in_epoch"]
    if not 0 <= steps == place <= total_steps or not 0 <= state["steps_in_epoch"] <= epoch_size:
        raise ValueError(f"step {steps} of {total_steps} is not the step {place} of the data")
    for parameter, values in optimizer.state.items():
        if not isinstance(parameter, torch.Tensor):  # LoRA-FA's optimizer has names there
            continue
        for name in MOMENTS & values.keys():
            if not isinstance(values[name], torch.Tensor) or values[name].shape != parameter.shape:
                raise ValueError(f"a tensor {name} of the optimizer does not belong to its parameter")


def check_alike(saved: Any, own: Any, where: str) -> None:
    """Check that a part of a checkpoint has the same types as this part of a new training.

    Raises:
        ValueError: a value has another type or shape, is missing, or is a number that is not finite.
        RecursionError: the part is nested too deeply.
    """
    if isinstance(own, torch.Tensor):
        alike = isinstance(saved, torch.Tensor) and (saved.dtype, saved.shape) == (own.dtype, own.shape)
    elif isinstance(own, bool) or own is None or isinstance(saved, bool):
        alike = isinstance(saved, type(own)) or (own is None and isinstance(saved, int | float))
    elif isinstance(own, int | float):
        alike = isinstance(saved, int | float) and abs(saved) < LARGEST
    else:
        alike = isinstance(saved, type(own))
    if alike and isinstance(own, dict):
        for name, value in own.items():
            check_alike(saved.get(name), value, f"{where}.{name}")
    elif alike and isinstance(own, list | tuple):
        alike = len(saved) == len(own)
        for number, (first, second) in enumerate(zip(saved, own, strict=False)):
            check_alike(first, second, f"{where}.{number}")
    if not alike:
        raise ValueError(f"{where} cannot be {str(saved)[:40]!r}")


def restore(loop: "Loop", saved: tuple[dict[str, torch.Tensor], dict[str, Any]]) -> None:
    """Put a checkpoint, as `Checkpoints.load` returns it, into a training.

    Raises:
        UserError: the checkpoint is of a run with another number of processes, other settings, data or weights.
        ValueError, KeyError, TypeError, RuntimeError, AttributeError, IndexError, OverflowError: the checkpoint is of
            another model or version, or its fields are damaged.
    """
    # First, because parts of the state have an entry for each process.
    before, now = len(saved[1]["random"]), loop.accelerator.num_processes
    if before != now:
        raise UserError(
            f"the run was stopped on {before} processes and cannot go on with {now}: start it as before, or give "
            "variant=NAME"
        )
    own = loop.state_dict()
    for part in ALIKE:
        check_alike(saved[1][part], own[part], part)
    loop.load_state_dict(*saved)
    check_restored(saved[1], loop.optimizer, loop.loader.epoch_size, loop.total_steps)
    outcome = loop.outcome
    told = {to_json(row) for row in (outcome.last, outcome.best) if row is not None}
    if loop.accelerator.is_main_process and not told <= {to_json(row) for row in outcome.history}:
        raise ValueError("the last or the best evaluation is not in metrics.jsonl")


def changing_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return CPU copies of what a training may change: the parameters that train, and all buffers (masks of ranks)."""
    return {name: _cpu(tensor) for name, tensor in _changing(model)}


def restore_tensors(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy `tensors`, which `changing_tensors` returned, into `model`.

    Raises:
        ValueError: the model has other parameters that train, other buffers, or other shapes.
    """
    held = dict(_changing(model))
    tensors = current_names(tensors, held)
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
    # The tensor is copied: safetensors refuses tensors that share memory, as a buffer and its view may.
    return tensor.detach().to("cpu", copy=True).contiguous()


def random_state() -> dict[str, Any]:
    """Return the states of the generators of python, numpy and torch on this process, as tensors and plain values."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 (libraries draw from this generator)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Restore the generators from what `random_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
